"""Rewards by rule, the parts of a reward, and the tasks' own graders."""

import math
import operator
import random
from fractions import Fraction

import pytest
from hypothesis import assume
from hypothesis import strategies as st

from alignkit.evaluation.metrics.safety import detector_quality, harmlessness, refusals
from alignkit.rewards.arithmetic import MAX_BITS, apply_operator, evaluate_expression, numbers_used, parse_expression
from alignkit.rewards.completions import completion_text
from alignkit.rewards.heuristics import (
    FormatReward,
    LengthReward,
    RefusalReward,
    RepetitionReward,
    ToxicityReward,
    WeightedReward,
)
from alignkit.rewards.hybrid import HybridReward
from alignkit.rewards.refusals import OPENING_CHARACTERS, is_refusal
from alignkit.rewards.standardize import RunningStandardizer
from alignkit.rewards.word_lists import WordList, fold, is_separate, read_word_list
from tests.properties.given import given
from tests.properties.strategies import ORDERS, SHARES, TEXTS, WORDS, shuffled

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}

# ---- Arithmetic ----


@st.composite
def expressions(draw, depth=3):
    """(text, value or None for a division by zero, precedence, numbers) of an expression, brackets where needed."""
    if depth == 0 or draw(st.booleans()):
        number = draw(st.integers(0, 99))
        return str(number), Fraction(number), 3, [number]
    symbol = draw(st.sampled_from("+-*/"))
    left, right = draw(expressions(depth=depth - 1)), draw(expressions(depth=depth - 1))
    level = 1 if symbol in "+-" else 2
    blank = draw(st.sampled_from(["", " ", "  "]))

    def inside(part, least):
        is_needed = part[2] < least or draw(st.booleans())
        return f"({blank}{part[0]}{blank})" if is_needed else part[0]

    text = f"{inside(left, level)}{blank}{symbol}{blank}{inside(right, level + 1)}"
    known = left[1] is not None and right[1] is not None and not (symbol == "/" and right[1] == 0)
    return text, OPERATORS[symbol](left[1], right[1]) if known else None, level, left[3] + right[3]


@given(expressions())
def test_an_expression_has_the_value_of_exact_fractions_and_the_numbers_that_were_written(expression):
    text, value, _, numbers = expression
    assert evaluate_expression(text) == value
    assert numbers_used(text) == numbers
    assert evaluate_expression(f"({text})") == value


@given(expressions(), expressions())
def test_two_expressions_in_brackets_combine_as_their_values_do(first, second):
    for symbol in "+-*/":
        value = evaluate_expression(f"({first[0]}) {symbol} ({second[0]})")
        if first[1] is None or second[1] is None or (symbol == "/" and second[1] == 0):
            assert value is None
        else:
            assert value == apply_operator(symbol, first[1], second[1])


@given(
    expressions(),
    st.sampled_from(["//", "**", "_", "e", ".", "\n", "\t", "=", "x", "\u0663", "\u00d7", ","]),
    st.data(),
)
def test_whatever_is_no_arithmetic_is_refused_wherever_it_stands(expression, foreign, data):
    text = expression[0]
    place = data.draw(st.integers(0, len(text)))
    assert evaluate_expression(text[:place] + foreign + text[place:]) is None


@given(st.text(alphabet="0123456789+-*/() ", max_size=30))
def test_what_is_accepted_is_what_python_reads_without_signs_powers_and_leading_zeros(text):
    postfix = parse_expression(text)
    if postfix is None:
        return
    numbers = [item for item in postfix if isinstance(item, int)]
    assert len(postfix) == 2 * len(numbers) - 1
    try:
        expected = eval(text.strip(), {"__builtins__": {}})  # digits and operators alone, of 30 characters
    except ZeroDivisionError:
        assert evaluate_expression(text) is None
        return
    value = evaluate_expression(text)
    assert value is None or float(value) == pytest.approx(expected)


@given(st.integers(0, 2**300))
def test_a_number_is_taken_up_to_the_largest_one(number):
    assert evaluate_expression(str(number)) == (number if number.bit_length() <= MAX_BITS else None)


# ---- Texts ----


