"""Schedules: exact ends, middles, monotony, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.schedules import SCHEDULES, value_at

NUMBERS = st.floats(-1e6, 1e6)


@given(start=NUMBERS, end=NUMBERS)
def test_linear_and_cosine_begin_and_end_exactly_where_they_are_told(start, end):
    for kind in ("linear", "cosine"):
        assert value_at(kind, start, end, 0.0) == start
        assert value_at(kind, start, end, 1.0) == end


@pytest.mark.parametrize(
    ("kind", "progress", "expected"),
    [
        ("constant", 0.7, 2.0),
        ("linear", 0.25, 1.5),
        ("linear", 0.5, 1.0),
        ("cosine", 0.25, 2 - 2 * (1 - math.sqrt(0.5)) / 2),
        ("cosine", 0.5, 1.0),
        ("warmup", 0.0, 0.0),
        ("warmup", 0.025, 0.5),
        ("warmup", 0.1, 2.0),
        ("warmup", 1.0, 2.0),
    ],
)
def test_values_from_two_to_zero(kind, progress, expected):
    assert value_at(kind, 2.0, 0.0, progress) == pytest.approx(expected, abs=1e-15)


def test_rounding_carries_no_value_beyond_the_ends():
    assert value_at("cosine", 49.0, 49.0, 0.018261380578337597) == 49.0
    assert value_at("linear", 0.27989272176836116, 0.27989272176836116, 0.27989272176836116) == 0.27989272176836116


def test_the_share_of_the_warm_up_can_be_set_and_may_be_nothing_or_everything():
    assert value_at("warmup", 4.0, 0.0, 0.25, warmup_share=0.5) == 2.0
    assert value_at("warmup", 4.0, 0.0, 0.0, warmup_share=0.0) == 4.0
    assert value_at("warmup", 4.0, 0.0, 0.5, warmup_share=1.0) == 2.0


@given(st.floats(0, 1), st.floats(0, 1))
def test_linear_cosine_and_warmup_never_turn_back(first, second):
    low, high = sorted((first, second))
    for kind in ("linear", "cosine", "warmup"):
        assert value_at(kind, 3.0, 8.0, low) <= value_at(kind, 3.0, 8.0, high) + 1e-12


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("progress", [-0.01, 1.01, math.nan])
def test_progress_outside_the_training_is_refused(kind, progress):
    with pytest.raises(ValueError, match=f"progress is {progress}"):
        value_at(kind, 1.0, 0.0, progress)


def test_an_unknown_schedule_is_refused_with_the_ones_there_are():
    with pytest.raises(ValueError, match=r"'step'.*'constant', 'linear', 'cosine', 'warmup'"):
        value_at("step", 1.0, 0.0, 0.5)


@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan])
def test_a_warm_up_longer_than_the_training_is_refused(share):
    with pytest.raises(ValueError, match=f"warmup_share is {share}"):
        value_at("warmup", 1.0, 0.0, 0.5, warmup_share=share)
