"""Statistics of pairs, against scipy, values worked out by hand, and simulated data whose truth is known."""

import math
import time
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from alignkit.evaluation.statistics import (
    SeedSpread,
    bootstrap_interval,
    cohens_d,
    compare_over_seeds,
    holm,
    mcnemar_test,
    noise_band,
    paired_comparison,
    paired_differences,
    seed_spread,
    sign_test,
    wilson_interval,
)


def test_a_paired_comparison_is_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=40), generator.normal(0.3, size=40)
    found = paired_comparison(a, b)
    expected = stats.ttest_rel(b, a)
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert found.mean_difference == pytest.approx((b - a).mean())
    assert found.cohens_d == pytest.approx((b - a).mean() / (b - a).std(ddof=1))
    assert found.n == 40
    theirs = stats.bootstrap((b - a,), np.mean, n_resamples=50_000, method="percentile", rng=1).confidence_interval
    assert found.interval == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_pairs_worked_out_by_hand() -> None:
    found = paired_comparison({"x": 0, "y": 0, "z": 1}, {"z": 1, "y": 1, "x": 2})
    # Differences 2, 1, 0: mean 1, standard deviation 1, t = 1 / (1 / √3).
    assert (found.mean_difference, found.cohens_d) == (1.0, 1.0)
    assert found.t == pytest.approx(math.sqrt(3))


def test_pairs_are_made_by_id_and_not_by_order() -> None:
    assert paired_differences({"x": 1, "y": 2}, {"y": 2, "x": 1}).tolist() == [0, 0]


def test_ids_of_one_side_only_are_an_error_that_names_some() -> None:
    with pytest.raises(ValueError, match=r"5 ids are only on the second side \('q0', 'q1', 'q2', …\)"):
        paired_comparison({"x": 1.0}, {"x": 1.0, **{f"q{number}": 1.0 for number in range(5)}})
    with pytest.raises(ValueError, match=r"1 ids are only on the first side \('x'\)"):
        paired_comparison({"x": 1.0, "y": 1.0}, {"y": 1.0, "z": 1.0})
    with pytest.raises(ValueError, match="3 scores cannot be paired with 2"):
        paired_comparison([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="one side has item ids"):
        paired_comparison({"x": 1.0}, [1.0])


def test_a_score_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"pair 1 is 2 and nan"):
        paired_comparison([1, 2], [1, math.nan])


def test_fewer_than_two_pairs_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least two items, not 1"):
        paired_comparison([1], [2])
    with pytest.raises(ValueError, match="at least two items, not 0"):
        paired_comparison([], [])


def test_equal_scores_are_no_difference_with_certainty() -> None:
    found = paired_comparison([1, 0, 1], [1, 0, 1])
    assert (found.mean_difference, found.interval, found.t, found.p, found.cohens_d) == (0, (0, 0), 0, 1, 0)


def test_one_shift_of_all_scores_has_no_t_and_the_p_of_the_sign_test() -> None:
    found = paired_comparison([0] * 5, [0.1] * 5)
    assert (found.t, found.cohens_d) == (None, None)
    assert found.interval == (0.1, 0.1)
    assert found.p == 2 * 0.5**5
    # Differences of 0.1, but for rounding.
    assert paired_comparison([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]).t is None


