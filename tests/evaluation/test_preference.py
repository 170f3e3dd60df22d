"""Win rates and the scoring rules of RewardBench, by hand-worked values."""

import math

import pytest
from scipy.stats import multinomial

from alignkit.evaluation.judge import Preference
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

RIGHT, WRONG = (1.0, 0.0), (0.0, 1.0)


def pairs(**changed):
    """All pairs right but those of the subsets named, `_` for `-`."""
    names = [name for section in REWARD_BENCH_SECTIONS.values() for name in section]
    return {name: [RIGHT] for name in names} | {name.replace("_", "-"): rows for name, rows in changed.items()}


def test_subsets_weigh_their_prompts_and_the_447_of_math_as_much_as_those_of_code():
    sizes = {section: sum(subsets.values()) for section, subsets in REWARD_BENCH_SECTIONS.items()}
    assert sizes == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 6 * 164 + 447 + (984 - 447)}
    assert sum(sizes.values()) - (984 - 447) == 2985  # the whole set


# ---- Win rate ----


def test_an_answer_wins_that_wins_in_both_orders_and_everything_else_is_a_tie():
    found = [Preference(*pair) for pair in [("first", "first"), ("second", "second"), ("first", "second")]]
    assert [points(one) for one in [*found, Preference("tie", "first"), Preference("tie", "tie")]] == [
        1,
        0,
        0.5,
        0.5,
        0.5,
    ]
    assert [one.consistent for one in found] == [True, True, False]
    assert points(Preference(None, "first")) is None


def test_a_win_rate_counts_ties_half_and_leaves_out_what_has_no_verdict():
    wins, losses = [Preference("first", "first")] * 6, [Preference("second", "second")] * 2
    found = win_rate([*wins, *losses, Preference("tie", "first"), Preference(None, "first"), Preference("tie", "tie")])
    assert (found.wins, found.ties, found.losses, found.n, found.excluded, found.inconsistent) == (6, 2, 2, 10, 1, 1)
    assert found.rate == pytest.approx(0.7)
    assert found.interval[0] < 0.7 < found.interval[1]
    # 2 · P(X ≥ 6) of 8 fair coins: 2 · (28 + 8 + 1) / 256
    assert found.p == pytest.approx(74 / 256)


def test_a_win_rate_of_nothing_but_wins_is_not_certain():
    low, high = win_rate([Preference("first", "first")] * 20).interval
    # m = 1/2 + 20/44, v = 21/88 − (20/44)²
    assert low == pytest.approx(0.5 + 20 / 44 - 1.959964 * math.sqrt((21 / 88 - (20 / 44) ** 2) / 22), abs=1e-6)
    assert high == 1.0
    assert win_rate_interval(0, 0, 20) == pytest.approx((0.0, 1 - low))


@pytest.mark.parametrize(("wins", "ties"), [(0.5, 0.0), (0.9, 0.0), (0.97, 0.0), (0.6, 0.3), (0.1, 0.8), (0.02, 0.96)])
def test_the_interval_of_a_win_rate_holds_the_truth_in_95_of_100_samples(wins, ties):
    n, covered = 20, 0.0
    for won in range(n + 1):
        for tied in range(n + 1 - won):
            low, high = win_rate_interval(won, tied, n - won - tied)
            if low <= wins + ties / 2 <= high:
                covered += multinomial.pmf([won, tied, n - won - tied], n, [wins, ties, 1 - wins - ties])
    assert covered > 0.93


def test_position_bias_is_what_the_place_shown_gains():
    # In order A was shown first; swapped, B was. Verdicts for the place shown first: A in order, B swapped.
    always_first = Preference("first", "second")
    fair = Preference("first", "first")
    assert win_rate([always_first] * 2).position_bias == 1
    assert win_rate([Preference("second", "first")] * 2).position_bias == -1
    assert win_rate([fair] * 2).position_bias == 0
    assert win_rate([Preference("second", "tie")] * 2).position_bias == -1
    assert win_rate([fair, always_first]).position_bias == pytest.approx((3 - 1) / 4)
    assert win_rate([Preference("tie", "tie")] * 2).position_bias is None


def test_a_win_rate_of_one_pair_is_refused():
    with pytest.raises(ValueError, match="1 of 2 pairs have a verdict"):
        win_rate([Preference("tie", "tie"), Preference(None, None)])


# ---- RewardBench 1 ----


def test_a_perfect_model_has_1_and_equal_scores_are_wrong():
    assert reward_bench(pairs()).score == 1
    found = reward_bench(pairs(alpacaeval_easy=[RIGHT, WRONG, (1.0, 1.0), RIGHT]))
    assert found.subsets["alpacaeval-easy"] == 0.5
    # Chat weighs 100, 95, 95, 28, 40: half of 100 of 358 is lost.
    assert found.sections["Chat"] == pytest.approx(1 - 50 / 358)
    assert found.score == pytest.approx((3 + 1 - 50 / 358) / 4)


def test_maths_counts_as_much_as_all_code_together():
    assert reward_bench(pairs(math_prm=[WRONG])).sections["Reasoning"] == pytest.approx(0.5)


