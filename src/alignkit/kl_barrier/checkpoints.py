"""What a checkpoint needs besides the model: the dual weight and a moving reference."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

STATE_FILE = "kl_barrier_state.json"
REFERENCE_FILE = "kl_barrier_reference.safetensors"


def save_state(folder: str | Path, dual: dict[str, Any] | None, reference: dict[str, Tensor]) -> None:
    """Write what there is to write; a constant barrier against a fixed reference has nothing."""
    folder = Path(folder)
    if dual is not None:
        (folder / STATE_FILE).write_text(json.dumps({"dual": dual}, indent=2) + "\n", encoding="utf-8")
    if reference:
        save_file(
            {name: tensor.detach().contiguous().cpu() for name, tensor in reference.items()}, folder / REFERENCE_FILE
        )


def load_dual(folder: str | Path) -> dict[str, Any]:
    """State of the dual weight.

    Raises:
        ValueError: the checkpoint has none, or it cannot be read.
    """
    path = _existing(folder, STATE_FILE, "target_kl")
    try:
        return json.loads(path.read_text(encoding="utf-8"))["dual"]
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); resume from an earlier checkpoint") from error


def load_reference(folder: str | Path) -> dict[str, Tensor]:
    """Tensors of a moving reference.

    Raises:
        ValueError: the checkpoint has none.
    """
    return load_file(_existing(folder, REFERENCE_FILE, "ref='ema'"))


def sharded_like(present: dict[str, Tensor], loaded: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors that were loaded, cut as those in their place are under FSDP2."""
    return {
        name: distribute_tensor(tensor.to(place.device), place.device_mesh, place.placements)
        if isinstance(place := present.get(name), DTensor)
        else tensor
        for name, tensor in loaded.items()
    }


def _existing(folder: str | Path, name: str, setting: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: this checkpoint was saved without {setting}, so it cannot be resumed with it"
        )
    return path


@contextmanager
def active_adapters_kept(model: nn.Module) -> Iterator[None]:
    """Keep which adapters are active and which train. Loading a checkpoint leaves the first one alone active."""
    if not isinstance(model, PeftModel) or len(model.active_adapters) < 2:
        yield
        return
    active = list(model.active_adapters)
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    yield
    model.base_model.set_adapter(active)  # type: ignore[operator]  # of the tuner, which takes several
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains[name])
