"""Metrics as sums and counts: divided once, forgotten when read; vectors of several ranks, put together."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from alignkit.metrics import MetricSums, count_real_rows, gather_around, gather_ragged


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def on_ranks(n_ranks: int, call: Any) -> list[Any]:
    """What `call(rank, accelerator)` returns on each of the ranks, which are threads that wait for one another."""
    everyone, given = threading.Barrier(n_ranks, timeout=10), [torch.empty(0)] * n_ranks

    def on_rank(rank: int) -> Any:
        def gather(values: torch.Tensor) -> torch.Tensor:
            given[rank] = values
            everyone.wait()
            together = torch.cat(given)
            everyone.wait()
            return together

        try:
            return call(rank, SimpleNamespace(num_processes=n_ranks, process_index=rank, gather=gather))
        except BaseException:
            everyone.abort()
            raise

    with ThreadPoolExecutor(n_ranks) as ranks:
        return list(ranks.map(on_rank, range(n_ranks)))


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


# ---- Several ranks ----

OF_RANKS = [numbers(1.0, 2.0), numbers(), numbers(3.0, 4.0, 5.0)]


def test_vectors_of_unequal_length_are_put_together_in_the_order_of_ranks():
    for n_ranks, expected in ((2, [1.0, 2.0]), (3, [1.0, 2.0, 3.0, 4.0, 5.0])):
        found = on_ranks(n_ranks, lambda rank, accelerator: gather_ragged(accelerator, OF_RANKS[rank]).tolist())
        assert found == [expected] * n_ranks


def test_each_rank_sees_what_stands_before_and_behind_its_own():
    def around(rank: int, accelerator: Any) -> list[list[float]]:
        return [part.tolist() for part in gather_around(accelerator, OF_RANKS[rank])]

    assert on_ranks(2, around) == [[[], []], [[1.0, 2.0], []]]
    assert on_ranks(3, around) == [[[], [3.0, 4.0, 5.0]], [[1.0, 2.0], [3.0, 4.0, 5.0]], [[1.0, 2.0], []]]


def test_a_rank_alone_has_itself_and_nothing_around(accelerator):
    assert gather_ragged(accelerator, numbers(1.0, 2.0)).tolist() == [1.0, 2.0]
    assert [part.tolist() for part in gather_around(accelerator, numbers(1.0, 2.0))] == [[], []]


@pytest.mark.parametrize(
    ("n_ranks", "at_the_end", "remainder", "expected"),
    [
        (3, True, 5, [4, 1, 0]),  # 5 rows are left for three batches of 4
        (3, True, 1, [1, 0, 0]),
        (2, True, 5, [4, 1]),
        (3, True, 0, [4, 4, 4]),  # it divides evenly
        (3, True, -1, [4, 4, 4]),  # of unknown length
        (3, False, 5, [4, 4, 4]),
        (1, True, 3, [4]),  # nothing is filled up for one process
    ],
)
def test_rows_that_only_fill_the_last_batches_of_the_ranks_do_not_count(n_ranks, at_the_end, remainder, expected):
    state = SimpleNamespace(end_of_dataloader=at_the_end, remainder=remainder)
    ranks = [SimpleNamespace(num_processes=n_ranks, process_index=i, gradient_state=state) for i in range(n_ranks)]
    assert [count_real_rows(rank, 4) for rank in ranks] == expected


def test_sums_are_added_and_extremes_compared_over_ranks():
    def metrics_of(rank: int, accelerator: Any) -> dict[str, list[float]]:
        sums = MetricSums()
        sums.add_mean("x", numbers(float(rank)), numbers(1.0 + rank))
        sums.add_extremes("y", numbers(-float(rank)), numbers(float(rank)))
        return sums.pop(accelerator)

    assert on_ranks(3, metrics_of) == [{"x": [3 / 6], "min_y": [-2.0], "max_y": [2.0]}] * 3