@given(st.integers(0, 30), st.integers(0, 12), st.integers(1, 20), st.sampled_from(["words", "characters"]))
def test_the_length_reward_is_full_in_its_band_and_falls_on_both_sides(length, shortest, more, unit):
    longest = shortest + more
    reward = LengthReward(shortest, longest, unit)

    def score(n):
        return reward.score(" ".join(["x"] * n) if unit == "words" else "x" * n)

    assert 0 <= score(length) <= 1
    assert (score(length) == 1) == (shortest <= length <= longest)
    assert score(length + 1) >= score(length) or length >= longest
    assert score(length + 1) <= score(length) or length < shortest
    assert score(2 * longest) == 0


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.integers(1, 3), st.permutations("abc"))
def test_the_repetition_reward_sees_which_units_are_equal_and_not_which_they_are(words, n, names):
    renamed = [names["abc".index(word)] for word in words]
    reward = RepetitionReward(n)
    score = reward.score(" ".join(words))
    assert 0 < score <= 1
    assert reward.score("\n".join(renamed).upper()) == score
    assert reward.score(" ".join(reversed(words))) == score


@given(st.text(alphabet="ab<>", max_size=8))
def test_the_format_reward_matches_the_whole_text_whatever_stands_around_it(text):
    matches = text.startswith("<") and text.endswith(">") and set(text[1:-1]) <= {"a"} and len(text) > 1
    for around in ("", " ", "\n"):
        assert FormatReward("<a*>").score(around + text + around) == float(matches)


@given(TEXTS, st.text(alphabet=" \n\t", max_size=5))
def test_a_refusal_is_known_by_its_opening_and_desired_or_not(text, blank):
    answer = blank + "I can't help with that. " + text
    assert is_refusal(answer)
    assert is_refusal(answer.replace("'", "\u2019"))
    assert RefusalReward().score(answer) == 0 and RefusalReward(desired=True).score(answer) == 1
    later = "x" * OPENING_CHARACTERS + answer
    assert not is_refusal(later)
    assert refusals([answer, later]) == [1.0, 0.0]


# ---- Word lists ----

LETTERS = st.text(alphabet=st.characters(codec="utf-8", categories=["Ll", "Lu"]), min_size=1, max_size=6)
LISTS = st.dictionaries(LETTERS, st.sampled_from([0.25, 0.5, 1.0]), min_size=1, max_size=4)


@given(st.text(max_size=30))
def test_folding_twice_is_folding_once(text):
    assert fold(fold(text)) == fold(text)


@given(LISTS, st.sampled_from([" ", ", ", ".", "\u200b ", " (", '"']), st.data())
def test_a_listed_word_is_found_whatever_touches_it_and_not_within_another(severities, touch, data):
    words = WordList(severities)
    entry = data.draw(st.sampled_from(list(severities)))
    text = f"so{touch}{entry}{touch}"
    found = words.find(text)
    assert found and max(match.severity for match in found) >= severities[entry] - (len(severities) > 1)
    assert sum(match.severity for match in found) >= min(severities.values())
    assert [match.entry for match in WordList({entry: 1.0}).find(text)] == [entry]
    assert WordList({entry: 1.0}).find(f"q{entry}q7") == [] or not is_separate(f"q{fold(entry)}", 0, 1)


@given(LISTS, st.lists(LETTERS, max_size=6))
def test_scores_of_a_word_list_do_not_see_case_and_fall_with_every_word(severities, words):
    text = " ".join(words)
    reward = ToxicityReward(severities)
    score = reward.score(text)
    assert 0 <= score <= 1
    entry = next(iter(severities))
    assert reward.score(f"{text} . {entry}") <= score
    assert harmlessness([text], severities) == [float(score == 1)]
    assert len(WordList(severities)) == len(severities)


@given(LISTS)
def test_a_list_written_to_a_file_is_read_as_it_was(tmp_path, severities):
    file = tmp_path / "list"
    file.write_text("\n".join(severities), encoding="utf-8")
    assert read_word_list(file).severities == dict.fromkeys(severities, 1.0)
    rows = "".join(f"{entry},{3 * severity}\n" for entry, severity in severities.items())
    file.write_text("text,severity_rating\n" + rows, encoding="utf-8")
    assert read_word_list(file).severities == severities


