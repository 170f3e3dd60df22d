"""Verdicts on disk, so that what was asked once is not paid twice: one JSON line each.

Several processes may share a file, and one that is killed at any moment costs at most the line it was writing. Where a
request stands there twice, the first line counts, for every reader. Neither the key of the API nor the address of the
judge is kept: the same model elsewhere is taken for the same.
"""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from alignkit.evaluation.whole_lines import append_line, finished_lines

START = '{"request": '
FIELDS = {"request": str, "model": str, "text": str, "refused": bool}


def request_key(body: dict[str, Any]) -> str:
    """SHA-256 of a request: model, messages and every setting."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class VerdictCache:
    """What judges said, by request.

    Args:
        path (`Path`, *optional*): the file; None keeps nothing.

    Raises:
        ValueError: a line that is none of a cache; names file and line.
        OSError: a file that cannot be read.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self._lock = threading.Lock()
        self._said: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for number, line in enumerate(finished_lines(path), 1):
                request, said = _parse(path, number, line)
                self._said.setdefault(request, said)

    def get(self, request: str) -> dict[str, Any] | None:
        """`model`, `text` and `refused` of what was said to a request; None if it was not asked."""
        return self._said.get(request)

    def put(self, request: str, *, model: str, text: str, refused: bool) -> None:
        """Keep what was said; it is on the disk when this returns.

        Raises:
            OSError, ValueError: as [`alignkit.evaluation.whole_lines.append_line`] says.
        """
        if self._path is None:
            return
        said = {"model": model, "text": text, "refused": refused}
        line = json.dumps({"request": request, **said})  # ASCII: a text may hold half a surrogate pair
        with self._lock:
            append_line(self._path, line, start=START)
            self._said.setdefault(request, said)


def _parse(path: Path, number: int, line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        value = json.loads(line)
        if not all(isinstance(value[name], kind) for name, kind in FIELDS.items()):
            raise TypeError(f"its fields must be {FIELDS}")
        return value.pop("request"), {"model": value["model"], "text": value["text"], "refused": value["refused"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}, line {number} is none of a judge's cache; remove it or give another file"
        ) from error
