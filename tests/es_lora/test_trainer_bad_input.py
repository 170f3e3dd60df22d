"""What cannot work is refused in words, before anything is computed where that is possible."""

import dataclasses
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import HfArgumentParser, OPTConfig, OPTForCausalLM

from alignkit import ESLoRAConfig
from alignkit.reliability import NonFiniteError
from alignkit.tasks.toy import byte_tokenizer
from tests.es_lora.conftest import LORA, lively_lm, prompts, trained

NO_OUTPUT = {"use_cpu": True, "report_to": "none"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population_size": 1}, "population_size is 1"),
        ({"population_size": 7}, "population_size is 7; antithetic members come in pairs"),
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"sigma": float("inf")}, "sigma is inf"),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"sigma_end": 0.1}, "'constant', which has no end"),
        ({"sigma_schedule": "linear"}, "say where it ends with sigma_end"),
        ({"sigma_schedule": "warmup"}, "sigma_schedule is 'warmup'"),
        ({"sigma_mode": "param"}, "choose one of \\['weight', 'output', 'adaptive'\\]"),
        ({"perturb": "AB"}, "perturb is 'AB'"),
        ({"fitness_shaping": "rank"}, "fitness_shaping is 'rank'"),
        ({"fitness_shaping": "sign", "antithetic": False}, "set antithetic=True"),
        ({"backend": "tgi"}, "backend is 'tgi'"),
        ({"per_device_train_batch_size": 8}, "set prompts_per_step"),
        ({"prompts_per_step": 4, "per_device_train_batch_size": 4}, "per_device_train_batch_size is 4"),
        ({"prompts_per_step": 6, "gradient_accumulation_steps": 4}, "make it a multiple"),
        ({"prompts_per_step": 0}, "prompts_per_step is 0"),
        ({"rollouts_per_prompt": 2, "temperature": 0.0}, "raise the temperature"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"anchor_decay": -0.1}, "anchor_decay is -0.1"),
        ({"reward_timeout_s": 0.0}, "reward_timeout_s is 0.0"),
        ({"fp16": True}, "fp16=True"),
        ({"bf16": True}, "bf16=True.*'dtype': 'bfloat16'"),
        ({"auto_find_batch_size": True}, "lower population_chunk_size"),
    ],
)
def test_a_setting_that_cannot_work_is_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        ESLoRAConfig(str(tmp_path), **NO_OUTPUT, **settings)


def test_a_config_can_be_copied_and_changed(tmp_path):
    config = ESLoRAConfig(str(tmp_path), **NO_OUTPUT, prompts_per_step=8, gradient_accumulation_steps=2)
    assert config.per_device_train_batch_size == 4
    assert dataclasses.replace(config, prompts_per_step=12).per_device_train_batch_size == 6
    assert ESLoRAConfig(**NO_OUTPUT, eval_steps=5).eval_strategy == "steps"


def test_the_config_is_read_from_a_command_line(tmp_path):
    (config,) = HfArgumentParser(ESLoRAConfig).parse_args_into_dataclasses(
        [f"--output_dir={tmp_path}", "--use_cpu", "--sigma=0.1", "--perturb=B", "--antithetic=False"]
    )
    assert (config.sigma, config.perturb, config.antithetic) == (0.1, "B", False)


def test_defaults_are_its_own():
    config = ESLoRAConfig(**NO_OUTPUT)
    assert (config.perturb, config.sigma_mode, config.sigma) == ("B", "output", 0.05)
    assert (config.learning_rate, config.optim, config.lr_scheduler_type) == (0.1, "sgd", "constant")
    assert (config.max_grad_norm, config.temperature, config.logging_nan_inf_filter) == (0.0, 0.0, False)


@pytest.mark.parametrize("none", [None, []])
def test_no_reward_function_is_refused(make_trainer, none):
    with pytest.raises(ValueError, match="give at least one function"):
        make_trainer(reward_funcs=none)


