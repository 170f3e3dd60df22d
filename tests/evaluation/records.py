"""Results to test with: short to write, all fields there."""

from typing import Any

from alignkit.evaluation.results import Result

ORIGIN: dict[str, Any] = {"commit": "c0ffee", "versions": {"torch": "2.13.0"}, "device": "cpu, x86_64"}


def result(run: str = "beta0.02", **changes: Any) -> Result:
    """A result of three items, two of them right, with `changes`."""
    values: dict[str, Any] = {
        "item_set": "tatqa_dev",
        "metric": "exact_match",
        "role": "task",
        "higher_is_better": True,
        "unit": "proportion",
        "seed": 0,
        "decoding": {"do_sample": False},
        "wall_time_s": 60.0,
        **ORIGIN,
    }
    if "mean" not in changes:
        values["items"] = {"a": 1.0, "b": 1.0, "c": 0.0}
    return Result(run=run, **{**values, **changes})


def baseline(seed: int = 0, **changes: Any) -> Result:
    """A result of the start model."""
    return result(f"baseline-seed{seed}", **{"kind": "baseline", "seed": seed, **changes})


def answers(right: int, n: int = 200) -> dict[str, float]:
    """Scores of n questions, the first `right` of them right."""
    return {f"q{number}": float(number < right) for number in range(n)}


def nll(run: str = "beta0.02", *, shift: float = 0.0, **changes: Any) -> Result:
    """A result on general text: 40 texts, NLL about 1.5 nats, each moved by about `shift`."""
    items = {f"t{number}": 1.5 + 0.01 * number + shift * (1 + 0.1 * (number % 3)) for number in range(40)}
    what: dict[str, Any] = {"item_set": "general_nll", "metric": "nll", "role": "general", "unit": "nats"}
    return result(run, **{**what, "higher_is_better": False, "decoding": {}, "items": items, **changes})


def general_baseline(**changes: Any) -> Result:
    """The NLL of the start model."""
    return nll("baseline-seed0", kind="baseline", **changes)
