"""Settings and plans: keys that are known, values that fit, ids that follow from them, sums that keep their parts."""

import json
import math
from dataclasses import asdict, dataclass, field, fields

import numpy as np
import pytest
from hypothesis import strategies as st

from alignkit.evaluation.settings import canonical, differing
from alignkit.experiments.history import MOST_ROWS, final_training_loss, trimmed
from alignkit.experiments.settings import grid_points, identity, lora_fields
from alignkit.plan.request import PlanRequest
from alignkit.plan.sharding import SHARDED, shard
from alignkit.plan.sizes import state_bytes
from alignkit.plan.suggestion import _micro_batches
from alignkit.spec_files import check_known, fitted, known_mapping
from alignkit.stages.artefacts import fingerprint
from tests.properties.given import given
from tests.properties.strategies import ORDERS, TEXTS, WORDS, plain_values, shuffled

JSON_VALUES = plain_values().map(lambda values: json.loads(json.dumps(values).replace("Infinity", "1")))


@given(st.sets(WORDS, min_size=1, max_size=5), WORDS)
def test_an_unknown_key_is_refused_with_a_known_one(known, key):
    if key in known:
        check_known(key, key, known)
        assert known_mapping({key: 1}, "x", known) == {key: 1}
        return
    with pytest.raises(ValueError) as caught:
        known_mapping({key: 1}, "x", known)
    assert repr(key) in str(caught.value) or key in str(caught.value)
    assert any(repr(name) in str(caught.value) for name in known)


@dataclass
class Fields:
    """Of every kind that a specification has."""

    number: float = 1.0
    whole: int = 1
    maybe: int | None = None
    text: str = ""
    flag: bool = False
    several: tuple[int, ...] = ()
    names: dict[str, float] = field(default_factory=dict)


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.lists(st.integers(), max_size=2)


@given(st.sampled_from([one.name for one in fields(Fields)]), ANYTHING)
def test_a_value_fits_a_field_or_is_refused_by_name_and_what_fits_has_its_type(name, value):
    try:
        found = fitted(Fields, {name: value}, "spec")[name]
    except ValueError as error:
        assert str(error).startswith(f"spec.{name} is ")
        return
    types = {"number": float, "whole": int, "text": str, "flag": bool, "several": tuple, "names": dict}
    assert found is None or isinstance(found, types.get(name, int))
    assert isinstance(found, bool) == (name == "flag")
    assert found == (tuple(value) if name == "several" else value) or found != found


@given(JSON_VALUES, JSON_VALUES, ORDERS)
def test_equal_settings_have_one_text_one_id_and_one_fingerprint_whatever_the_order_of_keys(values, others, order):
    moved = dict(shuffled(list(values.items()), order))
    assert canonical(moved) == canonical(values)
    assert identity(moved) == identity(values)
    assert fingerprint("sft", moved) == fingerprint("sft", values)
    assert differing(values, moved) == []
    is_same = json.dumps(values, sort_keys=True) == json.dumps(others, sort_keys=True)
    assert (identity(values) == identity(others)) == is_same


# ---- Histories, grids, plans ----


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0.1, 5)), min_size=1, max_size=12))
def test_the_final_loss_is_that_of_every_step_of_the_last_epoch_however_often_it_was_logged(rows):
    steps = np.cumsum([n for n, _ in rows])
    per_epoch = int(steps[-1])  # one epoch, so that all rows count
    log = [
        {"step": int(step), "epoch": step / per_epoch, "loss": loss}
        for step, (_, loss) in zip(steps, rows, strict=True)
    ]
    expected = sum(n * loss for n, loss in rows) / per_epoch
    assert final_training_loss(log) == pytest.approx(expected)
    assert final_training_loss([{"step": per_epoch, "epoch": 1.0, "loss": expected}]) == pytest.approx(expected)
    assert final_training_loss([*log, {"eval_loss": 9.0, "step": per_epoch}]) == pytest.approx(expected)


