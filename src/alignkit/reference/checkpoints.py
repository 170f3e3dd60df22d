"""What a checkpoint of a policy with a reference needs besides the policy, and how it is found again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from alignkit.fused_head.modeling import whole

from .manager import ReferenceManager


def save_reference(folder: str | Path, name: str, reference: ReferenceManager, *, should_save: bool) -> None:
    """Write a moving reference to `folder/name`; nothing for one that stays as it is. Collective."""
    tensors = {key: whole(tensor).detach().contiguous().cpu() for key, tensor in reference.state_dict().items()}
    if tensors and should_save:
        save_file(tensors, Path(folder) / name)


def load_reference(folder: str | Path, name: str, reference: ReferenceManager) -> None:
    """Take up what `save_reference` wrote.

    Raises:
        ValueError: the checkpoint has none, though the reference moves.
    """
    if reference.kind == "ema":
        tensors = load_file(existing_file(folder, name, "ref='ema'"))
        reference.load_state_dict(sharded_like(reference.state_dict(), tensors))


def sharded_like(present: dict[str, Tensor], loaded: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors that were loaded, cut as those in their place are under FSDP2."""
    return {
        name: distribute_tensor(tensor.to(place.device), place.device_mesh, place.placements)
        if isinstance(place := present.get(name), DTensor)
        else tensor
        for name, tensor in loaded.items()
    }


def existing_file(folder: str | Path, name: str, setting: str) -> Path:
    """The path of a file of a checkpoint.

    Raises:
        ValueError: the checkpoint was saved without the `setting` that needs it.
    """
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
