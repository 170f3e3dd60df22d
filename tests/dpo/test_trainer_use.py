"""What a user of the trainer sees: schedules, columns, metrics, evaluations, references."""

import copy

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import EarlyStoppingCallback, TrainerCallback
from trl.trainer.dpo_trainer import DPOTrainer

from tests.dpo.conftest import pairs
from tests.tiny_models import lively_lm

LORA = LoraConfig(r=4, target_modules="all-linear")
FAST = {"per_device_train_batch_size": 4, "optim": "sgd", "learning_rate": 0.05}


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# ---- β ----


def test_beta_follows_its_schedule_step_by_step(make_trainer):
    trainer = make_trainer(beta=0.5, beta_schedule="linear", beta_end=0.1, max_steps=5, **FAST)
    trainer.train()
    assert logged(trainer, "beta") == pytest.approx([0.5, 0.42, 0.34, 0.26, 0.18])
    trainer.model.train()
    assert trainer.beta == pytest.approx(0.1)


def test_a_column_of_betas_weighs_each_row_with_its_own(make_trainer, rows, tmp_path):
    betas = [0.05 + 0.1 * number for number in range(16)]
    trainer = make_trainer(
        train_dataset=rows.add_column("beta", betas), max_steps=1, per_device_train_batch_size=16, learning_rate=0.0
    )
    trainer.train()
    assert logged(trainer, "beta") == pytest.approx([sum(betas) / 16])
    # The loss of one batch with moved weights, by hand from the log-ratios of its rows.
    trainer = make_trainer(train_dataset=rows.add_column("beta", betas), max_steps=1, per_device_train_batch_size=16)
    moved = lively_lm(3)
    trainer.model.load_state_dict(moved.state_dict())
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    ratios = {}
    trainer.compute_beta, own = (
        lambda margin, column: ratios.setdefault("beta", own(margin, column)),
        trainer.compute_beta,
    )
    margins = []
    trainer._train_metrics.add_pairs = lambda chosen, rejected, n: margins.append(chosen - rejected)
    loss = trainer.compute_loss(trainer.model, batch)
    expected = -torch.nn.functional.logsigmoid(batch["beta"] * margins[0]).mean()
    torch.testing.assert_close(loss.detach(), expected)
    assert sorted(batch["beta"].tolist()) == pytest.approx(betas) and ratios["beta"].shape == (16,)


def test_dynamic_beta_follows_the_margins_of_the_batches(make_trainer):
    trainer = make_trainer(dynamic_beta_alpha=0.5, max_steps=4, **FAST)
    trainer.train()
    average, expected = 0.0, []
    for margin in logged(trainer, "logratio/margin"):
        average = 0.9 * average + 0.1 * margin
        expected.append(0.1 * (1 + 0.5 * (margin - average)))
    assert logged(trainer, "beta") == pytest.approx(expected, rel=1e-5) and len(set(expected)) == 4


def test_target_kl_moves_beta_against_the_divergence(make_trainer):
    trainer = make_trainer(target_kl=0.01, kl_steps=1, max_steps=6, **{**FAST, "learning_rate": 0.5})
    trainer.train()
    expected, beta = [], 0.1
    for divergence in logged(trainer, "kl/reverse_on_data"):
        expected.append(beta)
        beta *= 1 + 0.1 * min(max(divergence / 0.01 - 1, -0.2), 0.2)
    assert logged(trainer, "beta") == pytest.approx(expected, rel=1e-5)
    assert expected[1] < 0.1 and max(expected[2:]) > min(expected)


def test_setting_beta_during_training_changes_it_as_in_the_parent(make_trainer):
    trainer = make_trainer(max_steps=2, **FAST)
    trainer.beta = 0.7
    trainer.train()
    assert logged(trainer, "beta") == pytest.approx([0.7, 0.7])


def test_setting_beta_sets_where_a_target_moves_it_from(make_trainer):
    trainer = make_trainer(target_kl=0.01, kl_steps=1, max_steps=2, **FAST)
    trainer.beta = 0.7
    trainer.train()
    assert logged(trainer, "beta") == pytest.approx([0.7, 0.7 * 0.98])  # a divergence of 0 at the first step


