"""When two records of a training count as equal."""

from pathlib import Path

import pytest
import torch

from tests.equivalence.runs import name_in_file, saved_weights
from tests.equivalence.trainings import Record

TOLERANCE = 1e-5


def assert_equal(found: Record, expected: Record) -> None:
    """Losses, gradient norms and other logged values to 1e-5 of their size, weights to 1e-5, on average to 1e-6."""
    for ours, theirs in zip(found.log, expected.log, strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE) and "grad_norm" in ours
    assert found.metrics == pytest.approx(expected.metrics, rel=TOLERANCE, abs=TOLERANCE)
    assert found.weights.keys() == expected.weights.keys() and expected.weights
    for name, weight in expected.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=TOLERANCE, msg=name)
        assert (found.weights[name] - weight).abs().mean() <= TOLERANCE / 10, name


def assert_saved(checkpoint: Path, record: Record) -> None:
    """The checkpoint of the last step holds the trained weights, whole, and its manifest."""
    assert (checkpoint / "manifest.json").is_file()
    saved = saved_weights(checkpoint)
    for name, weight in record.weights.items():
        torch.testing.assert_close(saved[name_in_file(name)], weight, rtol=0, atol=0, msg=name)
