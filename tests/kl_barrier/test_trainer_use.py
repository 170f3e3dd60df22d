"""The trainer as people use it: what it learns, logs, schedules, watches, evaluates and saves."""

import logging

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model

from alignkit.kl_barrier import AGGREGATES, aggregate_positions, hinge_barrier, reverse_kl, training_metrics
from alignkit.kl_barrier.sequences import sequences_of
from alignkit.schedules import value_at
from tests.kl_barrier.conftest import prompts_and_completions
from tests.tiny_models import lively_lm


def logs(trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def lora(**settings) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", **settings})


# ---- Learning ----


@pytest.fixture
def one_batch() -> Dataset:
    return prompts_and_completions(4)


def test_one_batch_is_overfitted_and_the_barrier_keeps_its_divergence_down(make_trainer, one_batch):
    settings = {"train_dataset": one_batch, "per_device_train_batch_size": 4, "max_steps": 40, "learning_rate": 3e-3}
    free, held = (
        make_trainer(barrier_weight=weight, tau_nats=0.2, eval_dataset=one_batch, **settings) for weight in (0.0, 3.0)
    )
    start = free.evaluate()
    ends = []
    for trainer in (free, held):
        trainer.train()
        ends.append(trainer.evaluate())
    assert start["eval_kl/divergence"] == 0.0
    assert ends[0]["eval_nll"] < ends[1]["eval_nll"] < 0.8 * start["eval_nll"]
    assert logs(held)[-1]["kl/gate_open"] > 0
    assert ends[1]["eval_kl/divergence"] < 0.5 * ends[0]["eval_kl/divergence"]


@pytest.mark.parametrize("scope", ["sequence", pytest.param("step", marks=pytest.mark.slow)])
def test_a_target_divergence_is_reached_within_a_tenth(make_trainer, one_batch, scope):
    trainer = make_trainer(
        train_dataset=one_batch,
        per_device_train_batch_size=4,
        max_steps=150,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        target_kl=0.5,
        aggregate="rmse",
        aggregate_scope=scope,
        barrier_weight=1.0,
    )
    trainer.train()
    last = [entry["kl/divergence"] for entry in logs(trainer)[-30:]]
    assert sum(last) / len(last) == pytest.approx(0.5, rel=0.1)
    assert {entry["barrier/tau_nats"] for entry in logs(trainer)} == {0.0}


# ---- Schedules ----

SCHEDULES = {
    "barrier_weight": 2.0,
    "barrier_schedule": "linear",
    "barrier_weight_end": 0.5,
    "tau_nats": 0.1,
    "tau_schedule": "cosine",
    "tau_nats_end": 0.4,
}


def test_schedules_are_followed_step_by_step_and_reach_their_ends(make_trainer):
    trainer = make_trainer(**SCHEDULES, max_steps=6, per_device_train_batch_size=2)
    trainer.train()
    assert (trainer.barrier_weight, trainer.tau_nats) == (0.5, 0.4)
    for step, entry in enumerate(logs(trainer)):
        assert entry["barrier/weight"] == pytest.approx(value_at("linear", 2.0, 0.5, step / 6))
        assert entry["barrier/tau_nats"] == pytest.approx(value_at("cosine", 0.1, 0.4, step / 6))


@pytest.mark.parametrize("settings", [{}, {"aggregate_scope": "step"}, {"precompute_ref": "hidden"}])
@pytest.mark.parametrize("saved_at", [3, 4], ids=["inside an epoch", "between epochs"])
def test_a_resumed_run_logs_what_the_uninterrupted_one_does(make_trainer, tmp_path, settings, saved_at):
    options = {**SCHEDULES, **settings, "tau_nats": 0.0001, "tau_nats_end": 0.001}
    options |= {"max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    runs = []
    for checkpoint in (None, str(tmp_path / "out" / f"checkpoint-{saved_at}")):
        torch.manual_seed(0)
        saving = {} if checkpoint else {"save_strategy": "steps", "save_steps": saved_at}
        trainer = make_trainer(peft_config=lora(lora_dropout=0.2), **options, **saving)
        trainer.train(resume_from_checkpoint=checkpoint)
        runs.append([{**entry, "num_tokens": 0} for entry in logs(trainer)])  # TRL counts from 0 again
    assert runs[0] == runs[1]
    assert runs[0][-1]["kl/gate_open"] > 0


def test_a_warm_up_starts_without_a_barrier(make_trainer):
    trainer = make_trainer(
        barrier_schedule="warmup", max_steps=20, per_device_train_batch_size=1, ref_model=lively_lm(2)
    )
    trainer.train()
    # Without a weight the step is the parent's, which has nothing to log about the barrier.
    assert "barrier/weight" not in logs(trainer)[0]
    assert [entry["barrier/weight"] for entry in logs(trainer)[1:4]] == pytest.approx([0.15, 0.3, 0.3])


# ---- Pressure and the watch on the gate ----


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_pressure_is_the_ratio_of_two_gradient_norms_of_the_first_micro_batch(make_trainer, accumulation):
    policy, ref = lively_lm(1), lively_lm(2)
    trainer = make_trainer(
        model=policy,
        ref_model=ref,
        aggregate="rmse",
        tau_nats=2.6,
        barrier_weight=3.0,
        pressure_steps=2,
        max_steps=3,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.0,
        shuffle_dataset=False,
        train_sampling_strategy="sequential",
    )
    trainer.train()
    assert [("barrier/pressure" in entry) for entry in logs(trainer)] == [True, False, True]
    batches = list(trainer.get_train_dataloader())[:accumulation]
    batch = batches[0]
    mask = batch["labels"][:, 1:] != -100
    ids = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logits = policy(**ids).logits[:, :-1][mask]
    with torch.no_grad():
        ref_logits = ref(**ids).logits[:, :-1][mask]
    n_tokens = sum((one["labels"][:, 1:] != -100).sum() for one in batches)
    n_sequences = sum(sequences_of(one).n_labelled for one in batches)
    nll = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:][mask], reduction="sum") / n_tokens
    divergence = aggregate_positions(reverse_kl(logits, ref_logits), "rmse", sequences_of(batch).index)
    barrier = 3.0 * hinge_barrier(divergence, 2.6).sum() / n_sequences
    norms = []
    for loss in (barrier, nll):
        gradients = torch.autograd.grad(loss, list(policy.parameters()), retain_graph=True)
        norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm())
    assert logs(trainer)[0]["barrier/pressure"] == pytest.approx((norms[0] / norms[1]).item(), rel=1e-4)