@pytest.mark.parametrize("own", [None, 0.3])
def test_an_evaluation_has_one_beta_whatever_the_schedule_says(make_trainer, own):
    trainer = make_trainer(
        beta=0.5,
        beta_schedule="linear",
        beta_end=0.1,
        eval_beta=own,
        eval_dataset=pairs(8, seed=1).add_column("beta", [0.9] * 8),
        max_steps=2,
        **FAST,
    )
    trainer.train()
    metrics = trainer.evaluate()
    beta = 0.5 if own is None else own
    assert metrics["eval_rewards/margins"] == pytest.approx(beta * metrics["eval_logratio/margin"], rel=1e-5)
    trainer.model.eval()
    assert trainer.beta == beta


# ---- Metrics ----


def test_an_untrained_policy_has_log_ratios_of_0_and_an_accuracy_of_one_half(make_trainer):
    trainer = make_trainer(eval_dataset=pairs(7, seed=1), kl_steps=1, per_device_eval_batch_size=3)
    metrics = trainer.evaluate()
    assert metrics["eval_logratio/accuracy"] == 0.5 and metrics["eval_rewards/accuracies"] == 0.0
    assert metrics["eval_logratio/chosen"] == metrics["eval_logratio/rejected"] == 0
    assert metrics["eval_kl/reverse_on_data"] == 0


@pytest.mark.parametrize("share_prefix", [True, False])
def test_an_evaluation_does_not_depend_on_its_batch_size(make_trainer, share_prefix):
    found = []
    for batch_size in (2, 3, 7):
        trainer = make_trainer(
            eval_dataset=pairs(7, seed=1), kl_steps=9, per_device_eval_batch_size=batch_size, share_prefix=share_prefix
        )
        trainer.model.load_state_dict(lively_lm(3).state_dict())
        metrics = trainer.evaluate()
        found.append({name: value for name, value in metrics.items() if "logratio" in name or "kl/" in name})
    for other in found[1:]:
        assert found[0] == pytest.approx(other, rel=1e-5, abs=1e-5)
    assert len(found[0]) == 5 and abs(found[0]["eval_logratio/chosen"]) > 1


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_divergence_is_that_of_the_whole_vocabulary_at_the_completions(
    make_trainer, tokenizer, lora, share_prefix
):
    data = pairs(3, seed=1)
    trainer = make_trainer(eval_dataset=data, kl_steps=1, peft_config=lora, share_prefix=share_prefix)
    ref = copy.deepcopy(lively_lm(1))
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if lora is None or "lora_B" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)
    metrics = trainer.evaluate()
    values = []
    trainer.model.eval()
    for row in data:
        for side in ("chosen", "rejected"):
            prompt, ids = (
                tokenizer(text)["input_ids"] for text in (row["prompt"], row["prompt"] + row[side] + "<eos>")
            )
            tokens = torch.tensor([ids])
            with torch.no_grad():
                policy, reference = (model(tokens).logits[0].log_softmax(-1) for model in (trainer.model, ref))
            kl = (policy.exp() * (policy - reference)).sum(-1)
            values += kl[len(prompt) - 1 : len(ids) - 1].tolist()
    assert metrics["eval_kl/reverse_on_data"] == pytest.approx(sum(values) / len(values), rel=1e-4)


def test_named_evaluation_sets_keep_their_own_metrics(make_trainer):
    sets = {"near": pairs(6, seed=1), "far": pairs(4, seed=9)}
    trainer = make_trainer(eval_dataset=sets, eval_strategy="steps", eval_steps=2, max_steps=2, **FAST)
    trainer.train()
    for name, dataset in sets.items():
        alone = trainer.evaluate(dataset)
        for key in ("logratio/margin", "logratio/accuracy", "rewards/margins"):
            assert logged(trainer, f"eval_{name}_{key}") == pytest.approx([alone[f"eval_{key}"]], rel=1e-5)
    assert not logged(trainer, "eval_rewards/margins")[:-2]


def test_the_divergence_is_measured_every_so_many_steps(make_trainer):
    trainer = make_trainer(kl_steps=2, max_steps=5, **FAST)
    trainer.train()
    steps = [entry["step"] for entry in trainer.state.log_history if "kl/reverse_on_data" in entry]
    assert steps == [1, 3, 5]


class BreakOff(TrainerCallback):
    """Breaks an evaluation off after its first batch, once."""

    def __init__(self):
        self.is_done = False

    def on_prediction_step(self, args, state, control, **kwargs):
        if not self.is_done:
            self.is_done = True
            raise KeyboardInterrupt


