"""Calibration of tau: the rows of loops, what is proposed, and that the model is left as it was."""

import hashlib
import json
import math

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from alignkit.kl_barrier import AGGREGATES
from alignkit.kl_barrier.calibration import TauCalibration, calibrate_tau, looped
from tests.tiny_models import lively_lm


def fingerprint(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(name.encode() + weight.numpy().tobytes())
    return digest.hexdigest()


def by_aggregate(normal: list[float], loop: list[float], open_share: float = 0.1, **changes) -> TauCalibration:
    measured = [dict.fromkeys(AGGREGATES, np.array(values, dtype=float)) for values in (normal, loop)]
    for how, values in changes.items():
        measured[1][how] = np.array(values, dtype=float)
    return TauCalibration(*measured, open_share, "sequence", "reverse")


@pytest.fixture
def calibrate(rows, tokenizer, make_config):
    """Two short runs on sixteen rows."""

    def run(
        model=None,
        *,
        dataset=None,
        processing_class=tokenizer,
        open_share: float = 0.1,
        max_steps: int | None = None,
        **settings,
    ):
        arguments = {name: settings.pop(name) for name in ("peft_config", "ref_model") if name in settings}
        config = make_config(**{"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 3e-3, **settings})
        return calibrate_tau(
            lively_lm(1) if model is None else model,
            rows if dataset is None else dataset,
            args=config,
            processing_class=processing_class,
            open_share=open_share,
            max_steps=max_steps,
            **arguments,
        )

    return run


# ---- Loops ----


def test_a_loop_repeats_the_first_four_labelled_tokens_and_leaves_the_prompt():
    row = looped({"input_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9], "labels": [-100, -100, 3, 4, 5, 6, 7, 8, 9]})
    assert row["input_ids"] == [1, 2, 3, 4, 5, 6, 3, 4, 5]
    assert row["labels"] == [-100, -100, 3, 4, 5, 6, 3, 4, 5]


def test_the_first_token_of_a_document_is_no_part_of_its_loop():
    row = looped({"input_ids": [0, 1, 2, 3, 4, 5, 6], "labels": [0, 1, 2, 3, 4, 5, 6]})
    assert row["input_ids"] == [0, 1, 2, 3, 4, 1, 2]


def test_each_document_of_a_packed_row_has_its_own_loop():
    tokens = [0, 1, 2, 3, 4, 5, 0, 6, 7, 8, 9, 10, 11]
    row = looped({"input_ids": tokens, "labels": tokens, "seq_lengths": [6, 7]})
    assert row["input_ids"] == [0, 1, 2, 3, 4, 1, 0, 6, 7, 8, 9, 6, 7]


def test_a_short_completion_stays_as_it_is():
    row = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
    assert looped(row) == row


# ---- What is proposed ----


def test_tau_is_exceeded_by_the_chosen_share_of_the_data():
    calibration = by_aggregate(list(range(100)), [50.0, 95.0, 200.0, 300.0], open_share=0.05)
    assert calibration.tau_nats == dict.fromkeys(AGGREGATES, 94.0)
    assert calibration.normal_share("mean") == 0.05
    assert calibration.caught_share("mean") == 0.75
    assert calibration.separation("mean") == pytest.approx(147.5 / 49.5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.2, 0.5, 1.0, 4.0]), min_size=1, max_size=40), st.floats(0.001, 0.999))
def test_tau_is_the_smallest_divergence_that_at_most_the_share_exceeds(values, open_share):
    tau = by_aggregate(values, values, open_share).tau_nats["max"]
    exceeding = sum(value > tau for value in values)
    assert exceeding <= open_share * len(values)
    smaller = [value for value in values if value < tau]
    assert not smaller or sum(value > max(smaller) for value in values) > math.floor(open_share * len(values))


def test_an_aggregate_that_cannot_tell_loops_from_the_data_is_named():
    calibration = by_aggregate([1.0] * 9 + [2.0], [5.0, 6.0], p95=[0.5, 1.0, 1.0, 3.0])
    assert calibration.separates("mean")
    assert not calibration.separates("p95")
    table = calibration.to_markdown()
    assert "p95 cannot tell token loops from the data here" in table
    assert "| mean | 1 | 5.5 | 10.0% | 100.0% | yes |" in table
    assert "| p95 | 1 | 1 | 10.0% | 25.0% | **no** |" in table
    assert "| max | loops | 2 | 5 | 6 | 6 | 6 |" in table
    assert "cannot tell" not in by_aggregate([1.0] * 9 + [2.0], [5.0, 6.0]).to_markdown()


# ---- The real runs ----


def test_the_proposed_tau_opens_the_gate_for_the_share_in_a_training_that_the_barrier_does_not_move(
    calibrate, make_trainer
):
    calibration = calibrate(open_share=0.25)
    assert len(calibration.normal["mean"]) == len(calibration.loop["mean"]) == 24
    for how in AGGREGATES:
        trainer = make_trainer(
            aggregate=how,
            tau_nats=calibration.tau_nats[how],
            barrier_weight=1e-12,
            max_steps=6,
            per_device_train_batch_size=4,
            learning_rate=3e-3,
        )
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "kl/gate_open" in entry]
        assert np.mean([entry["kl/gate_open"] for entry in logs]) == pytest.approx(0.25, abs=1.01 / 24)
        mean = np.mean([entry["kl/divergence"] for entry in logs])
        assert calibration.normal[how].mean() == pytest.approx(mean, rel=1e-3)


def test_the_model_is_left_as_it_was(calibrate):
    model = lively_lm(1)
    model.eval()
    before, forward, flags = fingerprint(model), model.forward, [weight.requires_grad for weight in model.parameters()]
    calibrate(model, max_steps=2)
    assert fingerprint(model) == before
    assert model.forward == forward
    assert not model.training
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_fresh_adapter_is_made_on_the_copy(calibrate):
    model = lively_lm(1)
    names = [name for name, _ in model.named_parameters()]
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    calibration = calibrate(model, peft_config=config, max_steps=3, learning_rate=3e-2)
    assert [name for name, _ in model.named_parameters()] == names
    assert config.r == 4
    assert all(tau > 0 for tau in calibration.tau_nats.values())


def test_an_adapter_that_was_trained_in_an_earlier_trainer_is_calibrated_with_its_own_weights(calibrate, make_trainer):
    policy = get_peft_model(lively_lm(1), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    make_trainer(model=policy, ref="base", max_steps=1).train()
    before = fingerprint(policy)
    calibration = calibrate(policy, ref="adapter", max_steps=3, learning_rate=3e-2)
    assert fingerprint(policy) == before
    assert calibration.normal["max"].min() == 0  # the reference is the adapter as it is now


def test_loops_move_a_trained_model_further_than_text_of_its_own_kind(calibrate, data_dir):
    folder = data_dir / "models" / "stories260K"
    stories = json.loads((data_dir / "tinystories_1000" / "tinystories_1000.json").read_text(encoding="utf-8"))
    texts = [story if isinstance(story, str) else story["text"] for story in stories[:32]]
    calibration = calibrate(
        AutoModelForCausalLM.from_pretrained(folder),
        processing_class=AutoTokenizer.from_pretrained(folder),
        dataset=Dataset.from_list([{"text": text} for text in texts]),
        max_length=64,
        max_steps=8,
        learning_rate=1e-3,
    )
    assert calibration.separation("mean") > 3
    assert all(calibration.separates(how) for how in AGGREGATES)


def test_a_divergence_spans_what_the_scope_says(calibrate):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 2}
    largest = calibrate(**settings).normal["max"].max()
    for scope, n in (("micro_batch", 4), ("rank_global", 4), ("step", 2)):
        calibration = calibrate(aggregate_scope=scope, **settings)
        assert calibration.aggregate_scope == scope
        assert {len(values) for values in calibration.normal.values()} == {n}
        assert calibration.normal["max"].max() == pytest.approx(largest, rel=1e-4)


def test_packed_rows_are_calibrated_by_document(calibrate, rows):
    texts = Dataset.from_list([{"text": row["prompt"] + row["completion"]} for row in rows])
    calibration = calibrate(
        dataset=texts,
        packing=True,
        max_length=128,
        per_device_train_batch_size=1,
        max_steps=3,
        dataset_text_field="text",
    )
    assert len(calibration.normal["mean"]) > 3


def test_a_gate_that_is_held_shut_on_purpose_is_not_warned_about(calibrate, caplog):
    calibrate(max_steps=101, per_device_train_batch_size=1)
    assert "the gate was open" not in caplog.text


def test_settings_of_the_barrier_do_not_matter(calibrate):
    plain = calibrate(max_steps=2)
    other = calibrate(max_steps=2, barrier_weight=0.0, tau_nats=7.0, aggregate="max", pressure_steps=1)
    scheduled = calibrate(max_steps=2, target_kl=0.3)
    assert plain.tau_nats == other.tau_nats == scheduled.tau_nats


# ---- Bad input ----


@pytest.mark.parametrize("open_share", [0.0, 1.0, -0.1, math.nan])
def test_a_share_that_is_none_is_refused(calibrate, open_share):
    with pytest.raises(ValueError, match=f"open_share is {open_share}"):
        calibrate(open_share=open_share)


def test_a_policy_that_does_not_move_is_refused(calibrate):
    with pytest.raises(ValueError, match=r"mean, rmse, p95, max, cvar95 are above 0: the policy hardly moved.*0\.0"):
        calibrate(max_steps=2, learning_rate=0.0)


def test_rows_that_are_no_tokens_are_refused():
    with pytest.raises(ValueError, match=r"needs a dataset of text.*\['images', 'messages'\]"):
        looped({"messages": [], "images": []})
