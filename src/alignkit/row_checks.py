"""What is wrong with a row of a data set, said before it is tokenised: split, row, column, value and the fix."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from peft.utils import AuxiliaryTrainingWrapper

STANDARD_ROLES = ("system", "developer", "user", "assistant", "tool")
ROWS_PER_CHUNK = 10_000  # of token ids
ROWS_AT_A_TIME = 1_000  # of texts

AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)
RowCheck = Callable[[Mapping[str, Any]], None]


# ---- One value ----


def check_text(value: Any, column: str, *, may_be_empty: bool = False, is_answer: bool = False) -> None:
    """Check a text, or a list of chat messages.

    Args:
        value: of the column.
        column: its name, for the message.
        may_be_empty: as a prompt may.
        is_answer: messages have to hold one of the assistant's.

    Raises:
        ValueError: another type, nothing but white space, half a surrogate pair, which no tokenizer takes, a message
            without a role or without content, or a role that is a misspelt one. Names the column, not the row.
    """
    if isinstance(value, str):
        if not value.strip() and not may_be_empty:
            raise ValueError(f"column {column!r} is empty ({value!r}); drop the row or give it a text")
        check_characters(value, column)
        return
    is_messages = isinstance(value, list) and all(isinstance(m, Mapping) and "role" in m for m in value)
    if not is_messages:
        raise ValueError(
            f"column {column!r} must be a string or a list of messages with 'role' and 'content', "
            f"got {type(value).__name__} {value!r:.80}"
        )
    if not may_be_empty and not any(message.get("content") or message.get("tool_calls") for message in value):
        raise ValueError(f"column {column!r} has no message with content ({value!r}); drop the row or give it a text")
    for number, message in enumerate(value):
        _check_message(message, f"{column}[{number}]")
    if is_answer and not any(message["role"] == "assistant" for message in value):
        roles = sorted({message["role"] for message in value})
        raise ValueError(f"column {column!r} has no message of the role 'assistant', only of {roles}; give it one")


def check_same_kind(row: Mapping[str, Any], first: str, second: str) -> None:
    """Raise a ValueError if one of two checked columns is a text and the other a list of messages."""
    if isinstance(row[first], str) != isinstance(row[second], str):
        kinds = [type(row[name]).__name__ for name in (first, second)]
        raise ValueError(
            f"column {first!r} is a {kinds[0]} and {second!r} a {kinds[1]}; "
            "make both strings or both lists of messages"
        )


def check_characters(text: str, name: str) -> None:
    """Raise a ValueError if a text has half a surrogate pair, which JSON can hold and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(
            f"{name} has {half!r} at character {error.start}, half of a surrogate pair and no character; write the "
            "row as UTF-8 again, or replace it"
        ) from None


def _check_message(message: Mapping[str, Any], name: str) -> None:
    role, content = message["role"], message.get("content")
    if not isinstance(role, str) or not role.strip():
        raise ValueError(f"the role of {name} is {role!r}; name who speaks, such as 'user' or 'assistant'")
    if role not in STANDARD_ROLES and role.strip().isalpha():  # templates may have more, but none so near to these
        near = difflib.get_close_matches(role.strip().lower(), STANDARD_ROLES, n=1, cutoff=0.75)
        if near:
            raise ValueError(f"the role of {name} is {role!r}; the nearest role is {near[0]!r}")
    if isinstance(content, str):
        check_characters(content, name)
    elif content is None:
        if not any(value for key, value in message.items() if key not in ("role", "name")):
            raise ValueError(f"{name} has no content ({dict(message)!r:.80}); give it a text, or drop the row")
    elif not (isinstance(content, list) and all(isinstance(part, Mapping) for part in content)):
        raise ValueError(f"the content of {name} is a {type(content).__name__} {content!r:.40}; make it a text")


# ---- A data set ----


def checked_rows(dataset: AnyDataset, split: str, check: RowCheck) -> AnyDataset:
    """A data set with all rows checked; those of a stream when they are read.

    Args:
        dataset: before tokenisation.
        split: its name, for messages.
        check: raises a ValueError on a bad row.

    Raises:
        ValueError: no row, or the first bad one, by its number.
    """
    check_numbered = partial(_check_numbered, split=split, check=check)
    refuse_empty(dataset, split)
    if isinstance(dataset, IterableDataset):
        return dataset.map(check_numbered, with_indices=True)
    for index, row in enumerate(rows_of(dataset)):
        check_numbered(row, index)
    return dataset