@given(st.integers(0, 700), st.integers(0, 5))
def test_a_trimmed_history_keeps_the_last_row_and_all_evaluations_in_their_order(n, n_evaluations):
    rows = [{"step": step, "loss": float(step), "other": 1} for step in range(n)]
    rows += [{"step": n + step, "eval_x_loss": 1.0} for step in range(n_evaluations)]
    kept = trimmed(rows)
    training = [row for row in kept if "loss" in row]
    assert len(training) <= MOST_ROWS + 1
    assert not n or training[-1]["step"] == n - 1
    assert [row["step"] for row in kept] == sorted(row["step"] for row in kept)
    assert sum("eval_x_loss" in row for row in kept) == n_evaluations
    assert all("other" not in row for row in kept)


@given(st.dictionaries(WORDS, st.lists(st.integers(), min_size=1, max_size=3, unique=True), min_size=1, max_size=3))
def test_a_grid_has_every_combination_once(grid):
    points = list(grid_points(grid))
    assert len(points) == math.prod(map(len, grid.values()))
    assert len({tuple(point.items()) for point in points}) == len(points)
    assert all(point[key] in values for point in points for key, values in grid.items())


@given(st.dictionaries(st.sampled_from(["r", "lora_alpha", "bias", "lora_bias", "target_modules"]), st.integers()))
def test_fields_of_a_lora_keep_apart_in_a_record(lora):
    named = lora_fields(lora)
    assert len(named) == len(lora)
    assert all(name.startswith("lora_") for name in named)
    assert list(named.values()) == list(lora.values())


PARTS = st.fixed_dictionaries(
    {name: st.integers(0, 10**6) for name in ("weights", "adapter", "gradients", "optimizer", "activations")}
)


@given(PARTS, st.integers(2, 64), st.sampled_from(list(SHARDED)))
def test_a_device_never_holds_more_of_a_sharded_part_than_the_whole_nor_less_than_its_share(parts, n, sharding):
    sizes = {"gradient_bytes": parts["gradients"], "largest_layer_bytes": 1000}
    shares = shard(parts, sharding, n, **sizes)
    for name, size in parts.items():
        assert shares[name] * n >= size
        assert shares[name] <= size or (sharding == "ddp" and name == "gradients")
    assert shares["activations"] == parts["activations"]
    assert shard(parts, sharding, 1, **sizes) == parts
    if sharding != "ddp":
        fewer = shard(parts, sharding, 2 * n, **sizes)
        assert all(fewer[name] <= shares[name] for name in parts)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=4), st.sampled_from([2, 4]))
def test_states_of_optimisers_add_up_over_tensors_and_eight_bits_need_less_than_thirty_two(trained, n_bytes):
    for optimizer in ("sgd", "adamw_torch", "paged_adamw_32bit", "adamw_8bit"):
        whole = state_bytes(optimizer, trained, n_bytes)
        assert whole == sum(state_bytes(optimizer, [n], n_bytes) for n in trained)
    assert state_bytes("adamw_8bit", trained, n_bytes) <= state_bytes("paged_adamw_32bit", trained, n_bytes)


@given(st.integers(1, 64), st.integers(1, 4))
def test_smaller_micro_batches_keep_the_rows_of_a_step(batch, accumulation):
    request = PlanRequest("dpo", batch_size=batch, gradient_accumulation_steps=accumulation)
    found = _micro_batches(request)
    assert found[0] == request
    assert {one.batch_size * one.gradient_accumulation_steps for one in found} == {batch * accumulation}
    assert [one.batch_size for one in found] == sorted({one.batch_size for one in found}, reverse=True)
    assert found[-1].batch_size == 1
    assert all(
        {**asdict(one), "batch_size": 0, "gradient_accumulation_steps": 0}
        == {**asdict(request), "batch_size": 0, "gradient_accumulation_steps": 0}
        for one in found
    )
