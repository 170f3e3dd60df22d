"""The verdict in what a judge said: a strict reading that never guesses.

How this differs from FastChat's reading of `[[rating]]` and `[[A]]`:

1. All verdicts in an answer must agree. There the first one counts, which may be quoted from the answer under
   judgement, and so be written by who is judged.
2. A grade outside 1 to 10 is none.
3. What stands before `</think>` is thought, not verdict.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from alignkit.evaluation.judge.protocol import HIGHEST, LOWEST, Failure, Grade, Preference, Winner

VerdictFormat = Literal["brackets", "json"]
Kind = Literal["grade", "compare"]

_RATING = re.compile(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]")
_LETTER = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_OF_LETTER: dict[str, Winner] = {"A": "first", "B": "second", "C": "tie"}
_OF_WORD: dict[str, Winner] = {"A": "first", "B": "second", "tie": "tie"}
_REFUSAL = re.compile(
    r"\W*(?:(?:i['’]?m|i am)\s+(?:very\s+|so\s+)?(?:sorry|unable|not able)|sorry\b|as an ai\b"
    r"|i\s+(?:can['’]t|cannot|can not|won['’]t|will not|must decline|refuse)\b)",
    re.IGNORECASE,
)

SHOWN = 160  # characters of an answer that an error shows
MIRRORED: dict[Winner | None, Winner | None] = {"first": "second", "second": "first", "tie": "tie", None: None}

REMINDERS: dict[tuple[Kind, VerdictFormat], str] = {
    ("grade", "brackets"): "That holds no single grade. Give only the grade, from 1 to 10, in this form: [[5]]",
    ("compare", "brackets"): "That holds no single verdict. Give only one of these: [[A]], [[B]] or [[C]]",
    ("grade", "json"): 'That is not the JSON asked for. Give only this, with your grade: {"reasons": "", "rating": 5}',
    ("compare", "json"): (
        'That is not the JSON asked for. Give only this, with "A", "B" or "tie": {"reasons": "", "better": "tie"}'
    ),
}
"""What a judge is told that gave no verdict."""


def parse_grade(text: str, verdict_format: VerdictFormat) -> float | None:
    """The grade from 1 to 10."""
    text = without_thought(text)
    if verdict_format == "json":
        value = _json_field(text, "rating")
        found = {value} if isinstance(value, int | float) and not isinstance(value, bool) else set()
    else:
        found = {float(number) for number in _RATING.findall(text)}
    grade = found.pop() if len(found) == 1 else None
    # Compared first, because an integer may be too large for a float.
    return float(grade) if grade is not None and LOWEST <= grade <= HIGHEST else None


def parse_winner(text: str, verdict_format: VerdictFormat) -> Winner | None:
    """`"first"` for A, the answer that was shown first, `"second"` for B, or `"tie"`."""
    text = without_thought(text)
    if verdict_format == "json":
        value = _json_field(text, "better")
        return _OF_WORD.get(value) if isinstance(value, str) else None
    found = set(_LETTER.findall(text))
    return _OF_LETTER[found.pop()] if len(found) == 1 else None


def is_refusal(text: str) -> bool:
    """Whether a text without a verdict begins as refusals do."""
    return _REFUSAL.match(without_thought(text)) is not None


def without_thought(text: str) -> str:
    """What follows the last `</think>`, and all of it where there is none."""
    return text.rpartition("</think>")[2]


def response_format(kind: Kind) -> dict[str, Any]:
    """`response_format` of a request whose answer shall be a verdict in JSON."""
    verdict: dict[str, Any] = (
        {"rating": {"type": "integer", "minimum": int(LOWEST), "maximum": int(HIGHEST)}}
        if kind == "grade"
        else {"better": {"type": "string", "enum": [*_OF_WORD]}}
    )
    properties = {"reasons": {"type": "string"}, **verdict}
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}


def _json_field(text: str, name: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: thousands of brackets in one another
        return None
    return value.get(name) if isinstance(value, dict) else None


@dataclass(frozen=True)
class Said:
    """What a judge said, and why there is no verdict in it; the failure is empty where there is one."""

    text: str
    failure: Failure


def reading(kind: Kind, text: str, refused: bool, verdict_format: VerdictFormat) -> Said:
    """What was said, with whether it holds a verdict. A refusal is one that the server or the text itself declares."""
    if refused:
        return Said(text, "refused")
    found = (parse_grade if kind == "grade" else parse_winner)(text, verdict_format)
    return Said(text, "" if found is not None else "refused" if is_refusal(text) else "malformed")


def grade_of(said: Said, verdict_format: VerdictFormat) -> Grade:
    """A grade, whose score is None where there is no verdict."""
    return Grade(None if said.failure else parse_grade(said.text, verdict_format), said.text, said.failure)


def preference_of(in_order: Said, swapped: Said, verdict_format: VerdictFormat) -> Preference:
    """The preference of a pair that was shown in both orders."""
    first, second = (None if said.failure else parse_winner(said.text, verdict_format) for said in (in_order, swapped))
    words = (in_order.text, swapped.text)
    return Preference(first, MIRRORED[second], words, in_order.failure or swapped.failure)


def failure_advice(said: Said) -> str:
    """What a judge did that gave no verdict, to stand behind its name, and what to do."""
    did = "refused" if said.failure == "refused" else "gave no verdict"
    return f"{did}: {said.text[-SHOWN:]!r}; use another judge or other prompts"
