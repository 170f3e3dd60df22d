"""One file of a row cache: what it means, its rows, and whether they are as they were written."""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import xxhash
from torch import Tensor

KEY_BYTES = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCHEMA = pa.schema([("key", pa.binary(KEY_BYTES)), ("checksum", pa.uint64()), ("values", pa.large_binary())])


class StaleCacheError(ValueError):
    """The cache on disk was made of something else than what is asked for."""


class DamagedFileError(ValueError):
    """A file of the cache, or a row in it, is not as it was written."""

    def __init__(self, path: Path, reason: object):
        super().__init__(f"{path} is cut off or damaged ({reason}); delete it and make the cache again")


class StoredRow(NamedTuple):
    """Where the values of a row are: `length` bytes from byte `start` of a mapped file."""

    path: Path
    mapped: mmap.mmap
    start: int
    length: int
    checksum: int

    def is_intact(self, key: bytes) -> bool:
        """Whether key and values are those that were written. Reads the whole row."""
        return self.checksum == checksum(key, memoryview(self.mapped)[self.start : self.start + self.length])

    def values(self, dtype: torch.dtype, width: int) -> Tensor:
        """(n, width), a view of the mapped file."""
        if self.length == 0:
            return torch.empty(0, width, dtype=dtype)
        count = self.length // dtype.itemsize
        return torch.frombuffer(self.mapped, dtype=dtype, count=count, offset=self.start).view(-1, width)


def checksum(key: bytes, content: Any) -> int:
    """xxh3 with 64 bits of a key and its values, in anything that is bytes: against accidents, not forgery."""
    digest = xxhash.xxh3_64(key)
    digest.update(content)
    return digest.intdigest()


def whole_meaning(meaning: Mapping[str, str], dtype: torch.dtype, width: int) -> dict[str, str]:
    """The meaning that is compared: the caller's, and what the bytes are.

    Raises:
        ValueError: a dtype that cannot be stored.
    """
    names = {torch_dtype: name for name, torch_dtype in DTYPES.items()}
    if dtype not in names:
        raise ValueError(f"dtype={dtype} cannot be stored; choose one of {', '.join(DTYPES)}")
    return {**meaning, "dtype": names[dtype], "width": str(width)}


def open_rows(path: Path, *, meaning: Mapping[str, str], dtype: torch.dtype, width: int) -> dict[bytes, StoredRow]:
    """Map a file into memory and find its rows, without reading the values.

    Raises:
        StaleCacheError: the file means something else; names what differs.
        DamagedFileError: a file that is cut off or damaged, or of an earlier layout.
        FileNotFoundError: no such file.
    """
    wanted = whole_meaning(meaning, dtype, width)
    with path.open("rb") as file:
        try:
            # Copy-on-write, because torch warns of every tensor over memory that cannot be written.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
            _check_meaning(path, reader.schema, wanted)
            return _index(path, mapped, reader, width * dtype.itemsize)
        except (StaleCacheError, DamagedFileError):
            raise
        # Arrow, numpy and the operating system each have their own words for bytes that make no sense.
        except (ValueError, OSError, pa.ArrowException) as error:
            raise DamagedFileError(path, error) from error


def _index(
    path: Path, mapped: mmap.mmap, reader: pa.ipc.RecordBatchFileReader, row_bytes: int
) -> dict[bytes, StoredRow]:
    start_of_map = pa.py_buffer(mapped).address
    rows: dict[bytes, StoredRow] = {}
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        batch.validate(full=True)
        keys, checksums, values = batch.columns
        _, offset_buffer, data = values.buffers()
        first = data.address - start_of_map if data is not None else 0
        offsets = first + np.frombuffer(offset_buffer, dtype=np.int64)[: len(values) + 1]
        lengths = np.diff(offsets)
        if (lengths % row_bytes).any() or any(column.null_count for column in batch.columns):
            raise DamagedFileError(path, f"a row is missing, or not a multiple of {row_bytes} bytes")
        columns = keys.to_pylist(), offsets.tolist(), lengths.tolist(), checksums.to_pylist()
        for key, start, length, written in zip(*columns, strict=False):  # one offset more than rows
            rows.setdefault(key, StoredRow(path, mapped, start, length, written))
    return rows


def _check_meaning(path: Path, schema: pa.Schema, wanted: dict[str, str]) -> None:
    if not schema.equals(SCHEMA) or b"meaning" not in (schema.metadata or {}):
        raise DamagedFileError(path, "it has other columns than a row cache of this version")
    cached = json.loads(schema.metadata[b"meaning"])
    differing = sorted(name for name in cached.keys() | wanted.keys() if cached.get(name) != wanted.get(name))
    if differing:
        lines = [f"{name} is {cached.get(name)!r} in the cache and {wanted.get(name)!r} now" for name in differing]
        raise StaleCacheError(
            f"{path} was made of something else: {'; '.join(lines)}. Delete it, or choose another folder"
        )
