"""Rounds of the barrier: filters, directions, signals and the search for a dose."""

import math

import pytest
from hypothesis import strategies as st

from alignkit.kl_barrier.rounds.coherence import OPTIONS, AnswerProbe
from alignkit.kl_barrier.rounds.directions import layers_in_band
from alignkit.kl_barrier.rounds.filters import (
    FilterSettings,
    Judgement,
    choose_kept,
    pass_rate,
    repeated_ngram_share,
    shortage,
)
from alignkit.kl_barrier.rounds.proposals import Proposal
from alignkit.kl_barrier.rounds.settings import first_difference, stage_seed
from alignkit.kl_barrier.rounds.signals import (
    LARGEST_PERPLEXITY,
    SIGNALS,
    capped_exp,
    changes_since,
    interval_of_mean,
    most_moved,
    movement,
)
from alignkit.kl_barrier.rounds.steering import find_strength
from tests.properties.given import given
from tests.properties.strategies import ORDERS, SEEDS, SHARES, TEXTS, WORDS, plain_values, shuffled

PLAIN = st.lists(st.sampled_from(["a", "to", "sea", "red"]), max_size=20)


@given(PLAIN, st.sampled_from([" ", "\n", "  \t"]))
def test_the_repeated_share_is_a_share_that_neither_case_nor_blanks_change(words, blank):
    share = repeated_ngram_share(" ".join(words))
    assert 0 <= share < 1
    assert repeated_ngram_share(blank.join(words).upper()) == share
    assert repeated_ngram_share(" ".join(f"({word})," for word in words), n_characters=()) == repeated_ngram_share(
        " ".join(words), n_characters=()
    )


@given(st.lists(WORDS, min_size=5, max_size=8, unique_by=str.lower), st.integers(2, 6))
def test_a_text_said_again_repeats_itself_more_with_every_time(words, times):
    def share(n):
        return repeated_ngram_share(" ".join(words * n), n_words=(2,), n_characters=())

    assert share(1) == 0
    assert share(times) > share(times - 1)
    n = len(words)
    assert share(times) == pytest.approx(1 - n / (n * times - 1))


@given(st.lists(st.sampled_from([None, "empty", "perplexity", "pattern x"]), min_size=1, max_size=20), SEEDS)
def test_what_is_kept_passed_is_in_its_order_and_no_more_than_asked_for(reasons, seed):
    judgements = [Judgement(Proposal("", str(number)), None, 0.0, reason) for number, reason in enumerate(reasons)]
    settings = FilterSettings(keep_at_most=4, min_kept=2)
    result = choose_kept(judgements, settings, seed=seed)
    passed = [one.proposal for one in judgements if one.reason is None]
    assert len(result.kept) == min(4, len(passed))
    assert [one for one in passed if one in result.kept] == result.kept
    assert sum(result.counts.values()) + len(passed) == len(reasons)
    assert pass_rate(judgements) == result.pass_rate == len(passed) / len(reasons)
    lack = shortage(reasons, settings)
    assert (lack is None) == (len(passed) >= 2)
    assert lack is None or lack.startswith(f"{len(passed)} of {len(reasons)} ")


@given(st.integers(1, 100), SHARES, SHARES)
def test_layers_of_a_band_are_consecutive_and_a_mirrored_band_has_the_mirrored_layers(n_layers, first, second):
    low, high = sorted((first, second))
    depths = [(index + 0.5) / n_layers for index in range(n_layers)]
    expected = [index for index, depth in enumerate(depths) if low <= depth <= high]
    if not expected:
        with pytest.raises(ValueError, match="widen it"):
            layers_in_band(n_layers, (low, high))
        return
    found = layers_in_band(n_layers, (low, high))
    assert found == list(range(found[0], found[-1] + 1))
    assert layers_in_band(n_layers, (0, 1)) == list(range(n_layers))
    assert set(found) <= set(layers_in_band(n_layers, (max(0, low - 0.1), min(1, high + 0.1))))


@given(st.floats(-50, 1e6), st.floats(0, 10))
def test_the_capped_exponential_rises_to_its_cap_and_no_further(nats, more):
    assert capped_exp(nats) <= capped_exp(nats + more) <= LARGEST_PERPLEXITY
    assert math.isfinite(capped_exp(nats))
    if nats < 200:
        assert math.log(capped_exp(nats)) == pytest.approx(nats, abs=1e-9)


