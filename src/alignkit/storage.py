"""Files that are either whole or absent: written under a temporary name, synced, then renamed.

A process killed at any moment leaves at most a name that ends in `.partial`, which the next attempt removes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

PARTIAL = ".partial"
PICKLED_WEIGHTS = ("pytorch_model*.bin", "adapter_model.bin")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file as a whole, replacing an older one."""
    partial = path.with_name(path.name + PARTIAL)
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object; NaN and infinity, which JSON has not, are a ValueError that names the file."""
    write_text(path, _as_json(path, value, indent=2) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, one object each. Raises like `write_json`."""
    write_text(path, "".join(_as_json(path, row) + "\n" for row in rows))


def _as_json(path: Path, value: Mapping[str, Any], indent: int | None = None) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
        return text.encode(errors="backslashreplace").decode()  # half a surrogate pair, as JSON escapes it
    except ValueError as error:
        raise ValueError(f"{path} cannot hold {value!r:.200}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError, ValueError: no such file, or no JSON object in it; both name the file.
    """
    return _parse(path, _text_of(path))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. Raises like `read_json`, with the number of the line."""
    # Not splitlines, which also breaks at characters that a JSON string may hold, such as U+2028.
    lines = _text_of(path).removesuffix("\n").split("\n")
    return [_parse(path, line, f", line {number}") for number, line in enumerate(lines, 1)]


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 at byte {error.start}") from error


def _parse(path: Path, text: str, where: str = "") -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # of a number of thousands of digits, or of as many brackets, too
        raise ValueError(f"{path}{where} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}{where} holds {value!r:.40} where a JSON object should be")
    return value


@contextmanager
def refused_pickles_named(folder: str | Path | None, *names: str) -> Iterator[None]:
    """Let a pickle that torch refuses, because it could run code, be an error that names the files it may be in.

    Raises:
        ValueError: torch refused one; nothing of it was run.
    """
    try:
        yield
    except UnpicklingError as error:
        found = [str(path) for name in names for path in sorted(Path(str(folder)).glob(name))] or [str(folder)]
        raise ValueError(
            f"{' or '.join(found)} is refused: it holds more than tensors and numbers, and none of it was run"
        ) from error


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes its name only when the block ends without an error.

    Raises:
        FileExistsError: the folder is there already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; remove it to make it again")
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for path in partial.rglob("*"):
        sync(path)
    sync(partial)
    os.rename(partial, folder)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
