"""A row cache that several runs share and add to.

Every addition is a new file under a name of its own, so that runs that write at the same time never meet. What is
cached under another meaning is in another folder. Files are checked whole when they are first read: a file that is not
as it was written is deleted with one warning, and its rows are as if they had never been there.
"""

import hashlib
import json
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.row_cache import RowCacheWriter
from alignkit.row_file import DamagedFileError, StoredRow, open_rows, whole_meaning

logger = logging.getLogger(__name__)


class GrowingRowCache:
    """`cache[key]` is the tensor (n, H) that this run or another has added under the key.

    Args:
        root: folder of caches of any meaning; each has a folder in it, named by a digest of the meaning.
        meaning: what the values are made of, for example the fingerprint of the weights. Any difference counts.
        dtype: float32, bfloat16 or float16.
        width: H.

    Raises:
        ValueError: a dtype that cannot be stored.
    """

    def __init__(self, root: Path, *, meaning: Mapping[str, str], dtype: torch.dtype, width: int):
        self._meaning, self._dtype, self._width = dict(meaning), dtype, width
        canonical = json.dumps(whole_meaning(meaning, dtype, width), sort_keys=True)
        self.folder = Path(root) / hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
        self._rows: dict[bytes, StoredRow] = {}
        self._seen: set[Path] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __getitem__(self, key: bytes) -> Tensor:
        """The values (n, H) of a row, on the CPU, as a view of the mapped file; only to be read.

        Raises:
            KeyError: no such row.
        """
        if key not in self._rows:
            raise KeyError(f"{self.folder} has no row {key.hex()} among its {len(self)}")
        return self._rows[key].values(self._dtype, self._width)

    def refresh(self) -> None:
        """Take up the files that have come since the last call. A row that several of them hold is read from one."""
        for path in sorted(self.folder.glob("*.arrow")):
            if path in self._seen:
                continue
            self._seen.add(path)
            try:
                rows = self._read_whole(path)
            except FileNotFoundError:
                continue  # another run has found it damaged in the meantime
            except ValueError as error:
                logger.warning("%s is deleted, and its rows are as if they had never been there: %s", path, error)
                path.unlink(missing_ok=True)
                continue
            self._rows = rows | self._rows

    def add(self, rows: Mapping[bytes, Tensor]) -> None:
        """Write rows to a file of their own, which is there whole or not at all; `refresh` takes it up.

        Raises:
            ValueError: values of another shape or dtype.
            OSError: the file cannot be written; names it.
        """
        if not rows:
            return
        settings: dict[str, Any] = {"meaning": self._meaning, "dtype": self._dtype, "width": self._width}
        with RowCacheWriter(self.folder, name=f"{uuid.uuid4().hex}.arrow", **settings) as writer:
            for key, values in rows.items():
                writer.write(key, values)

    def _read_whole(self, path: Path) -> dict[bytes, StoredRow]:
        rows = open_rows(path, meaning=self._meaning, dtype=self._dtype, width=self._width)
        n_damaged = sum(not row.is_intact(key) for key, row in rows.items())
        if n_damaged:
            raise DamagedFileError(path, f"{n_damaged} of its {len(rows)} rows are not as they were written")
        return rows
