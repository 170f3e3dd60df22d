"""Which checkpoint a training can go on from exactly, and how one gets its name.

How this differs from transformers, which resumes from the checkpoint with the largest number: there a kill while it is
written leaves a run that cannot be resumed, and a lost optimiser or schedule is begun again without a word.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import sort_checkpoints

from alignkit.reliability.manifest import MANIFEST, DamagedCheckpointError, check_manifest, write_manifest
from alignkit.storage import read_json, sync

logger = logging.getLogger(__name__)

SAVING = ".saving"  # holds the checkpoint that is being written
TRAINER_STATE = "trainer_state.json"
CONFIG = "config.json"  # which the Trainer reads for the version that it was saved by
WEIGHTS = (
    "adapter_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model_fsdp*",
    "global_step*",
)
# What each of these holds, and the names it may have: one process, FSDP, DeepSpeed.
NEEDED = {
    "the weights": WEIGHTS,
    "the optimiser": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "the schedule": ("scheduler.pt", "global_step*"),
    "the random states": ("rng_state.pth", "rng_state_*.pth"),
}


def check_checkpoint(folder: str | Path) -> dict[str, Any] | None:
    """Check that a training can go on from a checkpoint exactly.

    Returns:
        The manifest, or None for a checkpoint without one whose files are all there: those of plain TRL.

    Raises:
        DamagedCheckpointError: a file is missing or not what was saved; the message names it.
        FileNotFoundError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder, so it is no checkpoint")
    manifest = check_manifest(folder) if (folder / MANIFEST).is_file() else None
    state = folder / TRAINER_STATE
    if not state.is_file():
        raise DamagedCheckpointError(f"{state} is missing: the checkpoint was not written to its end")
    for path in filter(Path.is_file, (state, folder / CONFIG)):
        try:
            read_json(path)
        except ValueError as error:
            raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error
    for what, names in NEEDED.items():
        if not any(any(folder.glob(name)) for name in names):
            raise DamagedCheckpointError(
                f"{folder / names[0]} is missing: without {what} the training cannot go on exactly; start a new one "
                "from its weights"
            )
    for path in _safetensors_of(folder):
        _check_safetensors(path)
    return manifest


def _safetensors_of(folder: Path) -> Iterator[Path]:
    yield from folder.rglob("*.safetensors")
    for index in folder.glob("*.index.json"):
        try:
            yield from {folder / name for name in read_json(index)["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedCheckpointError(f"{index} is damaged: {error}") from error


def _check_safetensors(path: Path) -> None:
    """A safetensors file knows its own length."""
    try:
        with safe_open(path, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{path} is damaged: {error}") from error


def newest_complete_checkpoint(folder: str | Path) -> Path:
    """The checkpoint of a run's folder with the most steps that a training can go on from.

    Each newer one that is passed over is named in a warning, with the reason.

    Raises:
        ValueError: there is none.
    """
    folder = Path(folder)
    for path in (folder / SAVING).glob("checkpoint-*"):
        logger.warning("%s was being written when the run ended; it is passed over", path.name)
    for path in sorted(_checkpoints_of(folder), key=_step_of, reverse=True):
        try:
            check_checkpoint(path)
        except DamagedCheckpointError as error:
            logger.warning("%s is passed over: %s", path.name, error)
            continue
        return path
    raise ValueError(f"{folder} holds no complete checkpoint; leave resume_from_checkpoint out")


def _checkpoints_of(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("checkpoint-*") if path.is_dir())
    return [path for path in found if path.name.removeprefix("checkpoint-").isdecimal()]


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def check_writable(folder: Path) -> None:
    """Make the folder if need be, and a file in it for a moment.

    Raises:
        OSError: not possible; names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}); give another output_dir") from error


def publish(written: Path, checkpoint: Path, *, world_size: int) -> None:
    """Give a checkpoint that has been written its manifest and then its name, in place of an older one of that name.

    Killed at any moment, the run has either no checkpoint of this name or a complete one.
    """
    write_manifest(written, world_size=world_size)
    if checkpoint.exists():
        replaced = written.parent / "replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(checkpoint, replaced)
    os.rename(written, checkpoint)
    sync(checkpoint.parent)


def remove_older(newest: Path, *, limit: int | None, best: str | None) -> None:
    """Remove all but `limit` checkpoints of a folder, the oldest first; never the newest one nor the best.

    Each loses its name before its files. transformers deletes it in its place, so that a kill leaves half of it under
    its name, newer than the complete ones by the time of its last change, which is what the next removal goes by.
    """
    if limit is None or limit <= 0:
        return
    folder, kept = newest.parent, {str(newest)} | ({str(Path(best))} if best else set())
    found = sort_checkpoints(str(folder), use_mtime=True)
    n_too_many = len(found) - max(limit, len(kept))
    for old in [path for path in found if path not in kept][: max(n_too_many, 0)]:
        nameless = folder / SAVING / "removed"
        try:
            nameless.parent.mkdir(exist_ok=True)
            os.rename(old, nameless)
            shutil.rmtree(nameless)
        except OSError as error:
            logger.warning("%s could not be removed: %s", old, error)
