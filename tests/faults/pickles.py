"""Pickles that show when they are loaded."""

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import torch


class Touch:
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
    content = BytesIO()
    value = {"state": Touch(marker)}
    if in_zip:
        torch.save(value, content)
        torch.load(BytesIO(content.getvalue()), weights_only=False)
    else:
        pickle.dump(value, content, protocol=2)  # which torch.load would take
        pickle.loads(content.getvalue())
    if not marker.exists():
        raise RuntimeError("the pickle touches nothing where it is loaded")
    marker.unlink()
    path.write_bytes(content.getvalue())
