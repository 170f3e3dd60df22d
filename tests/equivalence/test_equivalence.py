"""An optimiser step is the same however it is computed: micro-batches, recomputed activations, shared prefixes.

Four steps of eight rows of unequal length each, the barrier open for some of them, gradients clipped.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.equivalence.comparing import assert_equal
from tests.equivalence.trainings import GLOBAL_BATCH, Record, train

# A size of micro-batch, and so many of them.
SPLITS = {f"{size}x{GLOBAL_BATCH // size}": {"batch_size": size} for size in (4, 2, 1)}
SHORT = {"max_steps": 2}
ONE_BY_ONE = {"1x8": SPLITS["1x8"]}
RECOMPUTED: dict[str, dict[str, Any]] = {"recomputed_2x4": {"activation_checkpointing": True, "batch_size": 2}}
NOT_SHARED: dict[str, dict[str, Any]] = {"not_shared_2x4": {"share_prefix": False, "batch_size": 2}}
ENCODED: dict[str, dict[str, Any]] = {f"encoded_{size}": {"encode_batch_size": size} for size in (1, 5, 64)}
ENCODED["encoded_3_recomputed"] = {"encode_batch_size": 3, "activation_checkpointing": True}
# Thresholds between the divergences of the sequences, respectively below that of the step.
TAUS = {"mean": 2.55, "rmse": 2.65, "p95": 3.05, "max": 3.3, "cvar95": 3.2}
BARRIERS: dict[str, dict[str, Any]] = {
    f"barrier_{how}_{scope}": {
        "aggregate": how,
        "aggregate_scope": scope,
        "tau_nats": tau * (0.5 if scope == "step" else 1),
        **SHORT,
    }
    for how, tau in TAUS.items()
    for scope in ("sequence", "step")
}
# The method, its settings, and the ways that change nothing.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "reward": ("reward", {}, {**SPLITS, **RECOMPUTED, **NOT_SHARED, **ENCODED}),
    "reward_squared_log_square": (
        "reward",
        {"regularizer": "squared_log_square", "learning_rate": 1e-5, **SHORT},  # steep near a score of 0
        ONE_BY_ONE,
    ),
    "reward_centred": ("reward", {"regularizer": None, "center_rewards_coefficient": 0.1, **SHORT}, ONE_BY_ONE),
    "dpo": ("dpo", {}, {**SPLITS, **RECOMPUTED, **NOT_SHARED}),
    "es": ("es", {}, {**SPLITS, "chunks_of_3": {"population_chunk_size": 3}}),
    "barrier": ("barrier", {}, {**SPLITS, **RECOMPUTED}),
    **{name: ("barrier", settings, ONE_BY_ONE) for name, settings in BARRIERS.items()},
}


@pytest.fixture(scope="module")
def at_once(tmp_path_factory) -> Callable[[str], tuple[Record, Path]]:
    """A case's training with every step in one micro-batch, nothing recomputed, prefixes shared; and its folder."""

    @functools.cache
    def of(case: str) -> tuple[Record, Path]:
        method, settings, _ = CASES[case]
        folder = tmp_path_factory.mktemp(case)
        return train(method, folder, **settings), folder

    return of


@pytest.mark.parametrize(("case", "way"), [(case, way) for case, (_, _, ways) in CASES.items() for way in ways])
def test_a_step_is_the_same_however_it_is_computed(tmp_path, at_once, case, way):
    method, settings, ways = CASES[case]
    expected, folder = at_once(case)
    found = train(method, tmp_path, **settings, **ways[way])
    assert_equal(found, expected)
    if method == "es":  # to the bit
        assert all((found.weights[name] == weight).all() for name, weight in expected.weights.items())
        assert (tmp_path / "results.jsonl").read_bytes() == (folder / "results.jsonl").read_bytes()


@pytest.mark.parametrize("method", ["reward", "barrier", "dpo"])
def test_bfloat16_on_a_cpu_has_the_losses_of_float32_but_for_rounding(tmp_path, at_once, method):
    expected, _ = at_once(method)
    found = train(method, tmp_path, bf16=True)
    assert found.log != expected.log  # else it was no bfloat16
    losses = [[entry["loss"] for entry in record.log] for record in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_es_moves_an_adapter_of_a_model_in_bfloat16(tmp_path):
    settings = {"by_name": True, "model_init_kwargs": {"dtype": "bfloat16"}}
    still, moved = (train("es", tmp_path / str(rate), **settings, learning_rate=rate) for rate in (0.0, 0.01))
    assert all(weight.isfinite().all() for weight in moved.weights.values())
    assert any((still.weights[name] != weight).any() for name, weight in moved.weights.items())


@pytest.mark.parametrize("case", ["barrier", *BARRIERS])
def test_the_barrier_of_these_trainings_is_open_for_some_of_their_sequences(at_once, case):
    gates = [entry["kl/gate_open"] for entry in at_once(case)[0].log]
    assert 1 in gates if case.endswith("step") else any(0 < gate < 1 for gate in gates)
