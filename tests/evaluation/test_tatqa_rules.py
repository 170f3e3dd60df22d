"""Comparing one answer with the gold answer."""

import pytest

from alignkit.evaluation.tatqa_rules import (
    AnswerScore,
    answer_string,
    gold_items,
    is_number,
    number_value,
    score_answer,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$1,496.5", 1496.5),
        ("1.5 million", 1_500_000),
        ("2 thousand", 2000),
        ("(134)", -134),
        ("(1,234)", 1234),
        ("12%", 0.12),
        ("(9.7)%", -9.7),
        ("-12.6", -12.6),
        ("€ 3", 3),
        ("0.123456", 0.1235),
    ],
)
def test_a_number_has_this_value(text, value):
    assert is_number(text)
    assert number_value(text) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("text", ["", "$", "nan", "about 3", "US$5", "3 years", "2019-2020", "−298", "3 and 4"])
def test_a_text_is_no_number(text):
    assert not is_number(text)


@pytest.mark.parametrize("text", [".5", "inf"])
def test_a_number_without_a_digit_in_front_has_no_value(text):
    assert is_number(text)
    assert number_value(text) is None


def test_zeros_beyond_what_python_reads_as_an_integer_are_a_zero():
    assert number_value("0" * 5000) == 0
    assert number_value("0" * 5000 + "12 million") == 12_000_000


def test_a_completion_of_a_million_digits_is_scored_in_seconds():
    text = "1 2" * 300_000
    assert score_answer([text], "", ["12"], "", "arithmetic") == AnswerScore(0.0, 0.0)


def test_items_are_sorted_and_numbers_written_with_four_decimals():
    assert answer_string(["sales", "12", "3%"], "thousand") == "12000.0000 0.0300 sales thousand"
    assert answer_string([22.123], "percent") == "0.2212"
    assert answer_string(["1.005"], "") == "1.0000"
    assert answer_string([2019, "b", "a"], "") == "2019.0000 a b"


def test_gold_items_are_what_the_scorer_reads():
    assert gold_items(["a", "b"], "multi-span") == ["a", "b"]
    assert gold_items(-12.6, "arithmetic") == ["-12.6"]
    assert gold_items("2", "count") == gold_items(2, "count") == ["2"]


@pytest.mark.parametrize("nothing", [None, "", [], 0, 0.0])
def test_a_falsy_answer_scores_nothing_even_where_it_is_right(nothing):
    assert score_answer(nothing, "", ["0"], "", "arithmetic") == (0, 0)


@pytest.mark.parametrize("zero", ["0", [0], ["0"]])
def test_zero_as_text_or_in_a_list_is_an_answer(zero):
    assert score_answer(zero, "", ["0"], "", "arithmetic") == (1, 1)


@pytest.mark.parametrize(
    ("answer", "scale", "em"),
    [
        ("22.12", "percent", 1),
        ("22.12%", "", 1),
        ("0.2212", "", 1),
        ("0.2212", "percent", 0),
        ("22.12", "", 0),
        ("22.12", "million", 0),
        ("-22.12", "percent", 0),
    ],
)
def test_a_percentage_is_right_in_any_of_its_readings(answer, scale, em):
    assert score_answer(answer, scale, ["22.12"], "percent", "arithmetic").em == em


def test_an_expanded_number_matches_its_scale():
    assert score_answer("123200000", "", ["123.2"], "million", "arithmetic") == (1, 1)


def test_the_order_of_spans_does_not_matter_and_a_missing_one_lowers_f1_alone():
    gold = ["singapore", "china", "usa"]
    assert score_answer(["usa", "china", "singapore"], "", gold, "", "multi-span") == (1, 1)
    # Two of two words are right, two of three found: 2 · 1 · (2/3) / (5/3) = 0.8.
    assert score_answer(["china", "singapore"], "", gold, "", "multi-span") == (0, 0.8)


def test_case_articles_and_punctuation_do_not_matter():
    assert score_answer("An increase, in The backlog!", "", ["increase in backlog"], "", "span") == (1, 1)


def test_a_wrong_scale_makes_a_number_wrong_and_adds_a_word_to_a_text():
    assert score_answer("5", "million", ["5"], "thousand", "span") == AnswerScore(0, 0)
    # One word of two is right, one of one found: 2 · 0.5 · 1 / 1.5 = 0.67.
    assert score_answer("sales", "million", ["sales"], "", "span") == AnswerScore(0, 0.67)


@pytest.mark.parametrize("answer_type", ["arithmetic", "count"])
def test_f1_of_a_number_is_all_or_nothing(answer_type):
    # As texts, one word of two would be right and all of one found: 0.67.
    assert score_answer("three sites", "", ["three"], "", "span") == (0, 0.67)
    assert score_answer("three sites", "", ["three"], "", answer_type) == (0, 0)


def test_repeated_words_count_once_in_f1_but_matter_for_the_exact_match():
    assert score_answer("net net", "", ["net"], "", "span") == (0, 1)


def test_an_answer_of_another_kind_is_an_error():
    with pytest.raises(ValueError, match=r"answer \{'a': 1\} must be a list"):
        score_answer({"a": 1}, "", ["1"], "", "span")