def test_an_evaluation_that_was_broken_off_leaves_nothing_to_the_next(make_trainer):
    data = pairs(7, seed=1)
    found = []
    for callbacks in ([], [BreakOff()]):
        trainer = make_trainer(eval_dataset=data, per_device_eval_batch_size=3, callbacks=callbacks)
        trainer.model.load_state_dict(lively_lm(3).state_dict())
        if callbacks:
            with pytest.raises(KeyboardInterrupt):
                trainer.evaluate()
        metrics = trainer.evaluate()
        found.append({name: value for name, value in metrics.items() if "logratio" in name or "rewards" in name})
    assert found[0] == found[1] and found[0]["eval_rewards/margins"] != 0


class BreakOffTraining(TrainerCallback):
    """Breaks a training off after its second step, once."""

    def __init__(self):
        self.is_done = False

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2 and not self.is_done:
            self.is_done = True
            raise KeyboardInterrupt


def test_a_training_that_was_broken_off_leaves_nothing_to_the_log_of_the_next(make_trainer):
    settings = {**FAST, "learning_rate": 0.0, "ref_model": lively_lm(2), "logging_steps": 3, "max_steps": 3}
    found = []
    for callbacks in ([], [BreakOffTraining()]):
        trainer = make_trainer(callbacks=callbacks, **settings)
        if callbacks:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        trainer.train()
        found.append([logged(trainer, name) for name in ("logratio/margin", "rewards/margins", "logps/chosen")])
    assert found[0] == found[1] and found[0][0] != [0.0]


# ---- Best checkpoint, early stop ----


def test_the_best_checkpoint_and_an_early_stop_go_by_a_named_held_out_metric(make_trainer):
    trainer = make_trainer(
        eval_dataset={"task": pairs(6, seed=1)},
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=12,
        load_best_model_at_end=True,
        metric_for_best_model="eval_task_logratio/accuracy",
        greater_is_better=True,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        peft_config=LORA,
        **{**FAST, "learning_rate": 0.5},
    )
    trainer.train()
    values = logged(trainer, "eval_task_logratio/accuracy")
    assert trainer.state.best_metric == max(values) and trainer.state.global_step < 12
    assert trainer.evaluate(pairs(6, seed=1))["eval_logratio/accuracy"] == pytest.approx(max(values))


# ---- Data ----


def test_long_prompts_lose_their_start_and_no_pair_is_dropped(make_trainer, rows):
    trainer = make_trainer(max_length=24, max_prompt_length=16, max_steps=1, per_device_train_batch_size=16)
    trainer.train()
    assert len(trainer.train_dataset) == 16
    assert logged(trainer, "truncated/prompts") == [1.0] and 0 < logged(trainer, "truncated/completions")[0] < 1


def test_an_evaluation_of_another_dataset_drops_no_pair_either(make_trainer):
    data = pairs(8, seed=1)
    trainer = make_trainer(max_length=24, eval_dataset=data)  # most prompts are longer
    trainer.model.load_state_dict(lively_lm(3).state_dict())
    known, new = trainer.evaluate(), trainer.evaluate(data)
    for name in ("truncated/prompts", "logratio/margin"):
        assert new[f"eval_{name}"] == known[f"eval_{name}"] != 0


def test_a_stream_of_pairs_trains_as_the_dataset_does(make_trainer, rows):
    losses = []
    for data in (rows, IterableDataset.from_generator(lambda: iter(rows))):
        trainer = make_trainer(train_dataset=data, max_steps=2, train_sampling_strategy="sequential", **FAST)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0] == losses[1]


def test_a_collator_of_ones_own_is_used(make_trainer):
    theirs = DPOTrainer.__init__.__globals__["DataCollatorForPreference"](pad_token_id=256)
    trainer = make_trainer(data_collator=theirs, max_steps=1, **FAST)
    trainer.train()
    assert trainer.data_collator is theirs and logged(trainer, "loss") == pytest.approx([0.6931], abs=1e-4)


def test_conversations_are_pairs_too(make_trainer):
    from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer

    def talk(role: str, text: str) -> list[dict]:
        return [{"role": role, "content": text}]

    data = [
        {
            "prompt": talk("user", row["prompt"]),
            **{side: talk("assistant", row[side]) for side in ("chosen", "rejected")},
        }
        for row in pairs(4)
    ]
    trainer = make_trainer(
        train_dataset=Dataset.from_list(data),
        processing_class=byte_tokenizer(chat_template=CHAT_TEMPLATE),
        max_steps=1,
    )
    trainer.train()
    assert logged(trainer, "loss") == pytest.approx([0.6931], abs=1e-4)


