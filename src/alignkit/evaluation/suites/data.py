"""The rows that suites are made of: where they are found, how they are read, and which of them a limit takes."""

import csv
import gzip
import io
import json
import os
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
DATA_VARIABLE = "ALIGNKIT_DATA"
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz")


@dataclass(frozen=True)
class Source:
    """Where a suite's rows are when its `data` is not given.

    Args:
        folder, file: below the folder that `ALIGNKIT_DATA` names.
        hub: arguments of `datasets.load_dataset`, for where there is no such file; None: not on the hub.
    """

    folder: str
    file: str
    hub: Mapping[str, str] | None = None


def take(items: Sequence[T], limit: int | None, *, seed: int = 0) -> list[T]:
    """`limit` of the items, drawn by the seed and in their order: the same for every model. All of them for None.

    What a smaller limit takes, a larger one takes too.

    Raises:
        ValueError: a limit below 1, or no items.
    """
    if not items:
        raise ValueError("there are no items to take; give data with at least one row")
    if limit is None:
        return list(items)
    if limit < 1:
        raise ValueError(f"limit={limit} must be at least 1, or None for all items")
    order = list(range(len(items)))
    random.Random(f"take:{seed}").shuffle(order)
    return [items[place] for place in sorted(order[:limit])]


def data_file(data: Path | None, source: Source) -> Path | None:
    """The file to read: `data` itself, or the source's file in it, or below `$ALIGNKIT_DATA`.

    None if only the hub is left.

    Raises:
        FileNotFoundError: names the file that should be there.
        ValueError: no `data`, no `ALIGNKIT_DATA`, and the source is not on the hub.
    """
    if data is not None:
        path = data / source.file if data.is_dir() else data
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; give the file {source.file}, or the folder it is in")
        return path
    root = os.environ.get(DATA_VARIABLE)
    if root:
        path = Path(root, source.folder, source.file)
        if path.is_file():
            return path
        if source.hub is None:
            raise FileNotFoundError(f"{path} does not exist; correct {DATA_VARIABLE}, or give the data of the suite")
    if source.hub is None:
        raise ValueError(
            f"there is no {source.folder}/{source.file}; set {DATA_VARIABLE} to the folder of data, or give its path"
        )
    return None


def load_rows(data: Path | None, source: Source, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    """All rows of a source, each with `fields`; see [`data_file`] for where they come from.

    Raises:
        ValueError, OSError: as [`data_file`] and [`read_rows`] say, or a dataset that cannot be loaded from the hub.
    """
    path = data_file(data, source)
    if path is not None:
        return read_rows(path, fields)
    from datasets import load_dataset  # here, because it is slow to import and files do without it

    assert source.hub is not None
    name = source.hub["path"]
    try:
        rows = [dict(row) for row in load_dataset(**source.hub)]
    except ConnectionError as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"{name} cannot be had from the hub ({reason}), and there is no {source.folder}/{source.file} in "
            f"{DATA_VARIABLE}={os.environ.get(DATA_VARIABLE, '')}; put it there, or give the data of the suite"
        ) from error
    for number, row in enumerate(rows):
        _check_row(row, fields, f"{name}, row {number}")
    return rows


def read_rows(path: Path, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, of a JSON list or of a CSV file, gzipped or not; further fields are kept.

    Args:
        fields: what every row must have, with its type. Values of a CSV file are texts.

    Raises:
        ValueError: an unknown ending, no rows, or a row that is not as it should be; names file, line and field.
        OSError: a file that cannot be read.
    """
    if not path.name.endswith(ENDINGS):
        raise ValueError(f"{path} ends in none of {', '.join(ENDINGS)}; give such a file")
    try:
        content = path.read_bytes()
        # A spreadsheet puts a mark in front of the first name.
        text = (gzip.decompress(content) if path.name.endswith(".gz") else content).decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 at byte {error.start}; convert it") from error
    if path.name.endswith((".csv", ".csv.gz")):
        found = _csv_rows(path, text)
    elif path.name.endswith(".json"):
        found = _json_rows(path, text)
    else:
        found = _json_lines(path, text)
    rows = []
    for where, row in found:
        _check_row(row, fields, f"{path}, {where}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no rows; give at least one")
    return rows


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines, which also breaks at characters that a JSON string may hold, such as U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from error


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds {rows!r:.40} where a list of rows should be")
    for number, row in enumerate(rows):
        yield f"row {number}", row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row:
                raise ValueError(f"{path}, line {reader.line_num} has more cells than the header; quote its commas")
            yield f"line {reader.line_num}", {name: value for name, value in row.items() if value is not None}
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is no CSV: {error}") from error


def _check_row(row: Any, fields: Mapping[str, type], where: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where} holds {row!r:.40} where an object with {', '.join(fields)} should be")
    for name, kind in fields.items():
        if name not in row:
            raise ValueError(f"{where} has no {name!r}; it has {', '.join(map(str, row)) or 'nothing'}")
        if not isinstance(row[name], kind) or (kind is not bool and isinstance(row[name], bool)):
            raise ValueError(f"{where}: {name} is {row[name]!r:.60}; it must be of type {kind.__name__}")