def rows_of(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The rows in their order, whatever the format; read some at a time, which is much faster than one by one."""
    for part in dataset.with_format(None).iter(ROWS_AT_A_TIME):
        for values in zip(*part.values(), strict=True):
            yield dict(zip(part, values, strict=True))


def refuse_empty(dataset: Any, split: str) -> None:
    """Raise a ValueError if a data set or a stream has no row; what is neither is for the trainer to refuse."""
    if isinstance(dataset, IterableDataset) and next(iter(dataset), None) is None:
        raise ValueError(f"the {split} stream is empty; give it at least one row")
    if isinstance(dataset, Dataset) and not len(dataset):
        raise ValueError(f"the {split} dataset is empty; give it at least one row")


def _check_numbered(row: Any, index: int, *, split: str, check: RowCheck) -> Any:
    try:
        check(row)
    except ValueError as error:
        raise ValueError(f"{split} row {index}: {error}") from error
    return row


def row_refused_by_template(
    dataset: Any, split: str, render: Callable[[Mapping[str, Any]], Any], error: TemplateError
) -> ValueError:
    """The error that names the first row whose messages a chat template refuses, once it has refused one."""
    for index, row in enumerate(dataset):
        try:
            render(row)
        except TemplateError as found:
            return ValueError(f"{split} row {index}: the chat template refuses the messages: {found}")
    return ValueError(f"{split}: the chat template refuses the messages of a row: {error}")


# ---- Tokens ----


def check_tokenised(dataset: Dataset, column: str, split: str) -> None:
    """Refuse what is no list of token ids in a column, by columns and not row by row.

    Raises:
        ValueError: another type, or the first row that is null or empty.
    """
    start = 0
    for table in dataset.select_columns([column]).with_format("arrow").iter(ROWS_PER_CHUNK):
        lists = table.column(column).combine_chunks()
        if not (_is_list(lists.type) and pa.types.is_integer(lists.type.value_type)):
            raise ValueError(f"{split}: column {column!r} holds {lists.type}; it must hold lists of token ids")
        empty = np.flatnonzero(pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False) == 0)
        if empty.size:
            value = lists[int(empty[0])].as_py()
            raise ValueError(f"{split} row {start + empty[0]}: column {column!r} is {value}; drop the row")
        start += len(lists)


def check_token_ids(
    dataset: Any, columns: Sequence[str], model: Any, tokenizer: Any, split: str, *, numbers: str | None = None
) -> None:
    """Refuse tokens for which the model has no embedding, as those of another model's tokenizer. Streams pass.

    Args:
        dataset: tokenised.
        columns: of token ids, `(n, ragged)` or `(n, ragged, ragged)`.
        model: with input embeddings.
        numbers: column of the rows' numbers for messages, where rows have been dropped.

    Raises:
        ValueError: names the row, the token and the sizes.
    """
    if not isinstance(dataset, Dataset):
        return
    embeddings = model.get_input_embeddings()
    if isinstance(embeddings, AuxiliaryTrainingWrapper):  # of PEFT, around one of which some tokens are trained
        embeddings = embeddings.original_module
    n_embeddings = embeddings.num_embeddings
    present = [name for name in columns if name in dataset.column_names]
    start = 0
    selected = dataset.select_columns([*present, *([numbers] if numbers else [])])
    for table in selected.with_format("arrow").iter(ROWS_PER_CHUNK):
        for name in present:
            row, token = _first_unknown(table.column(name).combine_chunks(), n_embeddings)
            if token is not None:
                number = table.column(numbers)[row].as_py() if numbers else start + row
                check_tokens([token], n_embeddings, tokenizer, f"{split} row {number}")
        start += len(table)


def check_tokens(ids: Sequence[int], n_embeddings: int, tokenizer: Any, where: str) -> None:
    """Raise a ValueError if the model has no embedding for one of these tokens."""
    lowest, highest = min(ids, default=0), max(ids, default=0)
    if lowest < 0:
        raise ValueError(f"{where}: {lowest} is no token, of which the first is 0")
    if highest >= n_embeddings:
        raise ValueError(
            f"{where}: token {highest} ({tokenizer.convert_ids_to_tokens(highest)!r}) has no embedding, of which the "
            f"model has {n_embeddings} and the tokenizer {len(tokenizer)}; use the model's own tokenizer, or call "
            "model.resize_token_embeddings"
        )


def _first_unknown(lists: pa.Array, n_embeddings: int) -> tuple[int, int | None]:
    """The first row with a token that has no embedding, and the token; None where there is none."""
    rows = np.arange(len(lists))
    while _is_list(lists.type):
        rows, lists = rows[pc.list_parent_indices(lists).to_numpy()], pc.list_flatten(lists)
    tokens = lists.to_numpy(zero_copy_only=False)
    unknown = np.flatnonzero((tokens < 0) | (tokens >= n_embeddings))
    return (int(rows[unknown[0]]), lists[int(unknown[0])].as_py()) if unknown.size else (0, None)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def check_fills_a_batch(args: Any, dataset: Any) -> None:
    """Raise a ValueError if `dataloader_drop_last` would drop the only batch, which the Trainer ends after no step."""
    needed = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and isinstance(dataset, Dataset) and len(dataset) < needed:
        raise ValueError(
            f"train has {len(dataset)} rows, a batch takes {needed} and dataloader_drop_last=True drops what is "
            "smaller: no step would be taken; set it to False, or per_device_train_batch_size lower"
        )
