"""An exponential moving average of the policy's weights."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from .adapters import Twin


class WeightAverage:
    """Keeps ref = decay * ref + (1 - decay) * policy for pairs of parameters.

    For bfloat16 and float16 the average itself is kept in float32 and rounded into the reference: at decay 0.99 a step
    is mostly smaller than half a unit in the last place, and would be lost for good.

    Args:
        twins: of each pair the policy's parameter first. Both sharded in the same way, or neither.
        decay: in [0, 1).
    """

    def __init__(self, twins: Sequence[Twin], decay: float):
        self._twins = list(twins)
        self._decay = decay

    @cached_property
    def _wide(self) -> dict[int, Tensor]:
        """The averages in float32, by place; made at first use, after FSDP2 has sharded the parameters."""
        return {
            index: ref.detach().float()
            for index, (_, ref) in enumerate(self._parameters())
            if ref.dtype in (torch.bfloat16, torch.float16)
        }

    @torch.no_grad()
    def update(self) -> None:
        """One step of the average. To be called after each optimiser step, on every rank."""
        for index, (policy, ref) in enumerate(self._parameters()):
            average = self._wide.get(index, ref)
            average.lerp_(policy.to(average.dtype), 1 - self._decay)
            if average is not ref:
                ref.copy_(average)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, in the order of the policy's parameters."""
        return {str(index): self._wide.get(index, ref).detach() for index, (_, ref) in enumerate(self._parameters())}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up averages that `state_dict` returned.

        Raises:
            ValueError: averages of another number or shape.
        """
        refs = [ref for _, ref in self._parameters()]
        wanted = {str(index): ref.shape for index, ref in enumerate(refs)}
        given = {name: tensor.shape for name, tensor in state.items()}
        if given != wanted:
            differing = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
            raise ValueError(
                f"the saved average holds {len(given)} tensors, this reference {len(wanted)}, and number "
                f"{differing[0]} differs in shape or is missing: the checkpoint is of another model or adapter"
            )
        for index, ref in enumerate(refs):
            average = self._wide.get(index, ref)
            average.copy_(state[str(index)])
            if average is not ref:
                ref.copy_(average)

    def _parameters(self) -> list[tuple[Tensor, Tensor]]:
        return [(policy.get_parameter(name), ref.get_parameter(twin)) for policy, name, ref, twin in self._twins]
