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

from alignkit.fused_head.modeling import whole
from alignkit.kl_barrier.dual import DualWeight
from alignkit.reference import ReferenceManager

STATE_FILE = "kl_barrier_state.json"
REFERENCE_FILE = "kl_barrier_reference.safetensors"


def save_state(folder: str | Path, dual: DualWeight | None, reference: ReferenceManager, *, should_save: bool) -> None:
    """Write what there is to write; a constant barrier against a fixed reference has nothing. Collective."""
    tensors = {name: whole(tensor).detach().contiguous().cpu() for name, tensor in reference.state_dict().items()}
    if dual is not None and should_save:
        text = json.dumps({"dual": dual.state_dict()}, indent=2)
        (Path(folder) / STATE_FILE).write_text(text + "\n", encoding="utf-8")
    if tensors and should_save:
        save_file(tensors, Path(folder) / REFERENCE_FILE)


def load_state(folder: str | Path, dual: DualWeight | None, reference: ReferenceManager) -> None:
    """Take up what `save_state` wrote.

    Raises:
        ValueError: the checkpoint lacks what these need, or it cannot be read.
    """
    if dual is not None:
        dual.load_state_dict(load_dual(folder))
    if reference.kind == "ema":
        reference.load_state_dict(sharded_like(reference.state_dict(), load_reference(folder)))


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


class SeveralAdapters:
    """A `Trainer` whose model has several adapters: loading a checkpoint of the parent's leaves the first one alone
    active, and loading the best model loads the first one alone."""

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        with active_adapters_kept(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]  # of the Trainer

    def _load_best_model(self: Any) -> None:
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if is_sharded or not isinstance(self.model, PeftModel) or self.model.active_adapters == ["default"]:
            super()._load_best_model()  # type: ignore[misc]  # of the Trainer
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


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