def test_measuring_the_pressure_changes_nothing_else(make_trainer):
    runs = []
    for pressure_steps in (0, 1):
        trainer = make_trainer(
            ref_model=lively_lm(2),
            tau_nats=2.6,
            pressure_steps=pressure_steps,
            max_steps=3,
            activation_checkpointing=True,
        )
        trainer.train()
        runs.append(trainer)
    for weight, other in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        assert torch.equal(weight, other)


@pytest.mark.filterwarnings("ignore")  # of torch.compile
def test_a_compiled_model_trains_without_the_pressure_for_which_its_graph_has_no_second_backward(make_trainer):
    trainer = make_trainer(
        ref_model=lively_lm(2),
        tau_nats=0.0,
        pressure_steps=1,
        max_steps=1,
        per_device_train_batch_size=2,
        torch_compile=True,
        torch_compile_backend="aot_eager",
    )
    trainer.train()
    assert logs(trainer)[0]["kl/gate_open"] == 1 and "barrier/pressure" not in logs(trainer)[0]


@pytest.mark.parametrize(("tau_nats", "share"), [(100.0, "0 %"), (0.0, "100 %")])
def test_a_gate_that_never_moves_is_warned_of_once_in_a_hundred_steps(
    make_trainer, monkeypatch, caplog, tau_nats, share
):
    assert training_metrics.WATCHED_STEPS == 100
    monkeypatch.setattr(training_metrics, "WATCHED_STEPS", 3)
    trainer = make_trainer(ref_model=lively_lm(2), tau_nats=tau_nats, max_steps=5, per_device_train_batch_size=2)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    messages = [record.getMessage() for record in caplog.records if record.name == training_metrics.__name__]
    [message] = messages
    assert f"open for {share}" in message and f"tau_nats={tau_nats:g}" in message and "calibrate_tau" in message


def test_a_gate_that_is_open_for_some_gives_no_warning(make_trainer, monkeypatch, caplog):
    monkeypatch.setattr(training_metrics, "WATCHED_STEPS", 2)
    trainer = make_trainer(ref_model=lively_lm(2), tau_nats=2.63, max_steps=4, per_device_train_batch_size=8)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert not [record for record in caplog.records if record.name == training_metrics.__name__]


# ---- Evaluation ----


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_an_evaluation_reports_both_directions_all_aggregates_and_the_worst_tokens(make_trainer, direction):
    data = prompts_and_completions(5, seed=4)
    trainer = make_trainer(eval_dataset=data, ref_model=lively_lm(2), kl_direction=direction, aggregate="p95")
    metrics = trainer.evaluate()
    expected = {f"eval_{name}_kl/{how}" for name in ("reverse", "forward") for how in AGGREGATES}
    assert expected | {"eval_nll", "eval_entropy", "eval_mean_token_accuracy", "eval_kl/gate_open"} <= metrics.keys()
    assert metrics["eval_kl/divergence"] == metrics[f"eval_{direction}_kl/p95"] > 0
    report = trainer.evaluation_report
    assert report.n_sequences == 5
    worst = [token.divergence_nats for token in report.worst_tokens]
    assert worst == sorted(worst, reverse=True)
    texts = [row["prompt"] + row["completion"] for row in data]
    first = report.worst_tokens[0]
    tokens = trainer.processing_class(texts[first.sequence] + "<eos>")["input_ids"]
    assert tokens[first.position] == first.token_id
    assert (first.before + first.token + first.after) in texts[first.sequence] + "<eos>"
    assert trainer.state.log_history[-1]["eval_nll"] == metrics["eval_nll"]


