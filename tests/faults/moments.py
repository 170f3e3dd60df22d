"""Something to do at every change that a process makes to its files: to look at them, or to die."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def before_each_change_in(folder: Path, act: Callable[[str, tuple[Any, ...]], None]) -> None:
    """Call `act(event, arguments)` of Python's audit events before the changes below a folder, from now to the end.

    Those that name a file within an open folder, as the removal of a tree does, count wherever that is. What torch and
    safetensors write by themselves is seen between their files, not within them.
    """
    is_acting = False

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal is_acting
        if is_acting or not (event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))):
            return
        is_of_tree = event in ("os.remove", "os.rmdir") and arguments[1] != -1
        if is_of_tree or str(arguments[0]).startswith(f"{folder}{os.sep}"):
            is_acting = True
            act(event, arguments)
            is_acting = False

    sys.addaudithook(see)
