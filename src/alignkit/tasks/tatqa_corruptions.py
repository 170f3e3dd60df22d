"""Wrong answers to TAT-QA questions, each wrong in one respect that has a name.

How this differs from drawing a random number or a random cell:

1. A wrong answer looks like the right one: as many characters where that is possible, else longer or shorter by the
   toss of a coin; currency, brackets, commas and year-like numbers as in the right one. What is left to learn from is
   that it is wrong.
2. Everything hangs on the question's uid and the seed, so that a subset of the questions has the same wrong answers.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from alignkit.evaluation.tatqa_rules import SCALES, is_number, number_value
from alignkit.evaluation.tatqa_text import plain_number

Answer = tuple[list[str], str]
"""Items and scale, as they are extracted from a text."""

CORRUPTIONS = {
    "number": "one digit of the number is another",
    "cell": "another cell of the table",
    "passage": "as many characters from elsewhere in the passages",
    "scale": "another scale, the answer itself is right",
    "count": "one or two more or fewer",
    "span_missing": "one span of the list is left out",
    "span_added": "one span too many in the list",
}

_YEAR = re.compile(r"(?:19|20)\d\d")
_MOST_WORDS_SHARED = 0.5
_MOST_CHARACTERS_APART = 2
_TRIES = 20

# Golds with "thousand" can only get shorter and golds without a scale only longer. With these weights for the others,
# "the longer one" and "the shorter one" are right equally often, in characters and in tokens.
_SCALE_WEIGHTS = {"": 2, "thousand": 7, "million": 3.5, "billion": 3.5, "percent": 3.5}


def corruptions_of(
    question: Mapping[str, Any], answer: Answer, context: Mapping[str, Any], generator: random.Random
) -> Iterator[tuple[str, Answer]]:
    """Wrong answers in the order in which they should be tried, each with the name of what is wrong with it.

    Args:
        question: of the context; its type says what can be wrong.
        answer: the right one, as it is extracted from its written form.
        context: table and passages.
        generator: seeded by the question's uid.
    """
    names = _kinds(question["answer_type"], answer, generator)
    for name in names:
        for wrong in _MAKERS[name](answer, _material(question, context), generator):
            if wrong != answer:
                yield name, wrong


def _kinds(answer_type: str, answer: Answer, generator: random.Random) -> list[str]:
    items, scale = answer
    if answer_type == "count":
        return ["count"]
    if answer_type == "multi-span":
        kinds = ["span_missing", "span_added"]
    elif answer_type == "arithmetic":
        kinds = ["number", "cell", "scale"]
    elif not is_number(items[0]):
        return [*generator.sample(["cell", "passage"], 2), "number"]
    elif _YEAR.fullmatch(items[0]):
        return ["cell", "number"]
    else:
        kinds = ["number", "cell", *(["scale"] if scale else [])]
    generator.shuffle(kinds)
    return kinds


class _Material:
    """What a context has to make wrong answers of."""

    def __init__(self, cells: list[str], passages: list[str]):
        self.cells = cells
        self.passages = passages


def _material(question: Mapping[str, Any], context: Mapping[str, Any]) -> _Material:
    cells = [" ".join(cell.split()) for row in context["table"]["table"] for cell in row]
    if question["answer_type"] == "arithmetic":
        # The right answer was computed and carries no currency or commas.
        cells = [plain_number(number_value(cell)) for cell in cells if is_number(cell) and "%" not in cell]
    return _Material(
        list(dict.fromkeys(filter(None, cells))), [paragraph["text"] for paragraph in context["paragraphs"]]
    )


def _other_digit(answer: Answer, material: _Material, generator: random.Random) -> Iterator[Answer]:
    items, scale = answer
    text = items[0]
    digits = [place for place, character in enumerate(text) if character.isdecimal()]
    if len(items) > 1 or not digits:
        return
    significant = [place for place in digits if text[place] != "0"] or digits
    # A year whose century is wrong gives itself away; elsewhere a late digit hardly matters.
    places = digits[-2:] if _YEAR.fullmatch(text) else [place for place in digits if place >= significant[0]][:2]
    choices = [(place, digit) for place in places for digit in "0123456789" if digit != text[place]]
    generator.shuffle(choices)
    for place, digit in choices:
        if not (digit == "0" and place == digits[0]):
            yield [text[:place] + digit + text[place + 1 :]], scale


def _other_cell(answer: Answer, material: _Material, generator: random.Random) -> Iterator[Answer]:
    items, scale = answer
    if len(items) == 1:
        for cell in _like(items[0], material.cells, generator):
            yield [cell], scale


def _other_passage(answer: Answer, material: _Material, generator: random.Random) -> Iterator[Answer]:
    items, scale = answer
    if len(items) == 1:
        for stretch in _stretches(items[0], material.passages, generator):
            yield [stretch], scale


def _other_scale(answer: Answer, material: _Material, generator: random.Random) -> Iterator[Answer]:
    items, scale = answer
    scales = [other for other in SCALES if other != scale]
    # The order of a weighted draw without replacement (Efraimidis and Spirakis 2006).
    for other in sorted(scales, key=lambda other: -(generator.random() ** (1 / _SCALE_WEIGHTS[other]))):
        yield items, other


def _other_count(answer: Answer, material: _Material, generator: random.Random) -> Iterator[Answer]:
    [count], scale = answer
    others = [int(count) + step for step in (-2, -1, 1, 2) if int(count) + step >= 0]
    generator.shuffle(others)
    for other in sorted(others, key=lambda other: len(str(other)) != len(count)):
        yield [str(other)], scale


def _one_span_less(answer: Answer, material: _Material, generator: random.Random) -> Iterator[Answer]:
    items, scale = answer
    if len(items) > 1:
        for place in generator.sample(range(len(items)), len(items)):
            yield items[:place] + items[place + 1 :], scale


def _one_span_more(answer: Answer, material: _Material, generator: random.Random) -> Iterator[Answer]:
    items, scale = answer
    like = generator.choice(items)
    spare = [cell for cell in material.cells if cell not in items]
    candidates = _like(like, spare, generator)
    if is_number(like):
        candidates += [text for [text], _ in _other_digit(([like], scale), material, generator)]
    else:
        candidates += _stretches(like, material.passages, generator)
    for candidate in candidates:
        if all(_shared_words(candidate, item) <= _MOST_WORDS_SHARED for item in items):
            place = generator.randint(0, len(items))
            yield [*items[:place], candidate, *items[place:]], scale


_MAKERS: dict[str, Callable[[Answer, _Material, random.Random], Iterator[Answer]]] = {
    "number": _other_digit,
    "cell": _other_cell,
    "passage": _other_passage,
    "scale": _other_scale,
    "count": _other_count,
    "span_missing": _one_span_less,
    "span_added": _one_span_more,
}


def _like(text: str, candidates: Sequence[str], generator: random.Random) -> list[str]:
    """Candidates of the same look and of nearly the same length, those of the same length first."""
    most = _MOST_CHARACTERS_APART if is_number(text) else len(text) // 3
    alike = [other for other in candidates if other != text and abs(len(other) - len(text)) <= most]
    return _by_length(text, [other for other in alike if _look(other) == _look(text)], generator)


def _look(text: str) -> tuple[bool, ...]:
    """What tells two answers apart at first sight."""
    if not is_number(text):
        return (False, any(character.isdecimal() for character in text))
    return (True, bool(_YEAR.fullmatch(text)), *(mark in text for mark in "$%(-"))


def _by_length(text: str, candidates: Sequence[str], generator: random.Random) -> list[str]:
    """Of the same length first, then the nearest of the longer or of the shorter ones, by the toss of a coin."""
    side = generator.choice((1, -1))
    shuffled = generator.sample(candidates, len(candidates))

    def rank(other: str) -> tuple[int, int]:
        difference = len(other) - len(text)
        return (0 if not difference else 1 if difference * side > 0 else 2), abs(difference)

    return sorted(shuffled, key=rank)


def _stretches(text: str, passages: Sequence[str], generator: random.Random) -> list[str]:
    """Stretches of whole words from the passages, about as long as the text and mostly of other words."""
    found = []
    for passage in passages:
        words = passage.split()
        for count in range(max(1, len(text.split()) - 2), len(text.split()) + 3):
            found += [" ".join(words[start : start + count]) for start in range(len(words) - count + 1)]
    near = [other for other in found if abs(len(other) - len(text)) <= max(1, len(text) // 10)]
    near = [other for other in near if _look(other) == _look(text)]
    return [
        other
        for other in _by_length(text, near, generator)[:_TRIES]
        if _shared_words(other, text) <= _MOST_WORDS_SHARED
    ]


def _shared_words(text: str, other: str) -> float:
    """Share of the words of the shorter text that the other one has."""
    words, others = set(text.lower().split()), set(other.lower().split())
    return len(words & others) / max(1, min(len(words), len(others)))
