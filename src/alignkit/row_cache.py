"""Values per row of a data set on disk: float tensors (n, H) with n differing from row to row, under 16-byte keys.

One Arrow IPC file per writing process. Reading maps the files into memory, so that a row costs the pages it lies on.
What the values mean (which weights, which layout) is written into every file and compared when the cache is opened: a
cache of other weights is an error, never a wrong number. So is a row whose checksum is not that of its values, when it
is first read, and a file without checksums. [`GrowingRowCache`] is the cache that several runs share and add to.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from alignkit.row_file import (
    KEY_BYTES,
    SCHEMA,
    DamagedFileError,
    StaleCacheError,
    StoredRow,
    checksum,
    open_rows,
    whole_meaning,
)

__all__ = ["DamagedFileError", "RowCache", "RowCacheWriter", "StaleCacheError", "row_key"]

BATCH_BYTES = 16 * 2**20


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
        name: of the file, in place of that of a part.

    Raises:
        ValueError: a dtype that cannot be stored.
        OSError: the file cannot be written; names it. Nothing is left behind.
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
        name: str | None = None,
    ):
        self._path = Path(folder) / (name or f"part-{rank:05d}-of-{world_size:05d}.arrow")
        self._unfinished = self._path.with_suffix(".unfinished")
        self._schema = SCHEMA.with_metadata({"meaning": json.dumps(whole_meaning(meaning, dtype, width))})
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
        is_whole = False
        try:
            if kind is None:
                self._flush()
                with self._errors_that_name_the_file():
                    self._arrow.close()
                    self._file.flush()
                    os.fsync(self._file.fileno())
                is_whole = True
        finally:
            # A disk that is full refuses what is still buffered once more.
            with suppress(OSError):
                self._file.close()
            if not is_whole:
                self._unfinished.unlink()
        if is_whole:
            self._unfinished.replace(self._path)

    def _flush(self) -> None:
        if not self._pending:
            return
        keys, contents = zip(*self._pending, strict=True)
        offsets = np.cumsum([0, *map(len, contents)], dtype=np.int64)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.concatenate(contents))]
        values = pa.Array.from_buffers(pa.large_binary(), len(contents), buffers)
        checksums = pa.array(map(checksum, keys, contents), pa.uint64())
        columns = [pa.array(keys, pa.binary(KEY_BYTES)), checksums, values]
        with self._errors_that_name_the_file():
            self._arrow.write_batch(pa.record_batch(columns, schema=self._schema))
        self._pending, self._pending_bytes = [], 0

    @contextmanager
    def _errors_that_name_the_file(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(self._path)) from error


class RowCache:
    """A finished cache: `cache[key]` is the tensor (n, H) that was written under the key. Made by `open`."""

    def __init__(self, dtype: torch.dtype, width: int, rows: dict[bytes, StoredRow]):
        self._dtype = dtype
        self._width = width
        self._rows = rows
        self._intact: set[bytes] = set()

    @classmethod
    def open(cls, folder: str | Path, *, meaning: Mapping[str, str], dtype: torch.dtype, width: int) -> "RowCache":
        """Map all parts of a cache into memory; the arguments are those of the writer.

        Raises:
            StaleCacheError: the cache means something else; names what differs.
            FileNotFoundError: no cache in the folder, or a part of it is missing.
            ValueError: a file that is cut off or damaged, or parts of several caches in one folder.
        """
        rows: dict[bytes, StoredRow] = {}
        for path in _parts(Path(folder)):
            rows = open_rows(path, meaning=meaning, dtype=dtype, width=width) | rows
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
            DamagedFileError: the row is not as it was written; found when it is read for the first time.
        """
        if key not in self._rows:
            raise KeyError(f"the cache has no row {key.hex()} among its {len(self)}; it was made of other rows")
        row = self._rows[key]
        if key not in self._intact:
            if not row.is_intact(key):
                raise DamagedFileError(row.path, f"row {key.hex()} is not as it was written")
            self._intact.add(key)
        return row.values(self._dtype, self._width)


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
