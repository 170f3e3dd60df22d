"""Statistics of evaluations: intervals hold their estimates, tests have no order and no unit, bounds are kept."""

import numpy as np
import pytest
from hypothesis import strategies as st

from alignkit.evaluation.power import combined_freedom, detectable_difference, pairs_needed, power_of
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
from alignkit.evaluation.unpaired import Summary, unpaired_comparison, widen_by_seeds
from alignkit.evaluation.verdicts import Comparison, Verdict, judge
from tests.properties.given import given
from tests.properties.strategies import ORDERS, SHARES, shuffled

SCORES = st.integers(-40, 40).map(lambda number: number / 4)
PAIRS = st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=8)
PROBABILITIES = st.lists(SHARES, max_size=8)
FEW = {"n_resamples": 200}


@given(PAIRS, ORDERS)
def test_pairs_are_made_by_id_whatever_the_order_of_the_items(pairs, order):
    before, after = ({f"item{n}": pair[side] for n, pair in enumerate(pairs)} for side in (0, 1))
    moved = dict(shuffled(list(after.items()), order))
    assert paired_differences(before, moved).tolist() == paired_differences(before, after).tolist()
    assert paired_differences(*map(list, zip(*pairs, strict=True))).tolist() == [b - a for a, b in pairs]


@given(PAIRS)
def test_the_interval_of_a_comparison_lies_within_the_differences_and_turns_round_with_the_sides(pairs):
    before, after = map(list, zip(*pairs, strict=True))
    found, turned = paired_comparison(before, after, **FEW), paired_comparison(after, before, **FEW)
    low, high = found.interval
    differences = [b - a for a, b in pairs]
    assert min(differences) <= low <= high <= max(differences)
    assert turned.interval == pytest.approx((-high, -low))
    assert turned.mean_difference == pytest.approx(-found.mean_difference)
    assert turned.p == pytest.approx(found.p)
    assert (turned.t is None) == (found.t is None)
    assert found.t is None or turned.t == pytest.approx(-found.t)
    assert 0 <= found.p <= 1


@given(PAIRS, st.sampled_from([0.5, 2.0, 4.0]), SCORES)
def test_the_unit_and_the_zero_of_scores_have_no_part_in_p_and_effect_size(pairs, unit, zero):
    before, after = map(list, zip(*pairs, strict=True))
    plain = paired_comparison(before, after, **FEW)
    moved = paired_comparison(*([unit * score + zero for score in side] for side in (before, after)), **FEW)
    assert moved.p == pytest.approx(plain.p)
    assert moved.cohens_d == pytest.approx(plain.cohens_d)
    assert moved.interval == pytest.approx(tuple(unit * end for end in plain.interval))
    assert moved.mean_difference == pytest.approx(unit * plain.mean_difference)


@given(st.lists(SCORES, min_size=2, max_size=8), SCORES, st.sampled_from([0.5, 2.0]))
def test_a_bootstrap_interval_moves_with_its_values(values, shift, scale):
    low, high = bootstrap_interval(np.array(values), **FEW)
    moved = bootstrap_interval(scale * np.array(values) + shift, **FEW)
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-9)
    assert min(values) <= low <= high <= max(values)


@given(st.integers(1, 200), SHARES)
def test_a_wilson_interval_holds_the_share_and_mirrors_its_complement(n, share):
    successes = round(share * n)
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low))
    wider = wilson_interval(successes, n)[1] - low
    narrower = wilson_interval(4 * successes, 4 * n)
    assert narrower[1] - narrower[0] < wider


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=12), ORDERS)
def test_tests_of_signs_see_neither_order_nor_direction_nor_ties(pairs, order):
    before, after = map(list, zip(*pairs, strict=True))
    p = mcnemar_test(before, after)
    assert 0 < p <= 1
    assert mcnemar_test(after, before) == p
    assert mcnemar_test(*map(list, zip(*shuffled([*pairs, (1, 1), (0, 0)], order), strict=True))) == p
    assert sign_test(7.5 * np.subtract(after, before)) == p


@given(PROBABILITIES, ORDERS)
def test_holm_never_lowers_a_p_nor_turns_two_round_and_is_blind_to_their_places(values, order):
    adjusted = holm(values)
    assert all(p <= new <= min(1.0, len(values) * p) + 1e-12 for p, new in zip(values, adjusted, strict=True))
    for p, new in zip(values, adjusted, strict=True):
        assert all(new <= other for q, other in zip(values, adjusted, strict=True) if q >= p)
    places = shuffled(list(range(len(values))), order)
    assert holm([values[place] for place in places]) == [adjusted[place] for place in places]
    assert max(holm([*values, 1.0])) == 1.0


@given(st.lists(SCORES, min_size=3, max_size=6), SCORES, st.sampled_from([0.5, 2.0]))
def test_the_noise_band_and_the_spread_of_seeds_know_no_zero_and_scale_with_the_unit(values, shift, scale):
    moved = [scale * value + shift for value in values]
    assert noise_band(moved) == pytest.approx(scale * noise_band(values), abs=1e-9)
    assert noise_band(values) >= 0
    spread, other = seed_spread([values]), seed_spread([moved])
    assert other.std == pytest.approx(scale * spread.std, abs=1e-9)
    assert spread.std == pytest.approx(float(np.std(values, ddof=1)), abs=1e-9)
    twice = seed_spread([values, [value + 100 for value in values], [5.0]])
    assert twice.std == pytest.approx(spread.std, abs=1e-9) and twice.freedom == 2 * spread.freedom