def test_the_bootstrap_covers_the_truth_in_95_percent_of_data_sets() -> None:
    generator = np.random.default_rng(0)
    truth, covered = 0.1, 0
    for number in range(400):
        # Right and wrong answers: differences of −1, 0 and 1.
        differences = generator.choice([-1.0, 0.0, 1.0], p=[0.15, 0.6, 0.25], size=100)
        low, high = bootstrap_interval(differences, n_resamples=500, seed=number)
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_a_seed_fixes_the_interval_and_another_moves_it() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_ten_thousand_resamples_of_1668_items_are_fast_and_small() -> None:
    values = np.random.default_rng(0).normal(size=1668)
    bootstrap_interval(values, n_resamples=100)
    start = time.process_time()
    bootstrap_interval(values, n_resamples=10_000)
    assert time.process_time() - start < 0.6
    tracemalloc.start()
    bootstrap_interval(values, n_resamples=10_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20  # all indices at once would take 64 MiB


def test_too_few_resamples_are_an_error() -> None:
    with pytest.raises(ValueError, match="n_resamples=10"):
        bootstrap_interval(np.arange(3.0), n_resamples=10)


@pytest.mark.parametrize(("seed_spread", "least", "most"), [(1.0, 0.92, 0.98), (0.0, 0.95, 1.0)])
def test_an_interval_over_three_seeds_covers_however_much_seeds_vary(
    seed_spread: float, least: float, most: float
) -> None:
    generator = np.random.default_rng(0)
    covered = 0
    zeros = np.zeros(50)
    for number in range(400):
        scores = generator.normal(size=(3, 1)) * seed_spread + generator.normal(size=(3, 50)) * 0.5
        scores += generator.normal(size=(1, 50)) * 0.5  # a difficulty that all seeds share
        found = compare_over_seeds([(zeros, row) for row in scores], n_resamples=500, seed=number)
        covered += found.interval[0] <= 0 <= found.interval[1]
    assert least <= covered / 400 <= most


def test_seeds_that_agree_leave_the_interval_of_the_items() -> None:
    values = np.random.default_rng(0).normal(size=100)
    zeros = np.zeros(100)
    found = compare_over_seeds([(zeros, values)] * 3)
    assert found.interval == pytest.approx(paired_comparison(zeros, values).interval)
    assert found.per_seed == pytest.approx((values.mean(),) * 3)
    assert found.cohens_d == pytest.approx(values.mean() / values.std(ddof=1))


def test_the_p_over_seeds_is_that_of_the_t_test_where_items_do_not_vary() -> None:
    per_seed = np.array([0.5, 0.9, 1.3])
    found = compare_over_seeds([(np.zeros(20), np.full(20, mean)) for mean in per_seed], n_resamples=100_000)
    assert found.p == pytest.approx(stats.ttest_1samp(per_seed, 0).pvalue, rel=0.05)
    reach = stats.t.ppf(0.975, 2) * 0.4 / math.sqrt(3)
    assert found.interval == pytest.approx((0.9 - reach, 0.9 + reach), abs=0.05)


def test_seeds_are_matched_by_item_id() -> None:
    first = ({"x": 0.0, "y": 0.0}, {"x": 1.0, "y": 3.0})
    second = ({"y": 0.0, "x": 0.0}, {"x": 1.0, "y": 3.0})
    assert compare_over_seeds([first, second]).interval == compare_over_seeds([first, first]).interval
    with pytest.raises(ValueError, match="'y'"):
        compare_over_seeds([first, ({"x": 0.0, "z": 0.0}, {"x": 0.0, "z": 0.0})])
    with pytest.raises(ValueError, match="at least two seeds"):
        compare_over_seeds([first])


def test_wilson_intervals_are_those_of_scipy() -> None:
    for successes, n in ((0, 10), (3, 10), (10, 10), (725, 1668)):
        theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
        assert wilson_interval(successes, n) == pytest.approx((theirs.low, theirs.high))
    with pytest.raises(ValueError, match="11 of 10"):
        wilson_interval(11, 10)


def test_a_wilson_interval_holds_its_share_where_that_is_none_or_all() -> None:
    assert wilson_interval(34, 34)[1] == 1.0
    assert all(wilson_interval(n, n)[1] == 1.0 and wilson_interval(0, n)[0] == 0.0 for n in range(1, 200))


def test_mcnemar_counts_only_the_items_that_changed() -> None:
    before = [0] * 8 + [1] * 2 + [1] * 90
    after = [1] * 8 + [0] * 2 + [1] * 90
    # Of 10 changes at most 2 or at least 8 go one way: 2·(1 + 10 + 45) / 1024.
    assert mcnemar_test(before, after) == pytest.approx(112 / 1024)
    assert mcnemar_test(before, before) == 1
    with pytest.raises(ValueError, match=r"0\.5 is neither 1 nor 0"):
        mcnemar_test([0.5, 1], [1, 1])


def test_the_sign_test_leaves_out_ties() -> None:
    assert sign_test(np.array([1.0, 2.0, 3.0, 0.0])) == pytest.approx(2 * 0.5**3)
    assert sign_test(np.zeros(4)) == 1
    with pytest.raises(ValueError, match="at least one pair"):
        sign_test(np.array([]))


def test_cohens_d_without_variance_is_zero_or_unknown() -> None:
    assert cohens_d(np.zeros(3)) == 0
    assert cohens_d(np.ones(3)) is None
    with pytest.raises(ValueError, match="at least two pairs"):
        cohens_d(np.ones(1))


def test_holm_worked_out_by_hand() -> None:
    # Sorted .01, .02, .03, .5: 4·.01, 3·.02, max(.06, 2·.03), .5.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="no probability"):
        holm([0.1, math.nan])


def test_the_noise_band_of_five_baselines() -> None:
    # s = 0.15434, t(4, 0.975) = 2.7764.
    assert noise_band([1.76, 1.48, 1.63, 1.72, 1.40]) == pytest.approx(0.606, abs=5e-4)
    assert noise_band([42.6, 43.5, 43.5, 43.0, 42.7]) == pytest.approx(1.68, abs=5e-3)
    assert noise_band([1.0, 1.0, 1.0]) == 0
    with pytest.raises(ValueError, match="at least 3 seeds"):
        noise_band([1.0, 2.0])


def test_the_spread_over_seeds_is_pooled_over_groups_and_two_seeds_are_enough() -> None:
    # Squares 2 and 8 about the means of their groups, over 1 + 2 degrees of freedom.
    assert seed_spread([[1.0, 3.0], [0.0, 2.0, 4.0], [9.0], []]) == SeedSpread(math.sqrt(10 / 3), 3)
    assert seed_spread([[1.0, 3.0]]) == SeedSpread(math.sqrt(2), 1)
    assert seed_spread([[1.0], [2.0], []]) is None


def test_successes_may_be_beyond_their_bounds_by_rounding_alone() -> None:
    assert wilson_interval(10 + 5e-10, 10) == wilson_interval(10, 10)
    assert wilson_interval(-5e-10, 10) == wilson_interval(0, 10)
    for successes in (-1e-6, 10.000001):
        with pytest.raises(ValueError, match=rf"{successes} of 10 is no proportion"):
            wilson_interval(successes, 10)


def test_mcnemar_reads_the_scores_of_ids_and_not_the_ids() -> None:
    assert mcnemar_test({"x": 1, "y": 0}, {"y": 0, "x": 0}) == 1.0


@pytest.mark.parametrize("wrong", [-0.01, 1.01, math.nan])
def test_what_is_no_probability_is_not_adjusted(wrong: float) -> None:
    with pytest.raises(ValueError, match=f"p={wrong} is no probability"):
        holm([0.5, wrong])


def test_the_interval_of_pairs_is_the_bootstrap_of_their_differences_with_the_same_settings() -> None:
    b = [1.0, 4.0, 2.0, 8.0, 5.0]
    compared = paired_comparison([0.0] * 5, b, n_resamples=100, seed=3)
    assert compared.interval == bootstrap_interval(np.array(b), n_resamples=100, seed=3)
    assert compared.interval != bootstrap_interval(np.array(b), n_resamples=100, seed=0)
    many = np.arange(50.0) ** 1.5  # whose means are all different
    assert bootstrap_interval(many) == bootstrap_interval(many, n_resamples=10_000, seed=0)
    assert paired_comparison([0.0, 0.0], [1.0, 1.0], n_resamples=100).n == 2


def test_the_p_over_seeds_counts_the_draws_on_the_other_side_and_one_more() -> None:
    fixed = SeedSpread(0.0, 1)  # no spread over seeds: every draw is the mean of a resample
    shifted = compare_over_seeds([([0.0, 0.0], [0.25, 0.25])], spread=fixed, n_resamples=199)
    assert (shifted.p, shifted.mean_difference, shifted.n) == (2 / 200, 0.25, 2)
    same = compare_over_seeds([([1.0, 2.0], [1.0, 2.0])], spread=fixed, n_resamples=199)
    assert (same.p, same.mean_difference) == (1.0, 0.0)


def test_seeds_with_other_items_or_with_ids_in_one_alone_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 scores cannot be paired with 3"):
        compare_over_seeds([([0.0, 1.0], [1.0, 1.0]), ([0.0] * 3, [1.0] * 3)])
    ids, places = ({"x": 0.0, "y": 1.0}, {"x": 1.0, "y": 1.0}), ([0.0, 1.0], [1.0, 1.0])
    for pairs in ([ids, places], [places, ids]):
        with pytest.raises(ValueError, match="one side has item ids and the other has none"):
            compare_over_seeds(pairs)
