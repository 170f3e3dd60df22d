"""Metrics as sums and counts: divided once, forgotten when read."""

import math

import pytest
import torch
from accelerate import Accelerator

from alignkit.metrics import MetricSums


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_a_mean_is_all_sums_over_all_counts_not_a_mean_of_means(accelerator):
    sums = MetricSums()
    sums.add_mean("accuracy", numbers(3.0), numbers(4.0))
    sums.add_mean("accuracy", numbers(0.0), numbers(1.0))  # a short last batch
    assert sums.pop(accelerator) == {"accuracy": [3 / 5]}


def test_each_entry_of_a_vector_has_its_own_count(accelerator):
    sums = MetricSums()
    sums.add_mean("head/accuracy", numbers(1.0, 0.0), numbers(2.0, 0.0))
    sums.add_mean("head/accuracy", numbers(1.0, 3.0), numbers(2.0, 4.0))
    assert sums.pop(accelerator) == {"head/accuracy": [0.5, 0.75]}


def test_one_count_may_serve_a_whole_vector(accelerator):
    sums = MetricSums()
    sums.add_mean("x", numbers(1.0, 2.0), numbers(4.0))
    assert sums.pop(accelerator) == {"x": [0.25, 0.5]}


def test_a_mean_over_nothing_is_nan_and_not_zero(accelerator):
    sums = MetricSums()
    sums.add_mean("x", numbers(0.0, 1.0), numbers(0.0, 1.0))
    nothing, one = sums.pop(accelerator)["x"]
    assert math.isnan(nothing)
    assert one == 1.0


def test_a_nan_is_never_hidden_by_later_numbers(accelerator):
    sums = MetricSums()
    sums.add_mean("x", numbers(math.nan), numbers(1.0))
    sums.add_mean("x", numbers(1.0), numbers(1.0))
    sums.add_extremes("y", numbers(math.nan), numbers(math.nan))
    sums.add_extremes("y", numbers(0.0), numbers(1.0))
    metrics = sums.pop(accelerator)
    assert all(math.isnan(metrics[name][0]) for name in ("x", "min_y", "max_y"))


def test_a_total_stays_a_sum(accelerator):
    sums = MetricSums()
    sums.add_total("num_tokens", torch.tensor([7]))
    sums.add_total("num_tokens", torch.tensor([5]))
    assert sums.pop(accelerator) == {"num_tokens": [12.0]}


def test_extremes_are_those_of_all_batches_not_their_means(accelerator):
    sums = MetricSums()
    sums.add_extremes("reward", numbers(-1.0, math.inf), numbers(2.0, -math.inf))  # the second entry saw nothing
    sums.add_extremes("reward", numbers(-3.0, 1.0), numbers(1.0, 1.5))
    assert sums.pop(accelerator) == {"min_reward": [-3.0, 1.0], "max_reward": [2.0, 1.5]}


def test_reading_starts_anew(accelerator):
    sums = MetricSums()
    sums.add_mean("x", numbers(9.0), numbers(1.0))
    sums.add_extremes("y", numbers(-9.0), numbers(9.0))
    sums.pop(accelerator)
    assert sums.pop(accelerator) == {}
    sums.add_mean("x", numbers(1.0), numbers(1.0))
    assert sums.pop(accelerator) == {"x": [1.0]}


def test_any_mixture_comes_back_under_its_own_names(accelerator):
    sums = MetricSums()
    sums.add_total("tokens", numbers(3.0))
    sums.add_mean("a", numbers(1.0, 2.0, 3.0), numbers(1.0))
    sums.add_extremes("low_high", numbers(0.0), numbers(1.0))
    sums.add_mean("b", numbers(5.0), numbers(2.0))
    assert sums.pop(accelerator) == {
        "tokens": [3.0],
        "a": [1.0, 2.0, 3.0],
        "b": [2.5],
        "min_low_high": [0.0],
        "max_low_high": [1.0],
    }


def test_small_numbers_added_to_a_large_sum_are_not_lost_to_rounding(accelerator):
    sums = MetricSums()
    sums.add_mean("x", numbers(2.0**24), numbers(1.0))
    for _ in range(4):  # in float32, 2**24 + 1 is 2**24
        sums.add_mean("x", numbers(1.0), numbers(0.0))
    assert sums.pop(accelerator) == {"x": [2.0**24 + 4]}


def test_what_is_added_keeps_no_graph(accelerator):
    sums = MetricSums()
    score = torch.ones(1, requires_grad=True)
    sums.add_mean("x", score * 2, numbers(1.0))
    sums.add_extremes("y", score, score)
    assert not any(tensor.requires_grad for tensor in (*sums._sums.values(), *sums._lows.values()))
