"""Rows of preference data, checked before TRL tokenises them: a bad one is an error that names it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jinja2 import TemplateError

from alignkit.row_checks import check_same_kind, check_text, checked_rows, row_refused_by_template


def prepare_checked(prepare: Callable[..., Any], dataset: Any, tokenizer: Any, args: Any, split: str) -> Any:
    """What the parent makes of a data set all of whose rows can be tokenised.

    Args:
        prepare: the parent's `_prepare_dataset`, which takes the other arguments.

    Raises:
        ValueError: a bad row, by its number and column; of a stream, when it is read.
    """
    checked = checked_rows(dataset, split, partial(check_pair, has_template=tokenizer.chat_template is not None))
    try:
        return prepare(checked, tokenizer, args, split)
    except TemplateError as error:
        raise row_refused_by_template(dataset, split, partial(_render, tokenizer), error) from error


def check_pair(row: Mapping[str, Any], *, has_template: bool) -> None:
    """Check a row with `chosen` and `rejected`, and perhaps `prompt`: texts, or lists of messages.

    Raises:
        ValueError: names the column, its value and the fix; the caller adds the split and the row number.
    """
    columns = ["prompt", "chosen", "rejected"] if "prompt" in row else ["chosen", "rejected"]
    for name in columns:
        if name not in row:
            raise ValueError(f"there is no column {name!r}, only {sorted(row)}; add it, or rename the one it is")
        check_text(row[name], name, may_be_empty=name == "prompt", is_answer=name != "prompt")
        if isinstance(row[name], list) and not has_template:
            raise ValueError(f"column {name!r} has chat messages but the tokenizer no chat_template; set one")
    for name in columns[1:]:
        check_same_kind(row, columns[0], name)


def _render(tokenizer: Any, row: Mapping[str, Any]) -> None:
    prompt = row.get("prompt") or []
    for side in ("chosen", "rejected"):
        tokenizer.apply_chat_template(prompt + row[side], tokenize=False)
    tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
