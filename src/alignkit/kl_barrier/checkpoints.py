"""What a checkpoint needs besides the model: the dual weight and a moving reference."""

import json
from pathlib import Path

from alignkit.kl_barrier.dual import DualWeight
from alignkit.reference import ReferenceManager
from alignkit.reference.checkpoints import existing_file, load_reference, save_reference
from alignkit.storage import read_json

STATE_FILE = "kl_barrier_state.json"
REFERENCE_FILE = "kl_barrier_reference.safetensors"


def save_state(folder: str | Path, dual: DualWeight | None, reference: ReferenceManager, *, should_save: bool) -> None:
    """Write what there is to write; a constant barrier against a fixed reference has nothing. Collective."""
    save_reference(folder, REFERENCE_FILE, reference, should_save=should_save)
    if dual is not None and should_save:
        text = json.dumps({"dual": dual.state_dict()}, indent=2)
        (Path(folder) / STATE_FILE).write_text(text + "\n", encoding="utf-8")


def load_state(folder: str | Path, dual: DualWeight | None, reference: ReferenceManager) -> None:
    """Take up what `save_state` wrote.

    Raises:
        ValueError: the checkpoint lacks what these need, or it cannot be read.
    """
    if dual is not None:
        path = existing_file(folder, STATE_FILE, "target_kl")
        try:
            dual.load_state_dict(read_json(path)["dual"])
        except KeyError as error:
            raise ValueError(f"{path} is damaged (it has no {error}); resume from an earlier checkpoint") from error
    load_reference(folder, REFERENCE_FILE, reference)