# ---- Parts ----

VALUES = st.lists(st.floats(0, 1), min_size=3, max_size=3)


def constant(values):
    return lambda prompts, completions, **columns: values


@given(VALUES, VALUES, st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0.1, 10))
def test_a_weighted_reward_lies_between_its_parts_and_only_the_ratio_of_the_weights_counts(a, b, first, second, scale):
    parts = {"a": constant(a), "b": constant(b)}
    found = WeightedReward(parts, {"a": first, "b": second})(completions=["x"] * 3)
    scaled = WeightedReward(parts, {"a": scale * first, "b": scale * second})(completions=["x"] * 3)
    assert found == pytest.approx(scaled)
    assert all(min(pair) - 1e-12 <= value <= max(pair) + 1e-12 for *pair, value in zip(a, b, found, strict=True))
    alone = WeightedReward(parts, {"a": first, "b": 0.0})(completions=["x"] * 3)
    assert alone == pytest.approx(a)


@given(VALUES, VALUES, SHARES, SHARES, st.floats(0.1, 1))
def test_a_hybrid_reward_is_its_weighted_sum_within_the_clip(a, b, first, second, clip):
    assume(first or second)
    plain = HybridReward(constant(a), constant(b), first, second)(completions=["x"] * 3)
    clipped = HybridReward(constant(a), constant(b), first, second, clip=clip)(completions=["x"] * 3)
    assert plain == pytest.approx([first * x + second * y for x, y in zip(a, b, strict=True)])
    assert clipped == [max(-clip, min(clip, value)) for value in plain]


NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


@given(NUMBERS, ORDERS, st.floats(0.1, 10), st.floats(-100, 100))
def test_standardised_values_have_no_unit_no_zero_and_no_order(values, order, scale, shift):
    assume(max(values) - min(values) > 1e-3)
    plain, moved = RunningStandardizer(), RunningStandardizer()
    plain.update(values)
    moved.update([scale * value + shift for value in shuffled(values, order)])
    expected = plain(values)
    assert moved([scale * value + shift for value in values]) == pytest.approx(expected, abs=1e-4)
    assert math.fsum(expected) == pytest.approx(0, abs=1e-4)


@given(NUMBERS, NUMBERS)
def test_values_in_two_calls_are_those_of_one_and_a_restored_state_goes_on(first, second):
    whole, parts = RunningStandardizer(), RunningStandardizer()
    whole.update([*first, *second])
    parts.update(first)
    restored = RunningStandardizer()
    restored.load_state_dict(parts.state_dict())
    for one in (parts, restored):
        one.update(second)
        assert one == whole
    frozen = RunningStandardizer(**{**parts.state_dict(), "frozen": True})
    frozen.update([1e9])
    assert frozen(first) == parts(first)


@given(TEXTS, st.lists(TEXTS, max_size=2))
def test_a_completion_is_the_same_as_text_and_as_the_last_message(text, before):
    messages = [{"role": "user", "content": one} for one in before] + [{"role": "assistant", "content": text}]
    assert completion_text(text) == completion_text(messages) == text


FLAGS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12)


@given(FLAGS, ORDERS)
def test_a_detectors_quality_is_blind_to_order_and_precision_of_one_is_recall_of_the_other(pairs, order):
    flags, labels = map(list, zip(*pairs, strict=True))
    quality, exchanged = detector_quality(flags, labels), detector_quality(labels, flags)
    assert exchanged.precision == quality.recall and exchanged.accuracy == quality.accuracy
    assert detector_quality(*map(list, zip(*shuffled(pairs, order), strict=True))) == quality
    assert quality.accuracy.n == len(pairs)
    if any(flags) or any(labels):
        assert exchanged.f1 == quality.f1
        assert (quality.f1 == 1) == (flags == labels)


@given(WORDS, st.integers(0, 99))
def test_random_state_of_the_process_is_neither_read_nor_changed_by_rewards(word, seed):
    random.seed(seed)
    before = random.getstate()
    ToxicityReward([word]).score(word)
    assert random.getstate() == before
