"""What a comparison could have found, against values worked out by hand and against simulated experiments."""

import math

import numpy as np
import pytest
from scipy import stats

from alignkit.evaluation.power import (
    combined_freedom,
    detectable_difference,
    pairs_needed,
    power_of,
    smallest_detectable,
)


def test_half_a_standard_deviation_takes_34_pairs() -> None:
    # The textbook value (Cohen 1988, d = 0.5, two-sided 0.05, 80 %, one sample).
    assert pairs_needed(0.5, 1.0) == pairs_needed(-5.0, 10.0) == 34
    assert power_of(0.5, 1.0, 33) < 0.8 <= power_of(0.5, 1.0, 34)
    assert type(pairs_needed(0.5, 1.0)) is int


def test_many_pairs_detect_the_sum_of_two_normal_quantiles() -> None:
    quantiles = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert detectable_difference(0.5, 10_000) == pytest.approx(quantiles * 0.5 / 100, rel=1e-3)
    assert quantiles == pytest.approx(2.80, abs=0.002)


def test_few_pairs_detect_only_what_is_large() -> None:
    # Three seeds need 3.3 standard deviations, five 1.7.
    assert detectable_difference(1.0, 3) == pytest.approx(3.26, abs=0.01)
    assert detectable_difference(1.0, 5) == pytest.approx(1.68, abs=0.01)


def test_no_difference_is_found_as_often_as_the_level_says() -> None:
    assert power_of(0.0, 1.0, 20) == pytest.approx(0.05)
    assert power_of(0.0, 1.0, 20, level=0.01) == pytest.approx(0.01)


def test_a_stricter_level_takes_more_pairs_and_a_larger_difference():
    n = pairs_needed(0.6, 1.0, level=0.01)
    assert n > 32 > pairs_needed(0.6, 1.0)
    assert power_of(0.6, 1.0, n - 1, level=0.01) < 0.8 <= power_of(0.6, 1.0, n, level=0.01)
    assert power_of(detectable_difference(1.0, 20, level=0.01), 1.0, 20, level=0.01) == pytest.approx(0.8)


def test_a_power_that_is_barely_above_the_level_takes_a_difference_near_0():
    assert power_of(detectable_difference(1.0, 100, power=0.06), 1.0, 100) == pytest.approx(0.06)


def test_a_large_difference_is_always_found() -> None:
    assert power_of(50.0, 1.0, 100) == 1.0
    assert pairs_needed(100.0, 1.0) == 2


def test_the_number_and_the_difference_are_each_others_inverse() -> None:
    for n in (2, 3, 10, 200, 1668):
        assert pairs_needed(detectable_difference(0.4, n) * (1 + 1e-9), 0.4) == n


def test_a_difference_may_need_up_to_a_billion_pairs() -> None:
    quantiles = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
    assert pairs_needed(1e-4, 1.0) == pytest.approx((quantiles / 1e-4) ** 2, rel=1e-4)  # 785 million
    with pytest.raises(ValueError, match="needs more than 1000000000 pairs"):
        pairs_needed(8.8e-5, 1.0)  # 1,014 million


def test_80_of_100_experiments_find_the_detectable_difference() -> None:
    generator = np.random.default_rng(0)
    difference = detectable_difference(0.7, 50)
    samples = generator.normal(difference, 0.7, size=(2000, 50))
    found = stats.ttest_1samp(samples, 0.0, axis=1).pvalue <= 0.05
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_errors_of_items_and_seeds_add_as_squares() -> None:
    # Equal variances with 10 and 10 degrees of freedom have 20 together.
    assert combined_freedom([1.0, 1.0], [10, 10]) == pytest.approx(20)
    assert combined_freedom([1.0, 0.0], [10, 0]) == pytest.approx(10)
    # (1 + 3)² / (1 / 4 + 9 / 9)
    assert combined_freedom([1.0, 3.0], [4, 9]) == pytest.approx(12.8)
    one = smallest_detectable(math.hypot(0.3, 0.4), 20)
    assert one == pytest.approx(0.5 * smallest_detectable(1.0, 20))
    assert detectable_difference(2.0, 16) == pytest.approx(smallest_detectable(0.5, 15))


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: detectable_difference(0.0, 10), "std=0.0 must be a finite number above 0"),
        (lambda: detectable_difference(1.0, 1), "n=1 pairs have no spread"),
        (lambda: detectable_difference(1.0, 9, power=0.05), "power=0.05 must lie between level=0.05 and 1"),
        (lambda: detectable_difference(1.0, 9, power=1.0), "power=1.0 must lie between level=0.05 and 1"),
        (lambda: power_of(1.0, 1.0, 1), "n=1 pairs have no spread"),
        (lambda: power_of(1.0, 1.0, 9, level=0.0), "level=0.0 must lie between 0 and 1"),
        (lambda: power_of(1.0, 1.0, 9, level=1.0), "level=1.0 must lie between 0 and 1"),
        (lambda: pairs_needed(0.0, 1.0), "difference=0.0 cannot be looked for"),
        (lambda: pairs_needed(1e-9, 1.0), "needs more than 1000000000 pairs; give a larger one"),
        (lambda: combined_freedom([0.0], [3]), "have no sum above 0"),
        (lambda: combined_freedom([1.0, 2.0], [3]), "is shorter"),
    ],
)
def test_what_cannot_be_computed_is_an_error(call, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        call()
