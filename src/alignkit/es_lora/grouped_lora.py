"""What a population adds to the outputs of linear modules: grouped products, their plain twin, and their place.

They are put around a module and not hooked to it: torch.compile does not look whether a module's hooks have changed.
Decoding that `generate` has compiled, as it does with a static cache, would go on with an earlier one's or none.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Adapters = Mapping[str, tuple[Tensor, Tensor]]

# Up to so many rows of a member, x A is faster on a CPU when A lies as (R, H) in memory, 2 to 3 times for H = 1024;
# above it is slower.
_ROWS_FOR_TRANSPOSED_A = 8


class Addition(Protocol):
    """What is added to the output of a linear module. Its tensors are attributes: compiled code sees new ones."""

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        """The output with what is added to it, in place or not.

        Args:
            x: what the module was called with.
            output: of the module.
        """
        ...


class WithAddition(nn.Module):
    """A module with an addition to its output. What else it is asked for is the module's."""

    def __init__(self, module: nn.Module, addition: Addition):
        super().__init__()
        self.module = module
        self.addition = addition

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.addition(x, self.module(x, *args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


class GroupedLoRA:
    """Adds (x[p] A_p) B_p to the rows of member p, in place.

    Args:
        name (`str`): of the module.
        a (`Tensor`, (P, H, R)), b (`Tensor`, (P, R, O)): all members.

    Attributes:
        was_called (`bool`): whether the module has run since.
    """

    def __init__(self, name: str, a: Tensor, b: Tensor):
        self.name = name
        self.was_called = False
        self._all = a, b
        self._members: Tensor | None = None
        self._a, self._b = a, b
        self._is_transposed = False

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        if x.dim() != 3 or x.shape[0] % len(self._b):
            raise ValueError(
                f"{self.name} is called with {tuple(x.shape)}; with {len(self._b)} members it must be (rows, "
                "positions, features), with as many rows for each member. Any other shape, such as that of a routed "
                "expert, does not tell whose rows they are: leave the module out"
            )
        if not self.was_called or self._b.dtype != output.dtype:
            self._cast(output)
        grouped = x.reshape(len(self._b), -1, x.shape[2])
        if x.device.type == "cpu" and not self._is_transposed and grouped.shape[1] <= _ROWS_FOR_TRANSPOSED_A:
            self._transpose()
        output.view(len(self._b), -1, output.shape[2]).baddbmm_(torch.bmm(grouped, self._a), self._b)
        return output

    def _cast(self, output: Tensor) -> None:
        """Bring all members to the dtype and device of the module's output."""
        a, b = (tensor.to(device=output.device, dtype=output.dtype) for tensor in self._all)
        self._all = a, b.contiguous()
        self.was_called = True
        self.select(self._members)

    def _transpose(self) -> None:
        """Lay A out as (P, R, H)."""
        a, b = self._all
        self._all = a.transpose(1, 2).contiguous().transpose(1, 2), b
        self._is_transposed = True
        self.select(self._members)

    def select(self, members: Tensor | None) -> None:
        """Put the groups of these members in the batch, (G,), in this order and as often as named; `None` for all."""
        self._members = members
        if members is None:
            self._a, self._b = self._all
        else:
            a, b = self._all
            # Indexing the transpose keeps the layout of A.
            self._a, self._b = a.transpose(1, 2)[members].transpose(1, 2), b[members]


@dataclass
class PlainLoRA:
    """Adds x A B, A (H, R) and B (R, O): of a single member, the plain twin of [`GroupedLoRA`]."""

    a: Tensor
    b: Tensor

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        return output + (x @ self.a.to(output)) @ self.b.to(output)


# ---- Installing and removing ----


def base_model(model: nn.Module) -> PreTrainedModel:
    """The model below PEFT, in which PEFT's layers may still be."""
    found: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return found


@contextmanager
def grouped_lora(base: PreTrainedModel, adapters: Adapters) -> Iterator[list[GroupedLoRA]]:
    """Within the context the adapters of all members act; the additions, one for each module.

    Raises:
        ValueError: as [`member_count`] and [`with_additions`] do.
    """
    member_count(base, adapters)
    layers = {name: GroupedLoRA(name, a, b) for name, (a, b) in adapters.items()}
    with with_additions(base, layers):
        yield list(layers.values())


@contextmanager
def with_additions(base: PreTrainedModel, additions: Mapping[str, Addition]) -> Iterator[None]:
    """Within the context PEFT's layers make place for the modules they wrap, and nothing has gradients.

    PEFT's own switches set `requires_grad` and leave a Python layer around every module.

    Args:
        additions: path of a module -> what is added to its output.

    Raises:
        ValueError: a layer of PEFT that is merged into its base weights.
    """
    layers = dict(_outermost_peft_layers(base))
    layers |= {name: base.get_submodule(name) for name in additions if name not in layers}
    try:
        for name, layer in layers.items():
            module = _base_layer(layer)
            base.set_submodule(name, WithAddition(module, additions[name]) if name in additions else module)
        with torch.no_grad():
            yield
    finally:
        for name, layer in layers.items():
            base.set_submodule(name, layer)


def _outermost_peft_layers(base: nn.Module) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, module in base.named_modules():
        # A layer comes before those inside it.
        if not isinstance(module, BaseTunerLayer) or (found and name.startswith(found[-1][0] + ".")):
            continue
        if module.merged:
            raise ValueError(f"{name}: an adapter is merged into the base weights; call unmerge_adapter() first")
        found.append((name, module))
    return found


def _base_layer(layer: Any) -> nn.Module:
    """What is below PEFT's layer, with an addition that all members share."""
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def member_count(base: nn.Module, adapters: Adapters) -> int:
    """P, when all adapters fit the model.

    Raises:
        ValueError: no adapter, an unknown module, one that is not linear, or a shape that does not fit.
    """
    modules = dict(base.named_modules())
    if not adapters:
        raise ValueError("adapters is empty; give A (P, H, R) and B (P, R, O) of at least one linear module")
    first, (a_of_first, _) = next(iter(adapters.items()))
    for name, (a, b) in adapters.items():
        if name not in modules:
            near = get_close_matches(name, modules, n=3) or [path for path in modules if path.endswith(name)][:3]
            raise ValueError(f"adapters name {name!r}, which is no module of the model; near names are {near}")
        in_features, out_features = _features(name, modules[name])
        expected = (len(a_of_first), in_features, a.shape[-1]), (len(a_of_first), a.shape[-1], out_features)
        if (tuple(a.shape), tuple(b.shape)) != expected:
            raise ValueError(
                f"{name}: A is {tuple(a.shape)} and B {tuple(b.shape)}; with the {len(a_of_first)} members of {first} "
                f"and this module's sizes they must be (P, H, R) = {expected[0]} and (P, R, O) = {expected[1]}"
            )
    return len(a_of_first)


def _features(name: str, module: Any) -> tuple[int, int]:
    """H and O of a linear module."""
    layer: Any = _base_layer(module)
    if isinstance(layer, WithAddition):
        layer = layer.module
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"{name} is a {type(layer).__name__}; only linear modules can have members")
    return layer.in_features, layer.out_features


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within the context no dropout acts; each module's own flag comes back."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True
