"""What a checkpoint needs besides the adapter, the optimiser and the `Trainer`'s state."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from alignkit.es_lora.centre import Centre
from alignkit.storage import read_json

STATE_FILE = "es_lora.json"
ANCHOR_FILE = "es_lora_anchor.safetensors"

# A run that goes on with another of these would draw other noise or see other prompts.
RUN_SETTINGS = (
    "population_size",
    "antithetic",
    "perturb",
    "sigma",
    "sigma_mode",
    "prompts_per_step",
    "rollouts_per_prompt",
    "seed",
)


def save_state(
    folder: str | Path, args: Any, centre: Centre, sigmas: Mapping[str, float], anchor: Mapping[str, Tensor]
) -> None:
    """Write the settings of the run, rank and scaling of each module, its sigma, and the anchor if there is one."""
    folder = Path(folder)
    if anchor:
        save_file({name: tensor.contiguous().cpu() for name, tensor in anchor.items()}, folder / ANCHOR_FILE)
    settings = {name: getattr(args, name) for name in RUN_SETTINGS}
    state = {"settings": settings, "modules": _modules(centre), "sigmas": dict(sigmas)}
    (folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def load_state(folder: str | Path, args: Any, centre: Centre) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Sigma of each module, and the anchor.

    Raises:
        ValueError: no state, a damaged one, or that of a run with other settings or another adapter.
    """
    folder = Path(folder)
    path = folder / STATE_FILE
    if not path.is_file():
        raise ValueError(f"{path} does not exist: {folder} is no checkpoint of ESLoRATrainer")
    state = read_json(path)
    missing = {"settings", "modules", "sigmas"} - state.keys()
    if missing:
        raise ValueError(f"{path} is damaged: it has no {' and no '.join(sorted(missing))}")
    for name, saved in state["settings"].items():
        if getattr(args, name) != saved:
            raise ValueError(
                f"{folder} is a checkpoint of {name}={saved} and {name} is {getattr(args, name)} now; set it back, or "
                "start a new run from its adapter"
            )
    modules = _modules(centre)
    for name in state["modules"] | modules:
        saved, now = state["modules"].get(name), modules.get(name)
        if saved != now:
            raise ValueError(
                f"{folder} is a checkpoint of an adapter whose {name} has {saved or 'no LoRA'}; it has "
                f"{now or 'none'} now: give the same peft_config, or start a new run from its adapter"
            )
    anchor_path = folder / ANCHOR_FILE
    anchor = load_file(anchor_path) if anchor_path.is_file() else {}
    if args.anchor_decay and not anchor:
        raise ValueError(
            f"{anchor_path} does not exist, as if saved with anchor_decay=0, and it is {args.anchor_decay} now; set "
            "it back to 0, or resume from an earlier checkpoint"
        )
    return state["sigmas"], anchor


def _modules(centre: Centre) -> dict[str, dict[str, float]]:
    """Rank of the noise and scaling of each module."""
    return {
        name: {"rank": centre.noise_rank or len(centre.factors(name)[0]), "scaling": centre.scaling(name)}
        for name in centre.layers
    }
