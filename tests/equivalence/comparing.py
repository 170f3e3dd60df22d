"""When two records of a training count as equal."""

import pytest
import torch

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
