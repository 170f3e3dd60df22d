"""Values per row of a data set on disk: float tensors (n, H) with n differing from row to row, under 16-byte keys.

One Arrow IPC file per writing process. Reading maps the files into memory, so that a row costs the pages it lies on.
What the values mean (which weights, which layout) is written into every file and compared when the cache is opened: a
cache of other weights is an error, never a wrong number.
"""

import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

__all__ = ["RowCache", "RowCacheWriter", "StaleCacheError", "row_key"]

KEY_BYTES = 16
BATCH_BYTES = 16 * 2**20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCHEMA = pa.schema([("key", pa.binary(KEY_BYTES)), ("values", pa.large_binary())])


class StaleCacheError(ValueError):
    """The cache on disk was made of something else than what is asked for."""


def row_key(*parts: bytes | Sequence[int] | Tensor) -> bytes:
    """The 16-byte key of a row: a digest of the parts, whose order and boundaries matter.

    Args:
        parts: bytes, or whole numbers in a sequence or a tensor `(n,)`; the same numbers give the same key in both.

    Raises:
        TypeError: a part of another type, such as a string or a tensor of floats.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        if isinstance(part, bytes):
            kind, content = b"b", part
        else:
            numbers = part.cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)
            if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "biu"):
                raise TypeError(f"a part of a row's key is bytes or a row of whole numbers, not {part!r}")
            kind, content = b"i", numbers.astype("<i8").tobytes()
        digest.update(kind + len(content).to_bytes(8, "little") + content)
    return digest.digest()


class RowCacheWriter:
    """Writes one part of a cache; a context manager. The part exists under its name only after a clean exit.

    Args:
        folder: made if it does not exist. Every rank writes into the same one.
        meaning: what the values are made of, for example the fingerprint of the weights. Any difference counts.
        dtype: float32, bfloat16 or float16.
        width: H.
        rank, world_size: which part this is, of how many.

    Raises:
        ValueError: a dtype that cannot be stored.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        meaning: Mapping[str, str],
        dtype: torch.dtype,
        width: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self._path = Path(folder) / f"part-{rank:05d}-of-{world_size:05d}.arrow"
        self._unfinished = self._path.with_suffix(".unfinished")
        self._schema = SCHEMA.with_metadata({"meaning": json.dumps(_whole_meaning(meaning, dtype, width))})
        self._dtype = dtype
        self._width = width
        self._keys: set[bytes] = set()
        self._pending: list[tuple[bytes, np.ndarray]] = []
        self._pending_bytes = 0

    def __enter__(self) -> "RowCacheWriter":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._unfinished.open("wb")
        self._arrow = pa.ipc.new_file(self._file, self._schema)
        return self

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def write(self, key: bytes, values: Tensor) -> None:
        """Add a row; a key that this part holds already is skipped.

        Args:
            key: from `row_key`.
            values: (n, H) in the cache's dtype, n may be 0.

        Raises:
            ValueError: another shape, dtype or length of key.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}; make it with row_key")
        if values.ndim != 2 or values.shape[1] != self._width or values.dtype != self._dtype:
            raise ValueError(
                f"values of shape {tuple(values.shape)} and {values.dtype} do not fit a cache of rows "
                f"(n, {self._width}) in {self._dtype}"
            )
        if key in self._keys:
            return
        self._keys.add(key)
        content = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        # A copy, because the caller may overwrite the tensor before the batch is full.
        self._pending.append((key, content.copy()))
        self._pending_bytes += len(content)
        if self._pending_bytes >= BATCH_BYTES:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._flush()
                self._arrow.close()
                self._file.flush()
                os.fsync(self._file.fileno())
        if kind is not None:
            self._unfinished.unlink()
            return
        self._unfinished.replace(self._path)

    def _flush(self) -> None:
        if not self._pending:
            return
        keys, contents = zip(*self._pending, strict=True)
        offsets = np.cumsum([0, *map(len, contents)], dtype=np.int64)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.concatenate(contents))]
        values = pa.Array.from_buffers(pa.large_binary(), len(contents), buffers)
        self._arrow.write_batch(pa.record_batch([pa.array(keys, pa.binary(KEY_BYTES)), values], schema=self._schema))
        self._pending, self._pending_bytes = [], 0


class RowCache:
    """A finished cache: `cache[key]` is the tensor (n, H) that was written under the key. Made by `open`."""

    def __init__(self, dtype: torch.dtype, width: int, rows: dict[bytes, tuple[mmap.mmap, int, int]]):
        self._dtype = dtype
        self._width = width
        self._rows = rows

    @classmethod
    def open(cls, folder: str | Path, *, meaning: Mapping[str, str], dtype: torch.dtype, width: int) -> "RowCache":
        """Map all parts of a cache into memory; the arguments are those of the writer.

        Raises:
            StaleCacheError: the cache means something else; names what differs.
            FileNotFoundError: no cache in the folder, or a part of it is missing.
            ValueError: a file that is cut off or damaged, or parts of several caches in one folder.
        """
        wanted = _whole_meaning(meaning, dtype, width)
        rows: dict[bytes, tuple[mmap.mmap, int, int]] = {}
        for path in _parts(Path(folder)):
            mapped, reader = _map(path)
            _check_meaning(path, reader, wanted)
            start_of_map = pa.py_buffer(mapped).address
            for key, start, length in _index(path, reader, width * dtype.itemsize):
                rows.setdefault(key, (mapped, start - start_of_map, length))
        return cls(dtype, width, rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __getitem__(self, key: bytes) -> Tensor:
        """The values (n, H) of a row, on the CPU, as a view of the mapped file.

        Only to be read: a write changes what this process reads from then on, though never the file.

        Raises:
            KeyError: no such row.
        """
        if key not in self._rows:
            raise KeyError(f"the cache has no row {key.hex()} among its {len(self)}; it was made of other rows")
        mapped, start, length = self._rows[key]
        if length == 0:
            return torch.empty(0, self._width, dtype=self._dtype)
        count = length // self._dtype.itemsize
        return torch.frombuffer(mapped, dtype=self._dtype, count=count, offset=start).view(-1, self._width)


def _whole_meaning(meaning: Mapping[str, str], dtype: torch.dtype, width: int) -> dict[str, str]:
    names = {torch_dtype: name for name, torch_dtype in DTYPES.items()}
    if dtype not in names:
        raise ValueError(f"dtype={dtype} cannot be stored; choose one of {', '.join(DTYPES)}")
    return {**meaning, "dtype": names[dtype], "width": str(width)}


def _parts(folder: Path) -> list[Path]:
    found = {path.name: path for path in folder.glob("part-*-of-*.arrow")}
    totals = {int(match[1]) for name in found if (match := re.fullmatch(r"part-\d{5}-of-(\d{5})\.arrow", name))}
    if not totals:
        raise FileNotFoundError(f"{folder} holds no finished row cache")
    if len(totals) > 1:
        raise ValueError(f"{folder} holds parts of caches of {sorted(totals)} parts; delete it and make it again")
    [total] = totals
    names = [f"part-{rank:05d}-of-{total:05d}.arrow" for rank in range(total)]
    missing = [name for name in names if name not in found]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; delete it and make it again")
    return [found[name] for name in names]


def _map(path: Path) -> tuple[mmap.mmap, pa.ipc.RecordBatchFileReader]:
    with path.open("rb") as file:
        try:
            # Copy-on-write, because torch warns of every tensor over memory that cannot be written.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
        except (ValueError, pa.ArrowException) as error:
            raise _damaged(path, error) from error
    if not reader.schema.equals(SCHEMA) or b"meaning" not in (reader.schema.metadata or {}):
        raise _damaged(path, "it has other columns than a row cache")
    return mapped, reader


def _damaged(path: Path, reason: object) -> ValueError:
    return ValueError(f"{path} is cut off or damaged ({reason}); delete it and make the cache again")


def _check_meaning(path: Path, reader: pa.ipc.RecordBatchFileReader, wanted: dict[str, str]) -> None:
    cached = json.loads(reader.schema.metadata[b"meaning"])
    differing = sorted(name for name in cached.keys() | wanted.keys() if cached.get(name) != wanted.get(name))
    if differing:
        lines = [f"{name} is {cached.get(name)!r} in the cache and {wanted.get(name)!r} now" for name in differing]
        raise StaleCacheError(
            f"{path} was made of something else: {'; '.join(lines)}. Delete it, or choose another folder"
        )


def _index(path: Path, reader: pa.ipc.RecordBatchFileReader, row_bytes: int) -> Iterator[tuple[bytes, int, int]]:
    """(key, address of the first byte, number of bytes) of every row, without reading the values."""
    for number in range(reader.num_record_batches):
        try:
            batch = reader.get_batch(number)
            batch.validate(full=True)
        except pa.ArrowException as error:
            raise _damaged(path, error) from error
        keys, values = batch.columns
        _, offset_buffer, data = values.buffers()
        offsets = np.frombuffer(offset_buffer, dtype=np.int64)[: len(values) + 1].tolist()
        for key, start, end in zip(keys.to_pylist(), offsets[:-1], offsets[1:], strict=True):
            if (end - start) % row_bytes:
                raise _damaged(path, f"a row of {end - start} bytes")
            yield key, (data.address if data is not None else 0) + start, end - start