# ---- The reference ----


def test_a_model_edited_in_memory_is_compared_with_itself_as_it_is(make_trainer, tmp_path):
    lively_lm(5).save_pretrained(tmp_path / "elsewhere")
    model = lively_lm(1)
    model.config._name_or_path = str(tmp_path / "elsewhere")  # where TRL would load the reference from
    trainer = make_trainer(model=model, max_steps=1, **FAST)
    trainer.train()
    assert trainer.reference.kind == "copy" and logged(trainer, "logratio/margin") == [0.0]


def test_the_average_of_the_policy_follows_it_with_an_adapter(make_trainer):
    trainer = make_trainer(ref="ema", ema_decay=0.5, peft_config=LORA, max_steps=3, **FAST)
    trainer.train()
    assert trainer.reference.kind == "ema"
    fixed = make_trainer(peft_config=LORA, max_steps=3, **FAST)
    fixed.train()
    for side in ("logratio/chosen", "logratio/rejected"):
        half, whole = logged(trainer, side)[1], logged(fixed, side)[1]  # after one step of the same policy
        assert half == pytest.approx(whole / 2, rel=0.1) and abs(half) > 0.5


def test_a_reference_that_is_given_is_used(make_trainer):
    trainer = make_trainer(ref_model=lively_lm(2), max_steps=1, **FAST)
    trainer.train()
    assert trainer.reference.kind == "model" and abs(logged(trainer, "logratio/margin")[0]) > 1


class CountHooks(TrainerCallback):
    """Counts the hooks of all modules before every step."""

    def __init__(self):
        self.counts = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.counts.append(sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()))


def test_gradient_checkpointing_leaves_no_hook_behind(make_trainer):
    count = CountHooks()
    trainer = make_trainer(peft_config=LORA, gradient_checkpointing=True, max_steps=12, callbacks=[count], **FAST)
    trainer.train()
    assert len(count.counts) == 12 and len(set(count.counts)) == 1


def test_a_model_that_had_a_trainer_can_have_another(make_trainer):
    model = lively_lm(1)
    first = make_trainer(model=model, max_steps=1, **FAST)
    first.train()
    second = make_trainer(model=model, max_steps=2, **FAST)
    second.train()
    assert logged(second, "logratio/margin")[0] == 0.0 and logged(second, "logratio/margin")[1] != 0.0


def test_one_batch_is_learned_by_heart(make_trainer):
    trainer = make_trainer(
        train_dataset=pairs(4), max_steps=30, per_device_train_batch_size=4, learning_rate=3e-3, beta=0.5
    )
    trainer.train()
    assert logged(trainer, "loss")[-1] < 0.05 and logged(trainer, "logratio/accuracy")[-1] == 1.0


def test_a_trained_adapter_under_another_reference_than_itself_leaves_no_copy_behind(make_trainer):
    model = get_peft_model(lively_lm(1), LORA)
    trainer = make_trainer(model=model, ref="base", max_steps=1, **FAST)
    assert trainer.reference.kind == "base" and set(trainer.model.peft_config) == {"default"}


def test_the_divergence_is_measured_behind_virtual_tokens(make_trainer):
    model = get_peft_model(lively_lm(1), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    trainer = make_trainer(model=model, ref="copy", kl_steps=1, eval_dataset=pairs(1, seed=1))
    [virtual] = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        virtual.add_(torch.randn(virtual.shape, generator=torch.Generator().manual_seed(0)))
    found = trainer.evaluate()["eval_kl/reverse_on_data"]
    batch = next(iter(trainer.get_eval_dataloader()))
    predicts, inputs = batch["completion_mask"][:, 1:].bool(), (batch["input_ids"], batch["attention_mask"])
    with torch.no_grad():
        policy, ref = (each(*inputs).logits.log_softmax(-1) for each in (trainer.model, trainer.reference.ref_model))
    kl = (policy.exp() * (policy - ref)).sum(-1)[:, -predicts.shape[1] - 1 : -1][predicts].mean().item()
    assert found == pytest.approx(kl, rel=1e-4) and kl > 1e-4