def test_the_prior_sets_are_a_fifth_section_of_half_weight():
    prior = {name: [RIGHT] for name in PRIOR_SETS} | {"shp": [WRONG]}
    found = reward_bench(pairs(), prior)
    assert found.sections["Prior Sets"] == 0.75
    assert (found.subsets["shp"], found.subsets["hep-go"]) == (0, 1)
    assert found.score == pytest.approx((4 + 0.5 * 0.75) / 4.5)


def test_a_missing_an_empty_or_an_unknown_subset_is_an_error_and_no_zero():
    some = pairs()
    del some["hep-go"]
    for given, message in [
        (some, r"missing or empty: \['hep-go'\]"),
        (pairs(hep_go=[]), r"missing or empty: \['hep-go'\]"),
        (pairs(hep_perl=[RIGHT]), r"unknown subsets: \['hep-perl'\]"),
        (pairs(hep_go=[(math.nan, 0.0)]), "hep-go has the score nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            reward_bench(given)


# ---- RewardBench 2 ----


def test_one_of_four_counts_a_share_where_others_score_as_high():
    row = {name: [[1.0, 0.0, 0.0, 0.0]] for name in REWARD_BENCH_2_SUBSETS}
    row["Math"] = [[2, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [1, 0]]
    tied, reference = {"1": TiesPrompt([2.0, 2.0], [0.0])}, {"1": TiesPrompt([2.0], [0.0])}
    found = reward_bench_2(row, tied, reference)
    assert found.subsets["Math"] == pytest.approx((1 + 1 / 2 + 1 / 4 + 0 + 1) / 5)
    assert found.sections == found.subsets
    # With a spread of 0 and a gap above it, tanh(∞) = 1.
    assert found.subsets["Ties"] == pytest.approx(1.01)
    assert found.score == pytest.approx((4 + 0.55 + 1.01) / 6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[math.nan, 0.0]], "^Math has the score nan"),
        ([[1.0]], "^a prompt of Math has 1 answers; give the correct one and others$"),
        ([], r"missing or empty: \['Math'\]; give exactly Factuality, Precise IF, Math, Safety, Focus$"),
    ],
)
def test_a_subset_that_cannot_be_scored_is_named(rows, message):
    best_of = {name: [[1.0, 0.0]] for name in REWARD_BENCH_2_SUBSETS} | {"Math": rows}
    ties = {"1": TiesPrompt([2.0, 2.0], [0.0])}
    with pytest.raises(ValueError, match=message):
        reward_bench_2(best_of, ties, {"1": TiesPrompt([2.0], [0.0])})


def test_the_score_of_ties_is_its_formula():
    tied = {
        "a": TiesPrompt([5.0, 4.0], [2.0]),  # gap 2, spread 1
        "b": TiesPrompt([5.0, 2.0], [1.0]),  # gap 1, spread 3
        "c": TiesPrompt([3.0, 1.0], [2.0]),  # gap -1, spread 2
    }
    reference = {
        "a": TiesPrompt([4.0], [3.5]),  # gap 0.5
        "b": TiesPrompt([4.0], [0.0]),  # gap 4
        "c": TiesPrompt([1.0], [1.0]),  # gap 0
    }
    margin = (math.tanh(0.5 / 1 - 1) + math.tanh(1 / 3 - 1) + math.tanh(-1 / 2 - 1)) / 3
    expected = 0.3 * 2 / 3 + 0.3 * 2 / 3 + 0.2 * 1 / 3 + 0.2 * 0 + 0.01 * margin
    assert ties_score(tied, reference) == pytest.approx(expected)


def test_ties_without_spread_and_gap_count_nothing():
    same = {"a": TiesPrompt([1.0, 1.0], [1.0])}
    assert ties_score(same, {"a": TiesPrompt([1.0], [1.0])}) == 0
    below = ties_score({"a": TiesPrompt([1.0, 1.0], [2.0])}, {"a": TiesPrompt([1.0], [0.0])})
    assert below == pytest.approx(0.3 - 0.01)


@pytest.mark.parametrize(
    ("tied", "reference", "message"),
    [
        ({}, {}, "the same ids"),
        ({}, dict.fromkeys("abcd", ([1.0], [0.0])), r"these are alone: \['a', 'b', 'c'\]$"),
        ({"a": ([1.0, 2.0], [0.0])}, {"b": ([1.0], [0.0])}, r"alone: \['a', 'b'\]"),
        ({"a": ([1.0], [0.0])}, {"a": ([1.0], [0.0])}, "tied prompt 'a' has 1 correct"),
        ({"a": ([1.0, 2.0], [0.0])}, {"a": ([1.0], [])}, "reference prompt 'a' has 1 correct and 0"),
        ({"a": ([1.0, math.inf], [0.0])}, {"a": ([1.0], [0.0])}, "tied prompt a has the score inf"),
    ],
)
def test_prompts_that_cannot_be_scored_are_named(tied, reference, message):
    with pytest.raises(ValueError, match=message):
        ties_score(
            {name: TiesPrompt(*scores) for name, scores in tied.items()},
            {name: TiesPrompt(*scores) for name, scores in reference.items()},
        )
