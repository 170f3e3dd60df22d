"""Reads every hostile text with everything that reads texts; prints what else happened, and by how much it grew."""

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.faults.hostile_texts import HOSTILE
from tests.faults.text_readers import PROPORTIONS, READERS

WATCHED = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.remove",
    "os.rename",
    "socket.connect",
)


def main() -> None:
    events: list[str] = []
    is_watching = False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not is_watching:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event.startswith(WATCHED):
            events.append(f"{event}{arguments!r:.200}")

    sys.addaudithook(watch)
    readers = {**PROPORTIONS, **READERS}
    for read in readers.values():
        read("what they load, they load here")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    is_watching = True
    for read in readers.values():
        for text in HOSTILE.values():
            read(text)
    is_watching = False
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"events": events, "grown_mib": grown_kib / 1024}))


if __name__ == "__main__":
    main()
