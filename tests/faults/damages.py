"""What may happen to the files of a checkpoint, and copies of checkpoints for it to happen to."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

MANIFEST = "manifest.json"


def delete(path: Path) -> None:
    path.unlink()


def cut_in_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip_one_byte(path: Path) -> None:
    """One bit of it, at a place that the file's name decides, so that a failure can be repeated."""
    content = bytearray(path.read_bytes())
    content[random.Random(path.name).randrange(len(content))] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "deleted": delete,
    "cut in half": cut_in_half,
    "one byte flipped": flip_one_byte,
}


def files_of(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint, relative to it."""
    return sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())


def copy_checkpoints(run: Path, folder: Path, *steps: int) -> Path:
    """A run's folder with its checkpoints of these steps only; the last of them is returned."""
    for step in steps:
        shutil.copytree(run / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    return folder / f"checkpoint-{steps[-1]}"
