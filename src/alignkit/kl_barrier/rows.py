"""Rows of supervised fine-tuning: checked before TRL tokenises them, and counted where `max_length` cuts them.

Differences from TRL's `SFTTrainer`:

1. A row that cannot be learned from is an error that names it, before anything is trained.
2. What `max_length` cuts and drops is counted, and said once. A data set of which nothing is left is an error.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from jinja2 import TemplateError

from alignkit._compat import shown_to_parent
from alignkit.kl_barrier.sequences import IGNORED_LABEL
from alignkit.row_checks import (
    ROWS_PER_CHUNK,
    check_same_kind,
    check_text,
    check_tokenised,
    checked_rows,
    row_refused_by_template,
)

logger = logging.getLogger(__name__)

DatasetReport = dict[str, int]


def prepare_rows(
    prepare: Callable[..., Any],
    dataset: Any,
    tokenizer: Any,
    args: Any,
    packing: bool,
    formatting_func: Any,
    split: str,
) -> tuple[Any, DatasetReport]:
    """What the parent makes of a data set, and what was lost on the way.

    The parent runs twice: without a limit, so that what is too long can be counted, and then on its own result, of
    which it only cuts, packs and shuffles the tokens.

    Args:
        prepare: the parent's `_prepare_dataset`, which takes the other arguments.

    Returns:
        the data set, and of one that is no stream `rows`, `cut` (longer than `max_length`), `dropped` (without a label
        within it) and `longest` (tokens).

    Raises:
        ValueError: a bad row, by its number and column, or no row with a label within `max_length`.
    """
    has_transform = isinstance(dataset, Dataset) and dataset.format["type"] == "custom"  # which the parent refuses
    is_tokenised = len(dataset) and "input_ids" in dataset.column_names if isinstance(dataset, Dataset) else False
    if is_tokenised and not has_transform:
        check_tokenised(dataset, "input_ids", split)
    elif formatting_func is None and not has_transform:
        has_template = tokenizer.chat_template is not None
        check = partial(check_row, text_field=args.dataset_text_field, has_template=has_template)
        dataset = checked_rows(dataset, split, check)
    try:
        with shown_to_parent(args, max_length=None, shuffle_dataset=False):
            whole = prepare(dataset, tokenizer, args, False, formatting_func, split)
    except TemplateError as error:
        raise row_refused_by_template(dataset, split, partial(_render, tokenizer), error) from error
    report = {}
    if isinstance(whole, Dataset):
        report = count_cut(whole, args.max_length, keeps_end=args.truncation_mode == "keep_end")
        # Packing drops no row, and two of its three strategies cut none.
        is_cut = not packing or args.packing_strategy == "bfd"
        _say_what_is_lost(report, split, args.max_length, is_cut=is_cut, is_dropped=not packing)
    elif args.max_length is not None and not packing:
        logger.warning("%s is a stream: what max_length=%d cuts of its rows is not counted", split, args.max_length)
    return prepare(whole, tokenizer, args, packing, None, split), report


def check_row(row: Mapping[str, Any], *, text_field: str, has_template: bool) -> None:
    """Check a row of any format that TRL's `SFTTrainer` takes.

    Raises:
        ValueError: names the column, its value and the fix; the caller adds the split and the row number.
    """
    if "input_ids" in row:  # of a stream
        ids = row["input_ids"]
        if not (isinstance(ids, list) and ids and all(isinstance(token, int) for token in ids)):
            raise ValueError(f"column 'input_ids' is {ids!r:.80}; give it a list of token ids, or drop the row")
        return
    if "prompt" in row:
        if "completion" not in row:
            raise ValueError(
                f"the row has 'prompt' but no 'completion', only {sorted(row)}; add it, or rename 'prompt'"
            )
        columns = ["prompt", "completion"]
    else:
        columns = [_text_column(row, text_field)]
    for name in columns:
        value = _as_messages(row[name]) if name == "conversations" else row[name]
        check_text(value, name, may_be_empty=name == "prompt", is_answer=name == "completion")
        if isinstance(value, list) and not has_template:
            raise ValueError(f"column {name!r} has chat messages but the tokenizer no chat_template; set one")
    if len(columns) == 2:
        check_same_kind(row, *columns)
    elif (columns == [text_field]) != isinstance(row[columns[0]], str):
        raise ValueError(
            f"column {columns[0]!r} is a {type(row[columns[0]]).__name__}; texts belong in {text_field!r} and chat "
            "messages in 'messages': rename it"
        )


def _text_column(row: Mapping[str, Any], text_field: str) -> str:
    for name in ("conversations", "messages"):
        if name in row and (isinstance(row[name], list) or text_field not in row):
            return name
    if text_field not in row:
        raise ValueError(
            f"the row has only the columns {sorted(row)}; give it {text_field!r} (dataset_text_field), 'messages', or "
            "'prompt' and 'completion'"
        )
    return text_field


def _as_messages(value: Any) -> Any:
    """Messages of `from` and `value`, which TRL takes too, as those of `role` and `content`."""
    if isinstance(value, list) and all(isinstance(m, Mapping) and {"from", "value"} <= m.keys() for m in value):
        return [{"role": message["from"], "content": message["value"]} for message in value]
    return value


def _render(tokenizer: Any, row: Mapping[str, Any]) -> None:
    if "prompt" not in row:
        tokenizer.apply_chat_template(row.get("messages") or _as_messages(row["conversations"]), tokenize=False)
        return
    tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)


def count_cut(dataset: Dataset, max_length: int | None, *, keeps_end: bool) -> DatasetReport:
    """Rows of a tokenised data set with `input_ids` and `labels`, and what a limit takes of them.

    Returns:
        `rows`, `longest` (tokens), `cut` (rows longer than the limit), `dropped` (rows without a label within it), and
        `needed`: the lowest limit within which some row has a label, or 0 where none has one anywhere.
    """
    limit = np.iinfo(np.int64).max if max_length is None else max_length
    report = {"rows": len(dataset), "longest": 0, "cut": 0, "dropped": 0, "needed": 0}
    for table in dataset.select_columns(["labels"]).with_format("arrow").iter(ROWS_PER_CHUNK):
        lists = table.column("labels").combine_chunks()
        lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        labels = pc.list_flatten(lists).to_numpy(zero_copy_only=False)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        places = np.arange(len(labels)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        is_label = labels != IGNORED_LABEL
        if keeps_end:
            places = np.repeat(lengths, lengths) - 1 - places
        reach = places[is_label] + 1  # the limit that a label is within
        report["longest"] = max(report["longest"], int(lengths.max(initial=0)))
        report["cut"] += int((lengths > limit).sum())
        report["dropped"] += len(lengths) - len(np.unique(rows[is_label][reach <= limit]))
        if reach.size:
            report["needed"] = min(report["needed"] or int(reach.min()), int(reach.min()))
    return report


def _say_what_is_lost(
    report: DatasetReport, split: str, max_length: int | None, *, is_cut: bool, is_dropped: bool
) -> None:
    """Log what is lost, with its share.

    Raises:
        ValueError: all.
    """
    rows, cut, dropped = report["rows"], report["cut"], report["dropped"]
    if not report["needed"]:
        raise ValueError(f"no token of the {rows} rows of {split} has a label, so there is nothing to learn from")
    if is_dropped and dropped == rows:
        raise ValueError(
            f"none of the {rows} rows of {split} has a labelled token within max_length={max_length}; raise it to "
            f"{report['needed']} at least, and to {report['longest']} to keep all"
        )
    if cut and is_cut:
        logger.warning(
            "%s: %d of %d rows (%.1f %%) are longer than max_length=%s and are cut, %d of them are dropped because no "
            "labelled token is left; the longest has %d tokens",
            *(split, cut, rows, 100 * cut / rows, max_length, dropped if is_dropped else 0, report["longest"]),
        )
