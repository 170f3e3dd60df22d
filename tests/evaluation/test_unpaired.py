"""Means and counts alone."""

import math

import numpy as np
import pytest
from scipy import stats

from alignkit.evaluation.statistics import SeedSpread
from alignkit.evaluation.unpaired import Summary, UnpairedComparison, unpaired_comparison, widen_by_seeds


def test_two_proportions_of_1668_questions() -> None:
    found = unpaired_comparison(Summary(0.435, 1668), Summary(0.489, 1668))
    assert found.mean_difference == pytest.approx(0.054)
    assert found.interval == pytest.approx((0.020, 0.088), abs=5e-4)
    assert found.p == pytest.approx(0.0018, abs=2e-4)


def test_proportions_at_their_ends_keep_an_interval() -> None:
    found = unpaired_comparison(Summary(0, 25), Summary(0, 25))
    # Wilson: 0 of 25 reaches up to 0.1332.
    assert found.interval == pytest.approx((-0.1332, 0.1332), abs=1e-4)
    assert found.p == 1
    assert unpaired_comparison(Summary(1, 25), Summary(1, 25)).interval == pytest.approx(found.interval)


def test_one_standard_deviation_alone_is_not_used() -> None:
    after = Summary(0.6, 40)
    assert unpaired_comparison(Summary(0.5, 50, 0.1), after) == unpaired_comparison(Summary(0.5, 50), after)


def test_newcombes_own_example() -> None:
    # Newcombe 1998, table II: 56/70 − 48/80, method 10: 0.0524 to 0.3339.
    found = unpaired_comparison(Summary(48 / 80, 80), Summary(56 / 70, 70))
    assert found.interval == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_welch_is_that_of_scipy_on_the_raw_scores() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=30), generator.normal(0.5, 2, size=12)
    before, after = (Summary(float(x.mean()), len(x), float(x.std(ddof=1))) for x in (a, b))
    found = unpaired_comparison(before, after)
    theirs = stats.ttest_ind(b, a, equal_var=False)
    assert found.mean_difference == pytest.approx(b.mean() - a.mean())
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.interval == pytest.approx(tuple(theirs.confidence_interval()))


def test_a_mean_without_a_standard_deviation_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match=r"a mean of 1\.48 is no proportion; its interval needs"):
        unpaired_comparison(Summary(1.48, 50), Summary(1.86, 50))


def test_welch_without_variance_or_items_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^both standard deviations are 0"):
        unpaired_comparison(Summary(1, 5, 0.0), Summary(2, 5, 0.0))
    with pytest.raises(ValueError, match="at least two items"):
        unpaired_comparison(Summary(1, 1, 1.0), Summary(2, 5, 1.0))
    with pytest.raises(ValueError, match="no proportion"):
        unpaired_comparison(Summary(math.nan, 5), Summary(0.5, 5))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_p_with_seeds_is_one_in_twenty_where_the_interval_ends_at_zero(sign):
    narrow, wide = sorted((sign * 0.04, sign * 0.3))
    reach, n_seeds, freedom = 0.08, 4, 6  # √(0.06² + 0.08²) = 0.1
    spread = SeedSpread(reach * math.sqrt(n_seeds) / float(stats.t.ppf(0.975, freedom)), freedom)
    found = widen_by_seeds(UnpairedComparison(sign * 0.1, (narrow, wide), 1e-6), spread, n_seeds)
    assert min(map(abs, found.interval)) == pytest.approx(0, abs=1e-12)
    assert found.p == pytest.approx(0.05)
    assert found.mean_difference == sign * 0.1
