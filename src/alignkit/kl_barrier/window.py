"""The whole optimiser step seen before it is trained on: what the scope `step` needs.

An aggregate that is not a mean depends on all positions at once. A pass without gradient over the step's micro-batches
finds every divergence, and with it the derivative of the hinge for each position. The random state before each
micro-batch is kept and put back for its training forward, so that both passes see the same dropout.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignkit.kl_barrier.aggregation import Aggregate
from alignkit.kl_barrier.barrier import position_weights
from alignkit.metrics import gather_around


@dataclass(frozen=True)
class RandomState:
    """State of torch's generators of the CPU and of one device."""

    cpu: Tensor
    device: torch.device
    of_device: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "RandomState":
        of_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        return cls(torch.get_rng_state(), device, of_device)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.of_device is not None:
            torch.get_device_module(self.device).set_rng_state(self.of_device, self.device)


@dataclass(frozen=True)
class StepWindow:
    """An optimiser step's divergences.

    Attributes:
        divergence (`Tensor`, scalar): D of all positions of the step, over all ranks; NaN when there is none.
        weights (`list[Tensor]`): per micro-batch of this rank, the hinge's derivative for its positions `(N,)`.
        ref_hidden (`list[Tensor]`): per micro-batch, the reference's hidden states; empty when the gate is shut.
        random_states (`list[RandomState]`): per micro-batch, before its forward.
        is_open (`bool`): whether any position has a derivative.
        kl (`list[Tensor]`): per micro-batch, the divergences `(N,)` that were found.
    """

    divergence: Tensor
    weights: list[Tensor]
    ref_hidden: list[Any]
    random_states: list[RandomState]
    is_open: bool
    kl: list[Tensor]


@torch.no_grad()
def look_ahead(
    batches: Sequence[Mapping[str, Any]],
    compare: Callable[[Mapping[str, Any]], tuple[Tensor, Any]],
    accelerator: Any,
    *,
    how: Aggregate,
    tau_nats: float,
) -> StepWindow:
    """One pass without gradient over the micro-batches of a step. Collective.

    Args:
        batches: the micro-batches.
        compare: gives the divergences `(N,)` of a micro-batch in training mode, and the reference's hidden states.
        accelerator: of the trainer.
        how, tau_nats: aggregate and threshold of the hinge.
    """
    divergences, ref_hidden, states = [], [], []
    for batch in batches:
        states.append(RandomState.now(accelerator.device))
        kl, hidden = compare(batch)
        divergences.append(kl)
        ref_hidden.append(hidden)
    mine = torch.cat(divergences)
    before, after = gather_around(accelerator, mine)
    divergence, weights = position_weights(torch.cat([before, mine, after]), how, tau_nats)
    if not len(weights):
        divergence = divergence.new_tensor(torch.nan)  # nothing to report, and nothing for a dual weight to follow
    is_open = bool((divergence > tau_nats).item())
    own = weights[len(before) : len(before) + len(mine)]
    return StepWindow(
        divergence=divergence,
        weights=list(own.split([len(kl) for kl in divergences])),
        ref_hidden=ref_hidden if is_open else [],
        random_states=states,
        is_open=is_open,
        kl=divergences,
    )
