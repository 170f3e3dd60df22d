"""All pairs of a tokenised dataset at once: what is wrong with them, and their keys. By columns, never row by row."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from alignkit.dpo.truncation import PromptTruncation, cut_pair
from alignkit.row_cache import row_key

logger = logging.getLogger(__name__)

ROWS_PER_CHUNK = 10_000


def check_pairs(
    dataset: Dataset, name: str, *, max_length: int | None = None, max_prompt_length: int | None = None
) -> None:
    """Refuse pairs from which nothing can be learned, and values of a `beta` column that are none.

    Pairs that are cut are counted in a warning, and so are those that differ only in tokens that are cut: they have a
    constant loss and no gradient.

    Args:
        dataset: with columns `prompt_ids`, `chosen_ids`, `rejected_ids` and perhaps `beta`.
        name: of the dataset, for messages.
        max_length, max_prompt_length: see [`cut_pair`].

    Raises:
        ValueError: a completion without tokens, a completion of one token after an empty prompt, which nothing
            predicts, a chosen completion that is the rejected one, or a `beta` that is missing, NaN, infinite, not
            positive (in float32) or not a number. Names the row.
    """
    if "beta" in dataset.column_names:
        _check_beta(dataset, name)
    identical_when_cut: list[int] = []
    n_cut = 0
    for start, prompt, chosen, rejected in _chunks(dataset):
        n_prompt = _lengths(prompt)
        n_chosen, n_rejected = _lengths(chosen), _lengths(rejected)
        for side, n_tokens in (("chosen", n_chosen), ("rejected", n_rejected)):
            _refuse_unpredicted(name, side, start, n_prompt, n_tokens)
        kept_prompt = n_prompt
        for limit in (max_prompt_length, None if max_length is None else max_length - 1):
            kept_prompt = kept_prompt if limit is None else np.minimum(kept_prompt, limit)
        room = np.iinfo(np.int64).max if max_length is None else max_length - kept_prompt
        n_cut += int(((n_prompt > kept_prompt) | (np.maximum(n_chosen, n_rejected) > room)).sum())
        for row in _equal_starts(chosen, rejected, np.minimum(n_chosen, room), np.minimum(n_rejected, room)):
            if chosen[row].values.equals(rejected[row].values):
                raise ValueError(
                    f"row {start + row} of the {name} has the same tokens as chosen and as rejected, so there is "
                    "nothing to prefer; leave such rows out of the dataset"
                )
            identical_when_cut.append(start + row)
    if n_cut:
        logger.warning(
            "%d of %d pairs of the %s (%.1f %%) are cut to max_length=%s and max_prompt_length=%s",
            *(n_cut, len(dataset), name, 100 * n_cut / len(dataset), max_length, max_prompt_length),
        )
    if identical_when_cut:
        logger.warning(
            "%d of %d pairs of the %s, the first of them row %d, differ only in tokens that are cut, and nothing is "
            "learned from them; raise max_length, which is %s",
            *(len(identical_when_cut), len(dataset), name, identical_when_cut[0], max_length),
        )


def pair_keys(
    dataset: Dataset,
    *,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    prompt_truncation: PromptTruncation = "keep_end",
) -> tuple[list[tuple[bytes, bytes]], np.ndarray]:
    """The keys (chosen, rejected) of every pair as [`PairCollator`] gives them, and its number of tokens `(n,)`."""
    limits: dict[str, Any] = {
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
        "prompt_truncation": prompt_truncation,
    }
    keys, n_tokens = [], []
    for _, *columns in _chunks(dataset):
        for prompt, chosen, rejected in zip(*(_rows(column) for column in columns), strict=True):
            pair = cut_pair(prompt, chosen, rejected, **limits)
            keys.append((row_key(pair.prompt, pair.chosen), row_key(pair.prompt, pair.rejected)))
            n_tokens.append(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)))
    return keys, np.array(n_tokens, dtype=np.int64)


def _chunks(dataset: Dataset) -> Iterator[tuple[int, pa.Array, pa.Array, pa.Array]]:
    """(number of the first row, prompts, chosen, rejected) of some thousand rows at a time."""
    names = ["prompt_ids", "chosen_ids", "rejected_ids"]
    start = 0
    for table in dataset.select_columns(names).with_format("arrow").iter(ROWS_PER_CHUNK):
        prompt, chosen, rejected = (table.column(name).combine_chunks() for name in names)
        yield start, prompt, chosen, rejected
        start += len(table)


def _lengths(lists: pa.Array) -> np.ndarray:
    return pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _rows(lists: pa.Array) -> list[np.ndarray]:
    return np.split(_values(lists), np.cumsum(_lengths(lists))[:-1])


def _values(lists: pa.Array) -> np.ndarray:
    return pc.list_flatten(lists).to_numpy(zero_copy_only=False)


def _refuse_unpredicted(name: str, side: str, start: int, n_prompt: np.ndarray, n_tokens: np.ndarray) -> None:
    empty = np.flatnonzero(n_tokens == 0)
    if empty.size:
        raise ValueError(
            f"the {side} completion in row {start + empty[0]} of the {name} has no tokens; leave such rows out of the "
            "dataset"
        )
    unpredicted = np.flatnonzero((n_tokens == 1) & (n_prompt == 0))
    if unpredicted.size:
        raise ValueError(
            f"the {side} completion in row {start + unpredicted[0]} of the {name} is one token after an empty prompt, "
            "so nothing predicts it; give the row a prompt"
        )


def _equal_starts(chosen: pa.Array, rejected: pa.Array, n_chosen: np.ndarray, n_rejected: np.ndarray) -> list[int]:
    """The rows whose first `n_chosen` and `n_rejected` tokens, at least one each, are the same."""
    rows = np.flatnonzero(n_chosen == n_rejected)
    if rows.size == 0:
        return []
    lengths = n_chosen[rows]
    starts = np.cumsum(lengths) - lengths
    within = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    tokens = []
    for column in (chosen, rejected):
        all_lengths = _lengths(column)
        first = (np.cumsum(all_lengths) - all_lengths)[rows]
        tokens.append(_values(column)[np.repeat(first, lengths) + within])
    n_different = np.add.reduceat(tokens[0] != tokens[1], starts, dtype=np.int64)
    return rows[n_different == 0].tolist()


def _check_beta(dataset: Dataset, name: str) -> None:
    column = dataset.select_columns(["beta"]).with_format("arrow")[:].column("beta")
    way_out = "give every row a finite number above 0, or leave the column out"
    if pa.types.is_null(column.type) or column.null_count:
        first = pc.index(pc.is_null(column), True).as_py()
        raise ValueError(f"row {first} of the {name} has no beta; {way_out}")
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise ValueError(f"beta in row 0 of the {name} is {column[0].as_py()!r}, which is not a number; {way_out}")
    with np.errstate(over="ignore"):
        values = column.to_numpy().astype(np.float32)
    wrong = np.flatnonzero(~((values > 0) & (values < np.inf)))
    if wrong.size:
        raise ValueError(f"beta in row {wrong[0]} of the {name} is {column[int(wrong[0])].as_py()}; {way_out}")
