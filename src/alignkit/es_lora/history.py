"""`results.jsonl`: one line for each step and each evaluation, written when it is over.

A record is a function of the seed and the settings, without times, so that a resumed run writes the same file as one
that was never stopped. Times are in `time_breakdown.json`.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

HISTORY_FILE = "results.jsonl"
AS_JSON = "backslashreplace"  # which writes half a surrogate pair as JSON escapes it


class History:
    """The file, or nothing on the ranks that do not write.

    Args:
        path (`Path`, *optional*): of the file; None writes nothing.
    """

    def __init__(self, path: Path | None):
        self._path = path

    def cut(self, step: int) -> list[dict[str, Any]]:
        """Keep what happened up to and including a step, and return it; a half-written last line goes too."""
        if self._path is None:
            return []
        kept = [record for record in read_history(self._path) if record["step"] <= step] if step else []
        temporary = self._path.with_name(f"{self._path.name}.new")
        temporary.write_text("".join(map(_line, kept)), encoding="utf-8", errors=AS_JSON)
        os.replace(temporary, self._path)
        return kept

    def append(self, record: dict[str, Any]) -> None:
        """Write a line. After this returns, killing the process does not lose it."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8", errors=AS_JSON) as file:
                file.write(_line(record))


def read_history(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a file, without a last line that was not finished. A missing file has none.

    Raises:
        ValueError: a line before the last that is not JSON, or a file that is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 at byte {error.start}; remove it") from error
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is not finished
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is damaged ({error}); remove it or the file") from error
    return records


def _line(record: dict[str, Any]) -> str:
    return json.dumps(_plain(record), ensure_ascii=False, allow_nan=False, default=_known_to_json) + "\n"


def _plain(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _known_to_json(value: Any) -> Any:
    """What reward functions log beside completions: numbers of NumPy and torch, and all else as its text."""
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)
