"""Between a text, as a model writes it, and `[answer, scale]`, as TAT-QA scores it. Both ways, so that they agree.

The written form: one answer a line, a number followed by its scale word (`-12.6 million`), nothing else.

How this differs from looking for a number anywhere in the text: a line is the answer or it is not. A model that names
all numbers of the table is not right once, and neither is one that explains first.
"""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from alignkit.evaluation.tatqa_rules import is_number

_CUE = re.compile(r"\A(?:(?:the )?(?:final )?answers?(?: is| are)?\s*:|the (?:final )?answer is\b)", re.IGNORECASE)
_END = re.compile(r"\n[^\S\n]*\n|\n[^\S\n]*(?=(?:Question|Explanation|Note|Table|Passages)\s*:)")
_BULLET = re.compile(r"[-*•]\s+(?=\S)")
_NUMBERING = re.compile(r"(\d{1,9})[.)]\s+(?=\S)")
_SCALE_AT_END = re.compile(r"\s*(?<![a-zA-Z])(thousand|million|billion|percent)s?\Z", re.IGNORECASE)
_QUOTES = ('"', "'", "`", "**", "*")


def answer_text(answer: Any, scale: str) -> str:
    """The written form of an answer: a line for each item, numbers with their scale.

    Args:
        answer: a list of texts, a text or a number.
        scale: as in the gold answer; it is left out where the item names a scale word or percent sign itself.
    """
    items = answer if isinstance(answer, (list, tuple)) else [plain_number(answer)]
    return "\n".join(_with_scale(" ".join(str(item).split()), scale) for item in items)


def plain_number(number: Any) -> str:
    """A number without exponent and without a zero fraction: 12.0 -> `12`, 1e-05 -> `0.00001`; a text as it is."""
    try:
        exact = Decimal(str(number).strip())
    except InvalidOperation:
        return str(number)
    if not exact.is_finite():
        return str(number)
    text = f"{exact:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def extract_answer(text: str) -> list[Any]:
    """`[answer, scale]` of a free text: the lines of its first block, each an item of the answer.

    The block ends with a blank line or before a line that opens with `Question:`, `Explanation:`, `Note:`, `Table:` or
    `Passages:`. Taken away are a leading `Answer:` or `The answer is`, bullets and numbering of a list, quotation
    marks around an item and the full stop behind a number. A scale word behind a number is the scale if all lines have
    the same: `$1,496.5 million` gives `[["$1,496.5"], "million"]`. Signs, currencies, brackets, commas and `12%` stay:
    the scorer reads them itself.

    Returns:
        `[[], ""]` for a text that is blank.
    """
    lines = _without_marks(_first_block(text).splitlines())
    items = [item for line in lines if (item := _bare(line))]
    split = [_split_scale(item) for item in items]
    scales = {scale for _, scale in split}
    if len(scales) == 1:
        return [[item for item, _ in split], scales.pop()]
    return [items, ""]


def _first_block(text: str) -> str:
    return _END.split(_CUE.sub("", text.strip()).lstrip(), maxsplit=1)[0]


def _without_marks(lines: Sequence[str]) -> list[str]:
    """Without the marks of a list, if all lines have them: a single `- 5` may be a negative number."""
    lines = [line.strip() for line in lines]
    if len(lines) > 1 and all(_BULLET.match(line) for line in lines):
        return [_BULLET.sub("", line, count=1) for line in lines]
    numbers = [int(match[1]) for line in lines if (match := _NUMBERING.match(line))]
    if len(lines) > 1 and numbers == list(range(1, len(lines) + 1)):
        return [_NUMBERING.sub("", line, count=1) for line in lines]
    return list(lines)


def _bare(line: str) -> str:
    """Without quotation marks around it, and without the full stop behind a number."""
    for quote in _QUOTES:
        inner = line.removeprefix(quote).removesuffix(quote)
        if len(line) - len(inner) == 2 * len(quote) and quote not in inner:
            line = inner.strip()
    return line[:-1] if line.endswith(".") and is_number(line[:-1]) else line


def _split_scale(item: str) -> tuple[str, str]:
    """A number and the scale word behind it; a text whole, because its words are compared anyway."""
    found = _SCALE_AT_END.search(item)
    if found is None or not is_number(item[: found.start()]):
        return item, ""
    return item[: found.start()], found[1].lower()


def _with_scale(item: str, scale: str) -> str:
    names_it = is_number(item) and ("%" in item or _SCALE_AT_END.search(item))
    return f"{item} {scale}" if scale and not names_it else item
