"""What a checkpoint needs besides the model: a β that does not follow from the step, and a moving reference."""

import json
from pathlib import Path

from alignkit.dpo.control import BetaControl
from alignkit.reference import ReferenceManager
from alignkit.reference.checkpoints import existing_file, load_reference, save_reference
from alignkit.storage import read_json

STATE_FILE = "dpo_state.json"
REFERENCE_FILE = "dpo_reference.safetensors"


def save_state(folder: str | Path, control: BetaControl, reference: ReferenceManager, *, should_save: bool) -> None:
    """Write what there is to write; a scheduled β against a fixed reference has nothing. Collective."""
    save_reference(folder, REFERENCE_FILE, reference, should_save=should_save)
    state = control.state_dict()
    if state and should_save:
        (Path(folder) / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def load_state(folder: str | Path, control: BetaControl, reference: ReferenceManager) -> None:
    """Take up what `save_state` wrote.

    Raises:
        ValueError: the checkpoint lacks what these need, or it cannot be read.
    """
    if control.state_dict():
        path = existing_file(folder, STATE_FILE, "dynamic_beta_alpha or target_kl")
        try:
            control.load_state_dict(read_json(path))
        except KeyError as error:
            raise ValueError(f"{path} is damaged (it has no {error}); resume from an earlier checkpoint") from error
    load_reference(folder, REFERENCE_FILE, reference)
