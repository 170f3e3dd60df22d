"""The centre of the population: a float32 LoRA, its members, and the gradient that they estimate.

The centre is an ordinary PEFT adapter, so that a checkpoint is one too. What has noise is what is trained:

    "B"        W + s (B + σ ε_B) A           A is drawn once, and the same for all members
    "A"        W + s B (A + σ ε_A)           B must not be 0
    "both"     W + s (B + σ ε_B) (A + σ ε_A) A must not be 0 where B is
    "lowrank"  W + D + σ E,  E = (a b)ᵀ / √r  of rank r (Sarkar et al. 2025, EGGROLL)

How this differs from the sources, and why:

1. A = B = 0 is refused for every mode. There B A has no first-order term, all directions look alike to the members,
   and the run stands still; so it is with one factor's noise while the other factor is 0.
2. The sum D of low-rank updates is dense. Concatenated ranks grow by P r with every step, and cutting them back would
   make the step depend on the cut and leave momentum without a place. D is stored as a LoRA of full rank, one factor
   of which is the identity: a plain PEFT adapter, as large as the layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from alignkit.es_lora.estimator import low_rank_es_gradient, streamed_es_gradient
from alignkit.es_lora.grouped_lora import WithAddition
from alignkit.es_lora.noise import antithetic_member, member_noises

Perturb = Literal["B", "A", "both", "lowrank"]
Member = int | None
"""Number of a member; `None` is the centre itself."""


class SharedUpdate:
    """Adds D x, D (O, H)."""

    def __init__(self, delta: Tensor):
        self._delta = delta

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        if self._delta.dtype != output.dtype:
            self._delta = self._delta.to(output)
        return output + linear(x.to(output.dtype), self._delta)


class Centre:
    """The trained adapter of a model.

    Args:
        model ([`~peft.PeftModel`]): with one active LoRA, unmerged. Its weights become float32.
        perturb (`str`): see the top of this module.
        noise_rank (`int`, *optional*): r, for `"lowrank"`; the adapter must then be one of `adapters.add_adapter`.

    Attributes:
        layers (`dict[str, LoraLayer]`): PEFT's layers, by the path of their module in the model below PEFT.

    Raises:
        ValueError: an adapter that is not a plain LoRA of linear modules, is merged, or stands on the saddle.
    """

    def __init__(self, model: PeftModel, perturb: Perturb, noise_rank: int | None = None):
        self.perturb = perturb
        self.noise_rank = noise_rank
        self.adapter = _only_adapter(model)
        base: Any = model.get_base_model()
        self.layers: dict[str, Any] = {
            name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)
        }
        self._check_layers(model)
        for factor in self.all_factors():
            factor.data = factor.data.float()
        self._check_not_on_a_saddle()
        self.train_what_is_perturbed(model)

    def factors(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """A (R, H) and B (O, R) of a module, as PEFT keeps them."""
        layer = self.layers[name]
        return layer.lora_A[self.adapter].weight, layer.lora_B[self.adapter].weight

    def all_factors(self) -> list[nn.Parameter]:
        """A and B of every module, also those that are not trained."""
        return [factor for name in self.layers for factor in self.factors(name)]

    def scaling(self, name: str) -> float:
        return float(self.layers[name].scaling[self.adapter])

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that have noise, or that hold the sum of the low-rank updates, by name."""
        found = {}
        for name in self.layers:
            a, b = self.factors(name)
            if self.perturb == "lowrank":
                found[name] = b if b.shape[0] >= a.shape[1] else a
                continue
            if self.perturb != "B":
                found[f"{name}.lora_A"] = a
            if self.perturb != "A":
                found[f"{name}.lora_B"] = b
        return found

    def module_of(self, name: str) -> str:
        """The module of one of [`trained`]."""
        return name if self.perturb == "lowrank" else name.rpartition(".")[0]

    def train_what_is_perturbed(self, model: nn.Module) -> None:
        """Set `requires_grad`. PEFT sets it for all of an adapter's weights when it loads one."""
        trained = {id(parameter) for parameter in self.trained().values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)

    # ---- Members ----

    def members(
        self, numbers: Sequence[Member], sigmas: Mapping[str, float], *, seed: int, step: int, antithetic: bool
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Adapters of members: module -> A (n, H, R) and B (n, R, O) with the scaling in B.

        Under `"lowrank"` they are the noise alone, and [`shared`] adds the centre.

        Args:
            numbers: of the members; `None` for the centre.
            sigmas: std of the noise of each module.
        """
        shapes, starts = self._noise_shapes(), self._starts(sigmas)
        device = next(iter(self.trained().values())).device
        members = {
            key: start.new_empty(len(numbers), *start.shape) if key in shapes else start.expand(len(numbers), -1, -1)
            for key, (start, _) in starts.items()
        }
        drawn: dict[int, dict[str, Tensor]] = {}
        for place, number in enumerate(numbers):
            if number is None:
                for key in shapes:
                    members[key][place] = starts[key][0]
                continue
            source, sign = antithetic_member(number) if antithetic else (number, 1)
            if source not in drawn:
                drawn = {source: member_noises(seed, step, source, shapes, device)}
            for key, noise in drawn[source].items():
                start, std = starts[key]
                signed_once = key.endswith(".noise_B")  # of a product of two noises
                torch.add(start, noise, alpha=std if signed_once else sign * std, out=members[key][place])
        if self.perturb == "lowrank":
            return {name: (members[f"{name}.noise_A"], members[f"{name}.noise_B"]) for name in self.layers}
        return {
            name: (members[f"{name}.lora_A"].transpose(1, 2), members[f"{name}.lora_B"].transpose(1, 2))
            for name in self.layers
        }

    def itself(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Adapters of a population of one: the centre."""
        return self.members([None], dict.fromkeys(self.layers, 0.0), seed=0, step=0, antithetic=False)

    def gradients(
        self,
        shaped: Tensor,
        sigmas: Mapping[str, float],
        *,
        seed: int,
        step: int,
        antithetic: bool,
        divide_by_sigma: bool,
    ) -> dict[str, Tensor]:
        """Gradient of each of [`trained`], by the same names. The noise is drawn again."""
        shapes = self._noise_shapes()
        device = next(iter(self.trained().values())).device
        if self.perturb != "lowrank":
            return streamed_es_gradient(
                shaped,
                shapes,
                {key: sigmas[self.module_of(key)] for key in shapes},
                seed=seed,
                step=step,
                antithetic=antithetic,
                divide_by_sigma=divide_by_sigma,
                device=device,
            )
        noises: dict[str, Tensor] = {
            key: torch.empty(len(shaped), *shape, device=device) for key, shape in shapes.items()
        }
        for number in range(len(shaped)):
            source, sign = antithetic_member(number) if antithetic else (number, 1)
            if sign > 0:
                drawn = member_noises(seed, step, source, shapes, device)
            for key, noise in drawn.items():
                noises[key][number] = noise * sign if key.endswith(".noise_A") else noise
        return {
            name: low_rank_es_gradient(
                shaped,
                noises[f"{name}.noise_A"],
                noises[f"{name}.noise_B"],
                sigmas[name],
                divide_by_sigma=divide_by_sigma,
            )
            for name in self.layers
        }

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Within the context the modules have what all members share and [`members`] leaves out: D of `"lowrank"`."""
        if self.perturb != "lowrank":
            yield
            return
        layers = [(self.layers[name], delta.detach()) for name, delta in self.trained().items()]
        for layer, delta in layers:
            layer.base_layer = WithAddition(layer.base_layer, SharedUpdate(delta))
        try:
            yield
        finally:
            for layer, _ in layers:
                layer.base_layer = layer.base_layer.module

    def _noise_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of noise, by its name, which is its key."""
        if self.perturb != "lowrank":
            return {name: tuple(parameter.shape) for name, parameter in self.trained().items()}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, delta in self.trained().items():
            shapes[f"{name}.noise_A"] = (delta.shape[1], self.noise_rank or 1)
            shapes[f"{name}.noise_B"] = (self.noise_rank or 1, delta.shape[0])
        return shapes

    def _starts(self, sigmas: Mapping[str, float]) -> dict[str, tuple[Tensor, float]]:
        """Of each factor of a member, by its name: what the noise is added to, and the std of the noise there."""
        starts: dict[str, tuple[Tensor, float]] = {}
        if self.perturb == "lowrank":
            zero = next(iter(self.trained().values())).new_zeros(())
            for key, shape in self._noise_shapes().items():
                name, _, factor = key.rpartition(".")
                std = sigmas[name] / shape[0] ** 0.5 if factor == "noise_B" else 1.0
                starts[key] = zero.expand(shape), std
            return starts
        for name in self.layers:
            (a, b), scaling = self.factors(name), self.scaling(name)
            starts[f"{name}.lora_A"] = a.detach(), sigmas[name]
            starts[f"{name}.lora_B"] = b.detach() * scaling, sigmas[name] * scaling
        return starts

    # ---- Checks ----

    def _check_layers(self, model: PeftModel) -> None:
        allowed: set[int] = set()
        for name, layer in self.layers.items():
            if layer.merged:
                raise ValueError(f"{name}: its adapter is merged into the base weights; call unmerge_adapter() first")
            if self.adapter not in layer.lora_A or not isinstance(layer.lora_A[self.adapter], nn.Linear):
                raise ValueError(
                    f"{name}: only a LoRA of linear modules can have members; leave it out of target_modules"
                )
            allowed |= {id(factor) for factor in self.factors(name)}
        others = [
            name
            for name, parameter in model.named_parameters()
            if id(parameter) not in allowed and (parameter.requires_grad or "lora_" in name)
        ]
        if others or not allowed:
            raise ValueError(
                f"the adapter has {others or 'no LoRA weights'}; ES-LoRA perturbs A and B of plain LoRA layers alone: "
                "leave out use_dora, bias, modules_to_save and further adapters"
            )

    def _check_not_on_a_saddle(self) -> None:
        if self.perturb == "lowrank":
            return
        for name in self.layers:
            no_a, no_b = (not factor.any() for factor in self.factors(name))
            if no_a and no_b:
                raise ValueError(
                    f"{name}: A and B are both 0. This is a saddle: B A does not change in first order with either, "
                    "no direction of the noise is better than its opposite, and the run stands still. Start from "
                    "PEFT's default, an A that is drawn and B = 0"
                )
            if (no_b and self.perturb == "A") or (no_a and self.perturb == "B"):
                still, moved = ("B", "A") if no_b else ("A", "B")
                raise ValueError(
                    f"{name}: {still} is 0 and perturb={self.perturb!r} moves {moved} alone, so that B A is 0 for "
                    f"every member; use perturb={still!r} or 'both', or an adapter whose {still} has been trained"
                )


def _only_adapter(model: PeftModel) -> str:
    active = list(model.active_adapters)
    if len(active) != 1 or len(model.peft_config) != 1:
        raise ValueError(
            f"the model has the adapters {sorted(model.peft_config)}, of which {active} are active; give it one alone"
        )
    return active[0]
