"""The row formats of a reward dataset, read into texts and comparisons between them. No tokenizer here.

| row | columns |
|---|---|
| pair | `prompt`?, `chosen`, `rejected`, `head`, `margin`?, `weight`?, `tie`? |
| multi-attribute pair | `prompt`?, `chosen`, `rejected`, `head_margins` {head: float or null}, `weight`? |
| rated list | `prompt`?, `completions`, `ratings` {head: [float or null, ...]}, `weight`? |
| positive of a corpus | `text`, `head` |
| negative (second dataset) | `text`, `tier`, `heads` (list, or null for all heads) |

Texts are strings, lists of chat messages, or token ids in `chosen_ids`, `rejected_ids`, `completions_ids`, `text_ids`.
One dataset may mix the formats: a column that a row does not use is null.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from numbers import Real
from typing import Any

from alignkit.row_checks import check_text

Text = str | list[dict[str, Any]] | list[int]

# Beside its texts, what a row of each kind reads; in another kind of row these columns are an error, not ignored.
_OPTIONS = {
    "text": {"head"},
    "completions": {"prompt", "ratings", "weight"},
    "chosen": {"prompt", "head", "margin", "weight", "tie", "head_margins"},
    "tier": {"heads"},
}


@dataclass
class ParsedRow:
    """Texts of a row and what is known about them. Indices are positions in `texts`, heads are column numbers."""

    texts: list[Text]
    winner: list[int] = field(default_factory=list)
    loser: list[int] = field(default_factory=list)
    head: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    margin: list[float] = field(default_factory=list)
    unit: list[float] = field(default_factory=list)
    positive: list[int] = field(default_factory=list)
    positive_head: list[int] = field(default_factory=list)
    member: list[int] = field(default_factory=list)
    member_head: list[int] = field(default_factory=list)

    def compare(self, first: int, second: int, head: int, difference: float, weight: float, margin: float) -> None:
        """Add a comparison: `first` wins when `difference` > 0, `second` when < 0, a tie (two halves) when 0."""
        if difference == 0:
            for winner, loser in ((first, second), (second, first)):
                self._add(winner, loser, head, weight / 2, 0.0, 0.5)
            return
        winner, loser = (first, second) if difference > 0 else (second, first)
        self._add(winner, loser, head, weight, margin, 1.0)
        if (winner, head) not in zip(self.positive, self.positive_head, strict=True):
            self.positive.append(winner)
            self.positive_head.append(head)

    def _add(self, winner: int, loser: int, head: int, weight: float, margin: float, unit: float) -> None:
        self.winner.append(winner)
        self.loser.append(loser)
        self.head.append(head)
        self.weight.append(weight)
        self.margin.append(margin)
        self.unit.append(unit)


def parse_row(row: Mapping[str, Any], head_names: Sequence[str], *, use_margin_magnitude: bool = False) -> ParsedRow:
    """Read a row of any of the four positive formats.

    Raises:
        ValueError: names the column, the value and the fix; the caller adds the split and the row number.
    """
    has = {name for name, value in row.items() if not _is_null(value)}
    kinds = [
        name
        for name, columns in (
            ("text", {"text", "text_ids"}),
            ("completions", {"completions", "completions_ids"}),
            ("chosen", {"chosen", "rejected", "chosen_ids", "rejected_ids"}),
        )
        if has & columns
    ]
    if len(kinds) != 1:
        found = f"has both {kinds[0]!r} and {kinds[1]!r}" if kinds else f"has only the columns {sorted(has)}"
        raise ValueError(f"the row {found}; give it either (chosen, rejected), (completions, ratings) or (text, head)")
    _check_options(row, kinds[0])
    if kinds == ["text"]:
        parsed = ParsedRow([_text(row, "text")])
        head = head_index(row.get("head"), head_names)
        parsed.positive, parsed.positive_head = [0], [head]
        parsed.member, parsed.member_head = [0], [head]
        return parsed
    weight = _number(row.get("weight"), "weight", default=1.0)
    if weight < 0:
        raise ValueError(f"weight is {weight}; it must be 0 or more")
    if kinds == ["completions"]:
        return _parse_rated_list(row, head_names, weight, use_margin_magnitude)
    return _parse_pair(row, head_names, weight, use_margin_magnitude)


def parse_negative(row: Mapping[str, Any], head_names: Sequence[str]) -> tuple[Text, str, list[int]]:
    """Read a row of the `negatives` dataset: its text, its tier, and the heads it may be used against."""
    _check_options(row, "tier")
    text, tier, heads = _text(row, "text"), row.get("tier"), row.get("heads")
    if not isinstance(tier, str) or not tier:
        raise ValueError(f"column 'tier' is {tier!r}; name the tier of this negative")
    if heads is None:
        return text, tier, list(range(len(head_names)))
    if not isinstance(heads, list) or not heads:
        raise ValueError(f"column 'heads' is {heads!r}; give a list of head names, or null for all heads")
    return text, tier, [head_index(head, head_names, "heads") for head in heads]


def head_index(head: Any, head_names: Sequence[str], column: str = "head") -> int:
    """Column of a head given by name or by number; with a single head it may be left out (None)."""
    if head is None and len(head_names) == 1:
        return 0
    if isinstance(head, str) and head in head_names:
        return list(head_names).index(head)
    # A column of numbers with a null in it comes from pandas as floats.
    if isinstance(head, Real) and not isinstance(head, bool) and head in range(len(head_names)):
        return int(float(head))
    raise ValueError(
        f"column {column!r} names the head {head!r}; use one of {list(head_names)}, or a number from 0 to "
        f"{len(head_names) - 1}"
    )


def _is_null(value: Any) -> bool:
    """Whether a column is unused by a row. A struct column is read back by some formats as a dict of nulls."""
    return value is None or (isinstance(value, Mapping) and all(entry is None for entry in value.values()))


def _check_options(row: Mapping[str, Any], kind: str) -> None:
    for options in _OPTIONS.values():
        for name in sorted(options - _OPTIONS[kind]):
            if not _is_null(row.get(name)):
                raise ValueError(
                    f"column {name!r} is {row[name]!r}, but a row with {kind!r} does not use it; make it null"
                )


def _parse_pair(
    row: Mapping[str, Any], head_names: Sequence[str], weight: float, use_margin_magnitude: bool
) -> ParsedRow:
    parsed = ParsedRow([_text(row, "chosen"), _text(row, "rejected")])
    tie = row.get("tie")
    if tie not in (None, True, False):
        raise ValueError(f"column 'tie' is {tie!r}; it must be true or false")
    head_margins = row.get("head_margins")
    if head_margins is not None and not isinstance(head_margins, Mapping):
        raise ValueError(f"column 'head_margins' is {head_margins!r}; it must map each head to a number or null")
    margins = {name: value for name, value in (head_margins or {}).items() if value is not None}
    if margins:
        for column in ("head", "margin", "tie"):
            if row.get(column) is not None:
                raise ValueError(
                    f"column {column!r} is {row[column]!r} in a row with 'head_margins', which replaces it; "
                    "make one of the two null"
                )
        for name, value in margins.items():
            difference = _number(value, f"head_margins[{name!r}]")
            margin = abs(difference) if use_margin_magnitude else 0.0
            head = head_index(name, head_names, "head_margins")
            parsed.compare(0, 1, head, difference, weight, margin)
    elif row.get("head") is None and head_margins is not None and len(head_names) > 1:
        raise ValueError("every entry of 'head_margins' is null; give at least one head a margin, or drop the row")
    else:
        head = head_index(row.get("head"), head_names)
        margin = _number(row.get("margin"), "margin", default=0.0)
        if tie and margin:
            raise ValueError(f"margin is {margin} in a row with tie=true, which has none; make one of the two null")
        parsed.compare(0, 1, head, 0.0 if tie else 1.0, weight, margin)
    return parsed


def _parse_rated_list(
    row: Mapping[str, Any], head_names: Sequence[str], weight: float, use_margin_magnitude: bool
) -> ParsedRow:
    column = "completions" if row.get("completions") is not None else "completions_ids"
    completions = row[column]
    if not isinstance(completions, list) or len(completions) < 2:
        raise ValueError(f"column {column!r} is {completions!r}; it must be a list of at least two texts")
    suffix = "_ids" if column.endswith("_ids") else ""
    parsed = ParsedRow(
        [_text({"prompt": row.get("prompt"), f"completion{suffix}": text}, "completion") for text in completions]
    )
    ratings = row.get("ratings")
    if not isinstance(ratings, Mapping):
        raise ValueError(f"column 'ratings' is {ratings!r}; it must map each head to a list of numbers or nulls")
    for name, values in ratings.items():
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != len(completions):
            raise ValueError(f"ratings[{name!r}] is {values!r}; it must have one entry for each completion")
        head = head_index(name, head_names, "ratings")
        known = [(i, _number(v, f"ratings[{name!r}][{i}]")) for i, v in enumerate(values) if v is not None]
        for (i, first), (j, second) in combinations(known, 2):
            margin = abs(first - second) if use_margin_magnitude else 0.0
            parsed.compare(i, j, head, first - second, weight, margin)
    if not parsed.winner:
        raise ValueError("no head of 'ratings' rates two completions, so the row compares nothing; drop it")
    return parsed


def _text(row: Mapping[str, Any], column: str) -> Text:
    """Column `column`, after `prompt` when there is one, as a string, chat messages, or token ids (`<column>_ids`)."""
    ids = row.get(f"{column}_ids")
    if ids is not None:
        if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
            raise ValueError(f"column '{column}_ids' must be a non-empty list of token ids, got {ids!r}")
        return ids
    text: Any = row.get(column)
    prompt: Any = row.get("prompt")
    check_text(text, column)
    if prompt is None:
        return text
    check_text(prompt, "prompt", may_be_empty=True)
    if type(prompt) is not type(text):
        raise ValueError(
            f"column 'prompt' is a {type(prompt).__name__} and {column!r} a {type(text).__name__}; "
            "make both strings or both lists of messages"
        )
    return prompt + text


def _number(value: Any, name: str, default: float | None = None) -> float:
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; it must be a finite number")
    return float(value)
