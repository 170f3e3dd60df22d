"""Pickles that show when they are loaded."""

import pickle
from pathlib import Path
from typing import Any

import torch


class _Touch:
    """Unpickled, it touches a file."""

    def __init__(self, marker: Path):
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._marker,)


def write_touching_pickle(path: Path, marker: Path, *, in_zip: bool = True) -> None:
    """Write what anyone who unpickles it pays for with a new file, `marker`.

    Args:
        in_zip: in the format of `torch.save`; else nothing but the pickle.

    Raises:
        RuntimeError: it would touch nothing.
    """
    value = {"state": _Touch(marker)}
    if in_zip:
        torch.save(value, path)
        torch.load(path, weights_only=False)
    else:
        path.write_bytes(pickle.dumps(value))
        pickle.loads(path.read_bytes())
    if not marker.exists():
        raise RuntimeError(f"to unpickle {path} touched nothing")
    marker.unlink()
