"""Agreement of raters and scores from preferences: symmetric, blind to order and unit, within their bounds."""

import math

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from alignkit.evaluation.agreement import cohens_kappa, judge_agreement, krippendorff_alpha, majority
from alignkit.evaluation.judge.protocol import Preference
from alignkit.evaluation.preference import (
    PRIOR_SETS,
    REWARD_BENCH_2_SUBSETS,
    REWARD_BENCH_SECTIONS,
    TiesPrompt,
    points,
    reward_bench,
    reward_bench_2,
    ties_score,
    win_rate,
    win_rate_interval,
)
from tests.properties.given import given
from tests.properties.strategies import ORDERS, SHARES, shuffled

SCORES = st.integers(-40, 40).map(lambda number: number / 4)
PAIRS = st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=8)
PROBABILITIES = st.lists(SHARES, max_size=8)
FEW = {"n_resamples": 200}


# ---- Agreement ----

CATEGORIES = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=12)


@given(CATEGORIES, ORDERS)
def test_kappa_is_symmetric_blind_to_order_and_names_and_one_for_agreement(pairs, order):
    first, second = map(list, zip(*pairs, strict=True))
    assume(len({*first, *second}) > 1)
    kappa = cohens_kappa(first, second)
    assert -1 - 1e-12 <= kappa <= 1
    assert cohens_kappa(second, first) == pytest.approx(kappa)
    moved = shuffled(pairs, order)
    assert cohens_kappa([a * 2 for a, _ in moved], [b * 2 for _, b in moved]) == pytest.approx(kappa)
    assert (kappa == pytest.approx(1)) == (first == second)


@given(st.lists(st.lists(st.integers(1, 4), min_size=3, max_size=3), min_size=2, max_size=8), ORDERS)
def test_alpha_is_blind_to_the_order_of_raters_and_units_and_one_for_agreement(ratings, order):
    units = np.array(ratings, dtype=float).T  # (raters, units)
    assume(len(set(units.flatten())) > 1)
    for level in ("nominal", "ordinal", "interval"):
        alpha = krippendorff_alpha(units, level, n_resamples=0).alpha
        raters, places = shuffled([0, 1, 2], order), shuffled(list(range(units.shape[1])), order)
        moved = krippendorff_alpha(units[raters][:, places], level, n_resamples=0)
        assert moved.alpha == pytest.approx(alpha)
        assert alpha <= 1 + 1e-9
        assert (alpha == pytest.approx(1)) == (units == units[0]).all()
    shifted = krippendorff_alpha(3 * units - 7, "interval", n_resamples=0).alpha
    assert shifted == pytest.approx(krippendorff_alpha(units, "interval", n_resamples=0).alpha)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=7), ORDERS)
def test_the_majority_is_what_most_say_in_any_order(votes, order):
    winner = majority(votes, undecided=-1)
    assert majority(shuffled(votes, order), undecided=-1) == winner
    assert winner == -1 or all(votes.count(winner) > votes.count(other) for other in {*votes} - {winner})
    assert majority([*votes, *[2] * len(votes), 2], undecided=-1) == 2


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=3, max_size=8))
def test_a_judge_that_says_what_all_say_agrees_wholly(rows):
    assume(len({a for a, _ in rows}) > 1)
    perfect = judge_agreement([a for a, _ in rows], [[a, a, a] for a, _ in rows])
    assert (
        perfect.accuracy == 1
        and perfect.kappas == pytest.approx((1, 1, 1))
        and perfect.joint_alpha == pytest.approx(1)
    )
    found = judge_agreement([b for _, b in rows], [[a, a, a] for a, _ in rows])
    assert found.accuracy == pytest.approx(sum(a == b for a, b in rows) / len(rows))


# ---- Preferences ----

WINNERS = st.sampled_from(["first", "second", "tie", None])
PREFERENCES = st.lists(st.builds(Preference, WINNERS, WINNERS), min_size=2, max_size=12)
MIRRORED = {"first": "second", "second": "first", "tie": "tie", None: None}


@given(PREFERENCES, ORDERS)
def test_the_win_rate_of_the_others_is_the_complement_and_both_lie_in_their_intervals(preferences, order):
    assume(sum(one.winner is not None for one in preferences) >= 2)
    found = win_rate(preferences)
    # The other side's answers were shown first where these were shown second.
    others = [Preference(MIRRORED[one.swapped], MIRRORED[one.in_order]) for one in preferences]
    turned = win_rate(shuffled(others, order))
    assert turned.rate == pytest.approx(1 - found.rate)
    assert turned.interval == pytest.approx((1 - found.interval[1], 1 - found.interval[0]))
    assert turned.p == pytest.approx(found.p)
    assert turned.position_bias == found.position_bias
    assert found.n + found.excluded == len(preferences)
    assert 0 <= found.interval[0] <= found.interval[1] <= 1
    known = [point for one in preferences if (point := points(one)) is not None]
    assert found.rate == pytest.approx(sum(known) / len(known))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_more_wins_never_lower_the_interval_of_a_win_rate(wins, ties, losses):
    low, high = win_rate_interval(wins, ties, losses)
    more = win_rate_interval(wins + 1, ties, losses)
    assert more[0] >= low - 1e-12 and more[1] >= high - 1e-12
    n = wins + ties + losses
    if n:
        middle = (low + high) / 2
        assert min(0.5, (wins + ties / 2) / n) - 0.26 <= middle <= max(0.5, (wins + ties / 2) / n) + 0.26


SUBSETS = [subset for section in REWARD_BENCH_SECTIONS.values() for subset in section]
ROWS = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=len(SUBSETS), max_size=len(SUBSETS))


@given(ROWS, st.floats(0.1, 10), st.floats(-5, 5))
def test_reward_bench_counts_orders_alone_and_its_parts_are_shares(rows, scale, shift):
    pairs = {name: [(float(a), float(b)), (1.0, 0.0)] for name, (a, b) in zip(SUBSETS, rows, strict=True)}
    bent = {name: [(scale * a + shift, scale * b + shift) for a, b in of_name] for name, of_name in pairs.items()}
    found = reward_bench(pairs)
    assert 0.5 <= found.score <= 1
    assert reward_bench(bent).subsets == found.subsets
    perfect = reward_bench(pairs, {name: [(1.0, 0.0)] for name in PRIOR_SETS})
    assert perfect.score == pytest.approx((4 * found.score + 0.5) / 4.5)


GAPS = st.tuples(SCORES, SCORES, SCORES, SCORES)


@given(st.lists(GAPS, min_size=1, max_size=4), st.sampled_from([0.5, 2.0]), SCORES)
def test_the_scores_of_ties_and_of_best_of_have_no_unit_and_no_zero(rows, scale, shift):
    def prompts(change):
        tied = {str(n): TiesPrompt([*map(change, row[:2])], [change(row[2])]) for n, row in enumerate(rows)}
        reference = {str(n): TiesPrompt([change(row[0])], [change(row[3])]) for n, row in enumerate(rows)}
        return tied, reference

    def moved(score):
        return scale * score + shift

    found = ties_score(*prompts(float))
    assert ties_score(*prompts(moved)) == pytest.approx(found)
    assert -0.01 <= found <= 1.01
    best_of = {name: [list(row) for row in rows] for name in REWARD_BENCH_2_SUBSETS}
    whole = reward_bench_2(best_of, *prompts(float))
    for subset in REWARD_BENCH_2_SUBSETS:
        expected = [1 / row.count(max(row)) if row[0] == max(row) else 0 for row in rows]
        assert whole.subsets[subset] == pytest.approx(math.fsum(expected) / len(rows))