def test_no_reported_metric_but_the_loss_depends_on_the_evaluations_batch_size(make_trainer):
    trainer = make_trainer(eval_dataset=prompts_and_completions(10, seed=4), ref_model=lively_lm(2), tau_nats=2.6)
    results = []
    for batch_size in (1, 3, 10):
        trainer.args.per_device_eval_batch_size = batch_size
        metrics = trainer.evaluate()
        kept = {
            name: value
            for name, value in metrics.items()
            if not name.endswith(("_loss", "runtime", "per_second", "num_tokens"))
        }
        results.append((kept, [(one.sequence, one.position) for one in trainer.evaluation_report.worst_tokens]))
    for metrics, worst in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-5)
        assert worst == results[0][1]


def test_several_evaluation_sets_have_their_own_reports(make_trainer):
    sets = {"one": prompts_and_completions(3, seed=4), "two": prompts_and_completions(6, seed=5)}
    trainer = make_trainer(eval_dataset=sets, ref_model=lively_lm(2))
    metrics = trainer.evaluate()
    assert [trainer.evaluation_reports[f"eval_{name}"].n_sequences for name in sets] == [3, 6]
    for name in sets:
        report = trainer.evaluation_reports[f"eval_{name}"]
        assert metrics[f"eval_{name}_kl/divergence"] == report.divergence
        assert metrics[f"eval_{name}_entropy"] == report.entropy
    assert trainer.evaluation_report is trainer.evaluation_reports["eval_two"]


def test_an_arm_without_a_barrier_still_reports_its_divergence(make_trainer):
    trainer = make_trainer(
        barrier_weight=0.0, max_steps=4, learning_rate=1e-2, eval_dataset=prompts_and_completions(4, seed=4)
    )
    trainer.train()
    assert trainer.evaluate()["eval_reverse_kl/mean"] > 0.01


@pytest.mark.parametrize("scope", ["sequence", "step"])
def test_an_evaluation_between_steps_changes_no_step_and_no_log_of_one(make_trainer, scope):
    settings = {"max_steps": 4, "aggregate_scope": scope, "tau_nats": 0.01, "learning_rate": 1e-2, "ref": "ema"}
    runs = []
    for strategy in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        trainer = make_trainer(eval_dataset=prompts_and_completions(3, seed=4), **settings, **strategy)
        trainer.train()
        runs.append(logs(trainer))
    assert runs[0] == runs[1]


# ---- Saving ----


@pytest.mark.parametrize("ref", [None, "adapter", "ema"])
def test_a_trained_adapter_loads_in_plain_peft(make_trainer, tmp_path, ref):
    torch.manual_seed(0)
    trainer = make_trainer(peft_config=lora(), ref=ref, max_steps=3, learning_rate=1e-2)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(lively_lm(1), tmp_path / "adapter").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=0, atol=0)
        assert not torch.equal(lively_lm(1)(input_ids=ids).logits, expected)


@pytest.mark.parametrize("names", [("default", "second"), ("first", "second")])
def test_the_best_model_is_loaded_with_all_its_adapters(make_trainer, names):
    torch.manual_seed(0)
    model = get_peft_model(lively_lm(1), lora(init_lora_weights=False), adapter_name=names[0])
    model.add_adapter(names[1], lora())
    model.base_model.set_adapter(list(names))
    for name, weight in model.named_parameters():
        weight.requires_grad_(names[1] in name)
    trainer = make_trainer(
        model=model,
        ref="previous",
        max_steps=4,
        learning_rate=0.1,
        eval_dataset=prompts_and_completions(3, seed=4),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_nll",
        greater_is_better=True,  # so that it is not the last one
    )
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert trainer.evaluate()["eval_nll"] == pytest.approx(trainer.state.best_metric, rel=1e-6)
    assert model.active_adapters == list(names)
    assert all(weight.requires_grad == (names[1] in name) for name, weight in model.named_parameters())


def test_a_fully_trained_model_is_saved_without_its_reference(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=2, ref="ema")
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    loaded = type(trainer.model).from_pretrained(tmp_path / "model")
    assert all(
        torch.equal(weight, other)
        for weight, other in zip(loaded.parameters(), trainer.model.parameters(), strict=True)
    )
    trainer.save_model(_internal_call=True)  # as `push_to_hub` calls it
    for folder in ("model", "out"):
        assert (tmp_path / folder / "model.safetensors").is_file()
        assert not list((tmp_path / folder).glob("kl_barrier*"))
