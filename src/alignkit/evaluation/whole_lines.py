"""Lines that several processes append to one file, each whole or not at all.

A writer holds a lock on the file, which ends with its process, writes its line and syncs it. Where it is killed
midway, readers leave out the last line, and the next writer removes it. Where the disk is full, it takes back what it
wrote.
"""

import json
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)


def append_line(path: Path, line: str, *, start: str) -> None:
    """Append a line of JSON; it is on the disk when this returns.

    Args:
        line: one JSON object without line breaks.
        start: how every line of the file begins. A file that ends in something else is not cut.

    Raises:
        OSError: names the file; after a full disk the file is as it was before.
        ValueError: a file that ends in something else than such a line.
    """
    import fcntl  # here, because Windows has none, and can read the lines all the same

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _mend_end(path, descriptor, start.encode())
        size = os.fstat(descriptor).st_size
        try:
            # Half a surrogate pair is written as JSON escapes it.
            _write_all(descriptor, line.encode(errors="backslashreplace") + b"\n")
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, size)
            reason = f"{error.strerror}, so no line was added; make room and write it again"
            raise OSError(error.errno, reason, str(path)) from error
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _mend_end(path: Path, descriptor: int, start: bytes) -> None:
    """Remove a last line that a killed writer left unfinished; end one that only lacks its line break."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    content = os.pread(descriptor, size, 0)
    place = content.rfind(b"\n") + 1
    rest = content[place:]
    if not (rest.startswith(start) or start.startswith(rest)):
        raise ValueError(f"{path} ends in {rest[:40]!r}, which is no line of this kind; give another file")
    if _is_whole(rest):
        _write_all(descriptor, b"\n")
        return
    logger.warning("%s: removed a last line of %d bytes that its writer did not finish", path, len(rest))
    os.ftruncate(descriptor, place)


def finished_lines(path: Path) -> list[bytes]:
    """The lines of a file. A last one that is no whole JSON is left out with a warning: its writer was killed, or is
    still writing."""
    *lines, rest = path.read_bytes().split(b"\n")
    if _is_whole(rest):
        lines.append(rest)
    elif rest:
        logger.warning("%s: left out its last line of %d bytes, which is not finished", path, len(rest))
    return lines


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