def test_what_is_no_function_is_refused(make_trainer):
    with pytest.raises(TypeError, match="wrap a model"):
        make_trainer(reward_funcs=["org/reward-model"])


def test_another_number_of_weights_is_refused(make_trainer):
    with pytest.raises(ValueError, match="2 numbers for 1 reward functions"):
        make_trainer(reward_weights=[1.0, 2.0])


def test_an_exception_of_a_reward_function_ends_the_run_as_it_is(make_trainer):
    def broken(completions, **columns):
        raise ZeroDivisionError("in the reward")

    with pytest.raises(ZeroDivisionError, match="in the reward"):
        make_trainer(reward_funcs=broken).train()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "train_dataset is missing"),
        ([{"text": "a", "n": 1}], "has the columns \\['n', 'text'\\]; it needs 'prompt'"),
        ({"train": [{"prompt": "a"}]}, r"train_dataset is a dict of \['train'\]; give one of them"),
        ([{"prompt": "a"}, {"text": "b"}], r"row 1 has the columns \['text'\]; it needs 'prompt'"),
        ([{"prompt": "a"}, "b"], "row 1 is 'b'; give rows with 'prompt'"),
        ([{"prompt": "a" * 600}], "the prompt has 601 tokens and the model's context has room for 506"),
        ([{"prompt": "a"}, {"prompt": None}], "row 1: prompt is None"),
    ],
)
def test_rows_that_cannot_be_completed_are_named(make_trainer, rows, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(train_dataset=rows)


def test_a_completion_longer_than_the_context_is_refused(make_trainer):
    with pytest.raises(ValueError, match="max_completion_length is 512 and the model's context 512"):
        make_trainer(max_completion_length=512)


def test_no_matching_module_is_refused(make_trainer):
    with pytest.raises(ValueError, match="no_such_module"):
        make_trainer(peft_config=LoraConfig(target_modules=["no_such_module"]))


@pytest.mark.parametrize(
    "config", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens"]}]
)
@pytest.mark.parametrize("perturb", ["both", "lowrank"])
def test_adapters_that_are_no_plain_lora_of_linear_modules_are_refused(make_trainer, config, perturb):
    with pytest.raises(ValueError, match="LoRA"):
        make_trainer(peft_config=LoraConfig(**{**LORA, **config}), perturb=perturb)


def test_a_merged_adapter_is_refused(make_trainer):
    model = get_peft_model(lively_lm(), LoraConfig(**LORA))
    model.merge_adapter()
    with pytest.raises(ValueError, match="call unmerge_adapter\\(\\) first"):
        make_trainer(model=model, peft_config=None)


def test_a_config_beside_an_adapter_is_refused(make_trainer):
    with pytest.raises(ValueError, match="give one of them"):
        make_trainer(model=get_peft_model(lively_lm(), LoraConfig(**LORA)))


@pytest.mark.parametrize("perturb", ["A", "B", "both"])
def test_the_saddle_is_refused_with_its_reason(make_trainer, perturb):
    model = get_peft_model(lively_lm(), LoraConfig(**LORA))
    for name, weight in model.named_parameters():
        if "lora_A" in name:
            torch.nn.init.zeros_(weight)
    with pytest.raises(ValueError, match="A and B are both 0"):
        make_trainer(model=model, peft_config=None, perturb=perturb)


def test_noise_on_a_alone_needs_a_b_that_is_not_zero(make_trainer):
    with pytest.raises(ValueError, match="B is 0 and perturb='A' moves A alone"):
        make_trainer(perturb="A")
    make_trainer(perturb="A", peft_config=LoraConfig(**LORA, init_lora_weights=False), max_steps=1).train()


def test_a_tokenizer_without_a_pad_token_gives_the_same_run(make_trainer):
    bare = byte_tokenizer()
    bare.pad_token = None
    runs = []
    for tokenizer in (bare, byte_tokenizer()):
        trainer = make_trainer(processing_class=tokenizer)
        trainer.train()
        runs.append(trained(trainer))
    assert bare.pad_token is None
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize("change", [{"population_size": 8}, {"perturb": "B"}, {"seed": 1}, {"sigma": 0.3}])
def test_a_checkpoint_of_another_population_is_refused(make_trainer, change):
    make_trainer(save_strategy="steps", save_steps=1).train()
    with pytest.raises(ValueError, match=f"is a checkpoint of {next(iter(change))}="):
        make_trainer(**change).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("perturb", "change"),
    [
        ("both", {"r": 4}),
        ("both", {"lora_alpha": 6}),
        ("both", {"target_modules": ["q_proj"]}),
        ("lowrank", {"r": 4}),  # of the noise; the adapter is the same
    ],
)
def test_a_checkpoint_of_another_adapter_is_refused(make_trainer, perturb, change):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "perturb": perturb}
    make_trainer(**settings).train()
    with pytest.raises(ValueError, match=r"is a checkpoint of an adapter whose .* give the same peft_config"):
        make_trainer(**settings, peft_config=LoraConfig(**{**LORA, **change})).train(resume_from_checkpoint=True)