@given(st.lists(PAIRS, min_size=2, max_size=3), ORDERS)
def test_a_comparison_over_seeds_is_blind_to_their_order_and_widens_with_their_spread(seeds, order):
    n = min(map(len, seeds))
    pairs = [tuple(map(list, zip(*pairs[:n], strict=True))) for pairs in seeds]
    found = compare_over_seeds(pairs, **FEW)
    moved = compare_over_seeds(shuffled(pairs, order), **FEW)
    assert moved.mean_difference == pytest.approx(found.mean_difference)
    assert moved.interval == pytest.approx(found.interval, abs=1e-9)
    assert sorted(moved.per_seed) == pytest.approx(sorted(found.per_seed))
    assert 0 < found.p <= 1
    narrow, wide = (compare_over_seeds(pairs, spread=SeedSpread(std, 5), **FEW).interval for std in (0.0, 50.0))
    assert wide[1] - wide[0] > narrow[1] - narrow[0]


@given(st.lists(SCORES, min_size=2, max_size=8))
def test_the_effect_size_is_odd_and_nothing_where_all_is_zero(values):
    effect, turned = cohens_d(np.array(values)), cohens_d(-np.array(values))
    assert (effect is None) == (len(set(values)) == 1 and values[0] != 0)
    assert effect is None or turned == pytest.approx(-effect)
    assert cohens_d(np.zeros(len(values))) == 0


# ---- Summaries ----

SUMMARIES = st.tuples(SHARES, st.integers(2, 100))


@given(SUMMARIES, SUMMARIES, st.floats(0.01, 2), st.floats(0.01, 2))
def test_an_unpaired_interval_holds_the_difference_and_turns_round_with_the_sides(first, second, std, other):
    for stds in ((None, None), (std, other)):
        before, after = Summary(*first, stds[0]), Summary(*second, stds[1])
        found, turned = unpaired_comparison(before, after), unpaired_comparison(after, before)
        low, high = found.interval
        assert low <= found.mean_difference <= high
        assert turned.interval == pytest.approx((-high, -low))
        assert turned.p == pytest.approx(found.p)
        assert 0 <= found.p <= 1
        wider = widen_by_seeds(found, SeedSpread(0.1, 4), 3)
        assert wider.interval[0] <= low and high <= wider.interval[1]
        assert wider.p >= found.p
        same = widen_by_seeds(found, SeedSpread(0.0, 4), 3)
        assert same.interval == pytest.approx(found.interval)


@given(SUMMARIES, st.integers(2, 20))
def test_the_same_summary_twice_is_no_difference_and_more_items_narrow_the_interval(summary, times):
    mean, n = summary
    same = unpaired_comparison(Summary(mean, n), Summary(mean, n))
    more = unpaired_comparison(Summary(mean, n * times), Summary(mean, n * times))
    assert same.mean_difference == 0 and same.p == 1
    assert more.interval[1] - more.interval[0] < same.interval[1] - same.interval[0]


# ---- Verdicts ----

COMPARED = st.lists(st.tuples(SCORES, st.floats(0.1, 5), SHARES, st.floats(0, 1)), min_size=1, max_size=5)


@given(COMPARED, st.booleans())
def test_a_verdict_needs_interval_band_and_p_and_turns_round_with_what_is_better(rows, against_start):
    family = [Comparison(0, d, d, (d - reach, d + reach), p, None, 9, 1, True, band) for d, reach, p, band in rows]
    up = judge(family, higher_is_better=True, against_start=against_start)
    down = judge(family, higher_is_better=False, against_start=against_start)
    for one, (d, reach, p, band) in zip(up, rows, strict=True):
        assert one.p_holm >= p
        assert (one.verdict is Verdict.NO_EVIDENCE) == bool(one.reason)
        if one.verdict is not Verdict.NO_EVIDENCE:
            assert p <= 0.05 and abs(d) > band and abs(d) > reach
            assert (one.verdict is Verdict.EFFECT) == (d > 0)
    if not against_start:
        opposite = {Verdict.EFFECT: Verdict.HARM, Verdict.HARM: Verdict.EFFECT}
        assert [one.verdict for one in down] == [opposite.get(one.verdict, one.verdict) for one in up]


# ---- Power ----


@given(st.floats(0.01, 3), st.floats(0.1, 3), st.integers(2, 200), st.floats(0.1, 10))
def test_power_rises_with_difference_and_pairs_and_has_no_unit(difference, std, n, unit):
    power = power_of(difference, std, n)
    assert 0.05 - 1e-6 <= power <= 1
    assert power_of(2 * difference, std, n) >= power - 1e-9
    assert power_of(difference, std, 2 * n) >= power - 1e-9
    assert power_of(-difference, std, n) == power
    assert power_of(unit * difference, unit * std, n) == pytest.approx(power)


@given(st.floats(0.1, 3), st.integers(3, 200), st.floats(0.2, 0.95), st.floats(0.1, 10))
def test_the_detectable_difference_has_the_power_that_was_asked_for(std, n, power, unit):
    difference = detectable_difference(std, n, power=power)
    assert power_of(difference, std, n) == pytest.approx(power, abs=1e-6)
    assert detectable_difference(unit * std, n, power=power) == pytest.approx(unit * difference)
    assert pairs_needed(difference * (1 + 1e-9), std, power=power) == n


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(1, 50)), min_size=1, max_size=4), st.floats(0.1, 10))
def test_a_sum_of_variances_has_at_least_the_least_freedom_and_at_most_all(parts, unit):
    variances, freedoms = zip(*parts, strict=True)
    found = combined_freedom(variances, freedoms)
    assert min(freedoms) - 1e-9 <= found <= sum(freedoms) + 1e-9
    assert combined_freedom([unit * variance for variance in variances], freedoms) == pytest.approx(found)