SCORES = st.lists(st.floats(0.1, 10), min_size=3, max_size=3)


def record_of(values: dict) -> dict:
    return {"scores": values}


@given(SCORES, SCORES, st.floats(0.1, 10), ORDERS)
def test_movement_has_no_unit_and_no_order_and_is_nothing_where_nothing_moved(before, after, unit, order):
    for name, signal in SIGNALS.items():
        records = [record_of({name: before}), record_of({name: after})]
        scaled = [record_of({name: [unit * value for value in scores]}) for scores in (before, after)]
        assert movement(scaled, name) == pytest.approx(movement(records, name), abs=1e-6)
        places = shuffled([0, 1, 2], order)
        moved = [record_of({name: [scores[place] for place in places]}) for scores in (before, after)]
        assert movement(moved, name) == pytest.approx(movement(records, name), abs=1e-9)
        assert movement([records[0], records[0]], name) == pytest.approx(0, abs=1e-9)
        back = changes_since(records[1], records[0], name)
        assert back == pytest.approx([-change for change in changes_since(records[0], records[1], name)])
        if signal.is_log:
            assert changes_since(records[0], scaled[0], name) == pytest.approx([math.log(unit)] * 3, abs=1e-9)


@given(st.lists(SCORES, min_size=2, max_size=4))
def test_the_two_that_moved_most_are_two_signals_in_the_order_in_which_they_are_shown(scores):
    records = [record_of({name: [n * value for value in row] for n, name in enumerate(SIGNALS, 1)}) for row in scores]
    first, second = most_moved(records)
    names = list(SIGNALS)
    assert names.index(first) < names.index(second)
    least = min(movement(records, first), movement(records, second))
    assert all(movement(records, name) <= least + 1e-9 for name in names if name not in (first, second))


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9), st.floats(0.1, 5), st.floats(-50, 50))
def test_the_interval_of_a_mean_is_around_it_and_moves_with_unit_and_zero(values, scale, shift):
    low, high = interval_of_mean(values)
    mean = sum(values) / len(values)
    assert low - 1e-9 <= mean <= high + 1e-9
    moved = interval_of_mean([scale * value + shift for value in values])
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-6)


@given(st.floats(0.01, 100), st.floats(0.1, 1), st.floats(0.05, 0.95), st.integers(0, 8))
def test_the_dose_that_is_found_passes_and_lies_within_the_promised_factor_of_the_limit(limit, low, target, steps):
    high = low * 50
    found = find_strength(lambda strength: float(strength <= limit), low, high, target, steps=steps)
    if limit < low:
        assert (found.strength, found.reached) == (low, False)
        return
    assert found.reached and found.strength <= limit
    assert len({strength for strength, _ in found.tried}) == len(found.tried) <= steps + 2
    assert limit / found.strength <= 50 ** (0.5**steps) * (1 + 1e-9) or found.strength == high


@given(st.lists(WORDS, min_size=1, max_size=5, unique=True), TEXTS.filter(lambda text: OPTIONS not in text))
def test_each_option_stands_once_in_each_place_over_the_orders(answers, around):
    probe = AnswerProbe([f"x{around}{OPTIONS}"], answers, conjunction=", ")
    orders = [text.removeprefix(f"x{around}").split(", ") for text in probe.orders(0)]
    assert all(sorted(order) == sorted(answers) for order in orders)
    assert all(sorted(column) == sorted(answers) for column in zip(*orders, strict=True))


@given(plain_values(), plain_values())
def test_settings_differ_from_others_and_not_from_themselves(before, now):
    assert first_difference(before, before) is None
    assert (first_difference(before, now) is None) == (before == now)


@given(SEEDS, SEEDS, st.integers(0, 9), st.sampled_from(["propose", "train", "filter"]))
def test_the_seed_of_a_stage_follows_from_its_three_names_alone(seed, other, number, stage):
    assert stage_seed(seed, number, stage) == stage_seed(seed, number, stage)
    assert 0 <= stage_seed(seed, number, stage) < 2**32
    assert (stage_seed(seed, number, stage) == stage_seed(other, number, stage)) == (seed == other)
