"""Bad input through the real config and trainer: each error names the value and the fix."""

import math

import pytest
import torch
from accelerate.utils import ParallelismConfig
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from trl.trainer.sft_config import SFTConfig

from alignkit import KLBarrierTrainer
from alignkit.kl_barrier import aggregate_positions
from alignkit.kl_barrier.checks import refuse_what_cannot_work
from alignkit.kl_barrier.faults import NonFiniteDivergenceError
from alignkit.tasks.toy import byte_tokenizer
from tests.kl_barrier.conftest import masked_rows, prompts_and_completions
from tests.tiny_models import lively_lm

# ---- Settings ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau_nats": -0.1}, r"tau_nats is -0.1; it must be a finite number, 0 or more"),
        ({"tau_nats": math.inf}, r"tau_nats is inf"),
        ({"barrier_weight": math.nan}, r"barrier_weight is nan; it must be a finite number"),
        ({"barrier_weight": -1.0}, r"barrier_weight is -1.0"),
        ({"aggregate": "median"}, r"aggregate is 'median'; choose one of \['mean', 'rmse', 'p95', 'max', 'cvar95'\]"),
        ({"aggregate_scope": "window"}, r"aggregate_scope is 'window'; choose one of \['sequence'"),
        ({"kl_direction": "both"}, r"kl_direction is 'both'; choose one of \['reverse', 'forward'\]"),
        ({"precompute_ref": "logits"}, r"precompute_ref is 'logits'; choose one of \[None, 'hidden'\]"),
        ({"barrier_schedule": "step"}, r"barrier_schedule is 'step'; choose one of"),
        ({"tau_schedule": "linear"}, r"tau_schedule is 'linear'; say where it ends with tau_nats_end"),
        ({"tau_nats_end": 0.2}, r"tau_nats_end is 0.2 but tau_schedule is 'constant', which has no end"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0; it must be at least 0 and below 1"),
        ({"pressure_steps": -1}, r"pressure_steps is -1"),
        ({"target_kl": 0.0}, r"target_kl is 0.0; it must be a finite number of nats above 0"),
        ({"target_kl": math.nan}, r"target_kl is nan"),
        ({"target_kl": 0.1, "barrier_weight": 0.0}, r"target_kl needs a barrier_weight above 0 to start from"),
        ({"target_kl": 0.1, "tau_schedule": "warmup"}, r"target_kl=0.1 moves the weight itself and replaces tau_nats"),
        (
            {"target_kl": 0.1, "barrier_schedule": "linear", "barrier_weight_end": 1.0},
            r"leave barrier_schedule and tau_schedule constant",
        ),
        ({"precompute_ref": "hidden", "ref": "ema"}, r"ref='ema' moves at every step"),
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor is 0.1; it needs the full logits.*set it to 0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_its_value(make_config, settings, message):
    with pytest.raises(ValueError, match=message):
        make_config(**settings)


def test_an_unknown_aggregate_of_the_pure_function():
    with pytest.raises(ValueError, match="median"):
        aggregate_positions(torch.ones(3), "median")


# ---- Models ----


def lora(**settings) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj"], **settings})


def test_a_reference_with_another_vocabulary(make_trainer):
    with pytest.raises(ValueError, match="vocabulary of 300 tokens, the policy of 259"):
        make_trainer(ref_model=lively_lm(2, vocab_size=300))


def test_a_reference_that_is_the_policy_object(make_trainer):
    policy = lively_lm(1)
    with pytest.raises(ValueError, match=r"shares its parameters with the policy.*leave it out for a frozen copy"):
        make_trainer(model=policy, ref_model=policy)


def test_a_reference_named_twice(make_trainer):
    with pytest.raises(ValueError, match="both ref='copy' and ref_model are given"):
        make_trainer(ref="copy", ref_model=lively_lm(2))


@pytest.mark.parametrize("ref", ["base", "adapter", "previous"])
def test_a_reference_of_an_adapter_without_an_adapter(make_trainer, ref):
    with pytest.raises(ValueError, match=rf"ref='{ref}' needs a model with a PEFT adapter; .*ref='copy'"):
        make_trainer(ref=ref)


def test_a_reference_that_is_nowhere(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="no model was found under this path or name"):
        make_trainer(ref=str(tmp_path / "nothing"))


def test_a_trained_adapter_needs_a_choice_of_the_reference(make_trainer):
    model = get_peft_model(lively_lm(1), lora(init_lora_weights=False))
    with pytest.raises(ValueError, match=r'not a fresh one.*ref="base".*ref="adapter"'):
        make_trainer(model=model)


def test_an_initialisation_that_rewrites_the_base_has_no_base_to_compare_with(make_trainer):
    with pytest.raises(ValueError, match=r"'pissa'.*has rewritten the base weights.*ref=\"adapter\""):
        make_trainer(peft_config=lora(init_lora_weights="pissa"), ref="base")


def test_an_adapter_on_the_output_head(make_trainer):
    with pytest.raises(ValueError, match="PEFT adapter to `lm_head` is not supported"):
        make_trainer(peft_config=lora(target_modules=["q_proj", "lm_head"]))


@pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated:FutureWarning")
def test_a_loss_function_of_ones_own(make_config, rows):
    def own_loss(outputs, labels, num_items_in_batch):
        return outputs.logits.sum()

    for by_place, by_name in (((), {"compute_loss_func": own_loss}), ((own_loss,), {})):
        with pytest.raises(ValueError, match=r"compute_loss_func needs logits.*override compute_barrier instead"):
            KLBarrierTrainer(lively_lm(1), make_config(), None, rows, None, byte_tokenizer(), *by_place, **by_name)


def test_the_parents_config(rows, tmp_path):
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(TypeError, match="args is a SFTConfig; give a KLBarrierConfig"):
        KLBarrierTrainer(lively_lm(1), args, train_dataset=rows, processing_class=byte_tokenizer())


def test_gradient_norms_under_reentrant_checkpointing(make_trainer):
    reentrant = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    make_trainer(**reentrant, pressure_steps=0)
    with pytest.raises(ValueError, match="set use_reentrant to False, or pressure_steps to 0"):
        make_trainer(**reentrant, pressure_steps=100)


@pytest.mark.parametrize("sizes", [{"cp_size": 2}, {"sp_size": 2}], ids=["context", "sequence"])
def test_sequences_cut_over_ranks(make_trainer, monkeypatch, sizes):
    # Several ranks of a GPU are needed to configure it for real, so the accelerator of this one is told.
    trainer = make_trainer()
    monkeypatch.setattr(trainer.accelerator.state, "parallelism_config", ParallelismConfig(**sizes), raising=False)
    with pytest.raises(ValueError, match="context and sequence parallelism cut sequences over ranks"):
        refuse_what_cannot_work(trainer)


# ---- Rows ----


def test_rows_with_images_are_not_known_by_their_tokens(make_trainer):
    trainer = make_trainer(precompute_ref="hidden")
    trainer.train_dataset = trainer.train_dataset.add_column("images", [[]] * len(trainer.train_dataset))
    with pytest.raises(ValueError, match="rows of equal tokens may have different images"):
        refuse_what_cannot_work(trainer)


def test_rows_that_are_dropped_have_no_hidden_states(make_trainer):
    with pytest.raises(ValueError, match="dataloader_drop_last=True leaves out some of"):
        make_trainer(precompute_ref="hidden", dataloader_drop_last=True)


def test_a_stream_has_no_fixed_rows_to_find_hidden_states_of(make_trainer):
    stream = IterableDataset.from_generator(prompts_and_completions(4).__iter__)
    with pytest.raises(ValueError, match=r"precompute_ref needs a training set of fixed rows, not a stream"):
        make_trainer(train_dataset=stream, precompute_ref="hidden", max_steps=1)


SCOPES = ["sequence", "micro_batch", "rank_global", "step"]


@pytest.mark.parametrize(
    ("scope", "aggregate"), [*((scope, "rmse") for scope in SCOPES), ("sequence", "cvar95"), ("step", "p95")]
)
def test_a_batch_without_a_completion_token_is_a_finite_loss_and_training_goes_on(make_trainer, scope, aggregate):
    trainer = make_trainer(
        train_dataset=masked_rows([True, True, False, False, True, True]),
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        per_device_train_batch_size=2,
        max_steps=3,
        aggregate=aggregate,
        aggregate_scope=scope,
        ref_model=lively_lm(2),
        tau_nats=0.1,
        pressure_steps=1,
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [math.isfinite(entry["loss"]) for entry in entries] == [True] * 3
    assert entries[1]["loss"] == entries[1]["grad_norm"] == 0.0
    assert entries[0]["kl/divergence"] > 0 and entries[2]["kl/divergence"] > 0
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


@pytest.mark.parametrize("scope", ["sequence", "step"])
@pytest.mark.parametrize("settings", [{}, {"target_kl": 0.1}, {"precompute_ref": "hidden"}], ids=["", "dual", "kept"])
def test_no_completion_token_anywhere_leaves_the_weights_as_they_were(make_trainer, scope, settings):
    model = lively_lm(1)
    before = [weight.clone() for weight in model.parameters()]
    trainer = make_trainer(
        model=model,
        train_dataset=masked_rows([False] * 4),
        dataset_kwargs={"skip_prepare_dataset": True},
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=2,
        aggregate_scope=scope,
        **settings,
    )
    trainer.train()
    assert all(torch.equal(weight, other) for weight, other in zip(model.parameters(), before, strict=True))
    if "target_kl" in settings:
        assert trainer.barrier_weight == pytest.approx(0.3)


# ---- Numbers ----


@pytest.mark.parametrize("scope", ["sequence", "step"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_divergence_that_is_no_number_is_reported_with_its_token_and_text(make_trainer, value, scope):
    ref = lively_lm(2)
    with torch.no_grad():
        ref.model.embed_tokens.weight[ord("q")] = value  # seen wherever a q has been read
    rows = Dataset.from_list([{"prompt": "abc", "completion": "defg"}, {"prompt": "abc", "completion": "deqfg"}])
    trainer = make_trainer(
        train_dataset=rows,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=2,
        ref_model=ref,
        max_steps=1,
        aggregate_scope=scope,
    )
    with pytest.raises(NonFiniteDivergenceError) as caught:
        trainer.train()
    message = str(caught.value)
    # In attention 0 · NaN spreads over the whole row <bos>abcdeqfg<eos>; the row without a q is fine.
    assert "in this step: KL is not finite at 6 of 11 positions" in message and message.startswith("step 1: ")
    assert "row 1, position 4: KL is nan at 'd' (token 100) after '<bos>abc'" in message
    assert "row 1, position 7: KL is nan at 'f' (token 102) after '<bos>abcdeq'" in message and "row 0" not in message


def test_an_overflow_of_float16_is_reported_and_bfloat16_is_proposed(make_trainer):
    model = lively_lm(1)
    with torch.no_grad():
        for part in (model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj):
            part.weight.mul_(5e4)  # to entries of about 1000, whose products are above 65504
    trainer = make_trainer(model=model.half(), ref_model=lively_lm(2).half(), max_steps=1)
    with pytest.raises(NonFiniteDivergenceError, match=r"In float16 this is mostly an overflow \(train in bfloat16"):
        trainer.train()


def test_a_broken_policy_shows_in_an_evaluation_instead_of_stopping_it(make_trainer):
    model, ref = lively_lm(1), lively_lm(2)
    with torch.no_grad():
        model.model.embed_tokens.weight[ord(" ")] = math.nan
    trainer = make_trainer(model=model, ref_model=ref, eval_dataset=prompts_and_completions(3, seed=2))
    metrics = trainer.evaluate()
    assert math.isnan(metrics["eval_kl/divergence"]) and math.isnan(metrics["eval_nll"])
    assert math.isnan(trainer.evaluation_report.worst_tokens[0].divergence_nats)
