"""How TAT-QA compares one answer with the gold answer: exact match and F1 of two strings, numbers brought to one form.

The rules are those of the official scorer of Zhu et al. 2021 (https://aclanthology.org/2021.acl-long.254), its
surprises included, because a figure is only worth something next to published ones. Written anew from a description of
them and held to the official score of every development question.

How this differs from the official scorer:

1. A list that holds both text and numbers is sorted by the text of its items; there it raises a TypeError.
2. An answer is a list, a text or a number; anything else is an error here.
3. A number of 1e290 or more is read as a text; there it raises an OverflowError.
"""

import math
import re
import string
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

SCALES = ("", "thousand", "million", "billion", "percent")
"""The scales that a gold answer may have."""

ANSWER_TYPES = ("span", "multi-span", "arithmetic", "count")

_TOO_LARGE = 1e290
_FACTORS = {"hundred": 100, "thousand": 1000, "million": 1_000_000, "billion": 1_000_000_000, "percent": 0.01}
_NOT_IN_NUMBERS = str.maketrans("", "", "'\"\\$€£¥%(),[]")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_FIRST_NUMBER = re.compile(r"([+-]?\d+(?:\.\d+)?)|[+-]?\.\d+")
# Each takes linear time also where nothing is found: a run of digits is tried once, not from each of its places.
_FIRST_NUMBER_WITH_WORD = re.compile(r"(?<![\d.])[\d.]++\s?[a-zA-Z]+")
_IN_BRACKETS = re.compile(r"\([\d.\s]++\)")
_PERCENTAGE = re.compile(r"[\d.\s]%")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


class AnswerScore(NamedTuple):
    """Both in 0..1; `f1` has two decimals."""

    em: float
    f1: float


def score_answer(prediction: Any, scale: str, gold: Sequence[str], gold_scale: str, answer_type: str) -> AnswerScore:
    """Exact match and F1 of one answer.

    EM is 1 if the two normalised strings are equal. F1 = 2·P·R / (P + R), with precision P and recall R over the sets
    of words of the two strings. F1 is EM for arithmetic and count questions.

    Args:
        prediction: a list of texts or numbers, a text or a number; empty, 0 or None counts as no answer.
        scale: one of [`SCALES`]; any other text is taken as it stands.
        gold: items of the gold answer, see [`gold_items`].
        answer_type: one of [`ANSWER_TYPES`].

    Raises:
        ValueError: a prediction of another kind.
    """
    if prediction is None or isinstance(prediction, (str, int, float)):
        prediction = [prediction] if prediction else []
    if not isinstance(prediction, (list, tuple)):
        raise ValueError(f"the answer {prediction!r} must be a list of texts, a text or a number")
    if not prediction:
        return AnswerScore(0.0, 0.0)
    wanted = _normalised(answer_string(gold, gold_scale))
    given = [answer_string(prediction, scale), *_bare_value(prediction, scale)]
    em, f1 = max(_compare(_normalised(text), wanted) for text in given)
    return AnswerScore(em, em if answer_type in ("arithmetic", "count") else f1)


def gold_items(answer: Any, answer_type: str) -> list[str]:
    """The gold answer as the scorer reads it: spans as stored, a number as its text, a count as an integer."""
    if answer_type in ("span", "multi-span"):
        return list(answer)
    return [str(int(answer))] if answer_type == "count" else [str(answer)]


def answer_string(items: Sequence[Any], scale: str) -> str:
    """All items as one string: sorted, numbers as their value with 4 decimals, texts followed by the scale."""
    try:
        ordered = sorted(items)
    except TypeError:
        ordered = sorted(items, key=str)
    return " ".join(_item_string(str(item), scale) for item in ordered)


def is_number(text: str) -> bool:
    """Whether the text is a number with nothing behind it, or a scale word: `$1,496.5`, `(12)`, `3 million`."""
    words = " ".join(text.split()).translate(_NOT_IN_NUMBERS).split()
    if not words:
        return False
    try:
        value = float(words[0])
    except ValueError:
        return False
    return not math.isnan(value) and (len(words) == 1 or _factor(words[1]) != 1)


def number_value(text: str) -> float | None:
    """Value of a number, rounded to 4 decimals: `1.5 million` -> 1500000.0, `(134)` -> -134, `12%` -> 0.12.

    `(1,234)` stays positive, since brackets negate digits, dots and blanks alone. None for `.5`, which lacks the
    digit in front, for `inf`, which is a number without digits, and for one that is too large.
    """
    found = _FIRST_NUMBER.search(text.translate(_NOT_IN_NUMBERS))
    if found is None or found[1] is None or abs(float(found[1])) >= _TOO_LARGE:
        return None
    # By Decimal, because Python reads no integer of more than 4,300 digits, not even of zeros.
    value: float = float(found[1]) if "." in found[1] else int(Decimal(found[1]))
    with_word = _FIRST_NUMBER_WITH_WORD.search(text)
    value *= _factor(with_word[0]) if with_word else 1
    value *= -1 if _IN_BRACKETS.search(text) else 1
    value *= 0.01 if _PERCENTAGE.search(text) else 1
    return round(value, 4) if abs(value) < _TOO_LARGE else None


def _factor(scale: str) -> float:
    """1 for a text that names no scale."""
    lowered = scale.lower()
    return next((factor for name, factor in _FACTORS.items() if name in lowered), 1)


def _item_string(text: str, scale: str) -> str:
    value = number_value(text) if is_number(text) else None
    if value is None:
        return f"{text} {scale}" if scale else text
    return f"{value:.4f}" if "%" in text else f"{round(value, 2) * _factor(scale):.4f}"


def _bare_value(prediction: Sequence[Any], scale: str) -> list[str]:
    """A second reading of one number without scale and percent sign: 0.2212 stands for 22.12 percent."""
    text = str(prediction[0])
    if len(prediction) > 1 or scale or "%" in text or not is_number(text):
        return []
    value = number_value(text)
    return [] if value is None else [f"{value:.4f}"]


def _normalised(text: str) -> list[str]:
    """Words in lower case without punctuation and articles; numbers as text of their value."""
    words = " ".join(_normalised_word(word) for word in text.lower().split(" "))
    return words.split()  # once more, because a word may hold other blanks than spaces


def _normalised_word(word: str) -> str:
    if not is_number(word):
        word = word.translate(_PUNCTUATION)
    # Asked again, because a word can become a number when its punctuation is gone.
    if is_number(word):
        word = str(number_value(word))
    return _ARTICLE.sub(" ", word)


def _compare(given: list[str], wanted: list[str]) -> AnswerScore:
    """Of two lists of words; both set-wise, F1 without regard to how often a word comes."""
    em = float(" ".join(given) == " ".join(wanted))
    given_words, wanted_words = set(given), set(wanted)
    common = len(given_words & wanted_words)
    precision = common / len(given_words) if given_words else 1.0
    recall = common / len(wanted_words) if wanted_words else 1.0
    f1 = 2 * precision * recall / (precision + recall) if common or not (given_words or wanted_words) else 0.0
    return AnswerScore(em, round(f1, 2))