def test_a_full_disk_while_saving_loses_nothing_that_is_older(make_trainer, monkeypatch):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "save_total_limit": 1}
    trainer = make_trainer(**settings)
    save = trainer._save_optimizer_and_scheduler

    def full(output_dir):
        if output_dir.endswith("checkpoint-3"):
            raise OSError(28, "No space left on device")
        save(output_dir)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    again = make_trainer(**settings)
    again.train(resume_from_checkpoint=True)
    shutil.rmtree(again._folder)
    whole = make_trainer(**settings)
    whole.train()
    assert all(torch.equal(weight, trained(whole)[name]) for name, weight in trained(again).items())


def test_a_rewards_function_that_fails_for_everyone_moves_nothing_and_stops_the_run(make_trainer):
    trainer = make_trainer(reward_funcs=lambda completions, **columns: [float("nan")] * len(completions), max_steps=1)
    before = trained(trainer)
    with pytest.raises(NonFiniteError, match=r"step 1: no member has a fitness: the rewards of each \(<lambda>\)"):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in trained(trainer).items())


def test_rows_fewer_than_a_step_asks_for_are_said_to_repeat(make_trainer, caplog):
    make_trainer(train_dataset=prompts(1)).get_train_dataloader()
    assert "prompts_per_step is 2: a step sees each of 1 rows more than once" in caplog.text


def test_an_evaluation_without_rows_is_refused_in_words(make_trainer):
    with pytest.raises(ValueError, match="there is no eval_dataset"):
        make_trainer().evaluate()


def test_an_adapter_that_a_second_one_would_replace_is_refused(make_trainer):
    model = lively_lm()
    model.add_adapter(LoraConfig(**LORA))  # as AutoModelForCausalLM does with the folder of an adapter
    with pytest.raises(ValueError, match="is no PeftModel"):
        make_trainer(model=model)


def test_an_initialisation_that_rewrites_the_base_is_refused(make_trainer):
    with pytest.raises(ValueError, match="init_lora_weights is 'pissa', which rewrites the base weights"):
        make_trainer(peft_config=LoraConfig(**LORA, init_lora_weights="pissa"))


@pytest.mark.parametrize("sigma_mode", ["weight", "output"])
def test_a_module_that_does_not_see_rows_is_named(make_trainer, sigma_mode):
    sizes = {"hidden_size": 16, "ffn_dim": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 1}
    model = OPTForCausalLM(OPTConfig(vocab_size=259, num_attention_heads=2, max_position_embeddings=64, **sizes))
    with pytest.raises(ValueError, match=r"fc1 is called with .* leave the module out"):
        make_trainer(model=model, peft_config=LoraConfig(target_modules=["fc1"]), sigma_mode=sigma_mode).train()
