"""The barrier of one micro-batch as a share of the optimiser step's, for each scope of the aggregate."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignkit.kl_barrier.aggregation import Aggregate, aggregate_positions, hinge_barrier
from alignkit.kl_barrier.sequences import Sequences

AggregateScope = Literal["sequence", "micro_batch", "rank_global", "step"]


@dataclass(frozen=True)
class StepShape:
    """What a micro-batch is a part of.

    Attributes:
        n_micro_batches: of the optimiser step, on this rank.
        n_ranks: over which gradients are averaged.
        n_sequences: S, sequences with a labelled position in the whole step, over all ranks.
    """

    n_micro_batches: int
    n_ranks: int
    n_sequences: Tensor | int


@dataclass(frozen=True)
class Barrier:
    """A micro-batch's share of the step's barrier, before its weight.

    Attributes:
        value (`Tensor`, scalar): share such that the sum over micro-batches, averaged over ranks, is the barrier;
            with the gradient that makes the averaged gradient the barrier's own.
        divergence (`Tensor`, `(S,)` or `(1,)`): every D that it stands for; NaN for a sequence without a position.
    """

    value: Tensor
    divergence: Tensor


def sequence_barrier(kl: Tensor, sequences: Sequences, how: Aggregate, tau_nats: float, step: StepShape) -> Barrier:
    r"""Every sequence's own hinge: Σ_s relu(D_s − τ) / S.

    Args:
        kl (`(N,)`): divergence per labelled position, nats.
        sequences: which sequence each position belongs to.
        how, tau_nats: aggregate and threshold of the hinge.
        step: what the micro-batch is a part of.
    """
    divergence = aggregate_positions(kl, how, sequences.index, n_sequences=sequences.count)  # (S,), 0 where empty
    total = hinge_barrier(divergence, tau_nats).sum()
    # Not an assignment of True, which would be copied to the device and waited for.
    is_labelled = torch.zeros_like(divergence, dtype=torch.bool).index_fill_(0, sequences.index, True)
    share = total * step.n_ranks / torch.as_tensor(step.n_sequences, device=kl.device).clamp(min=1)
    return Barrier(share, divergence.detach().masked_fill(~is_labelled, torch.nan))


def pooled_barrier(kl: Tensor, how: Aggregate, tau_nats: float, step: StepShape) -> Barrier:
    """One hinge on all positions of the micro-batch, averaged over the step's micro-batches and ranks."""
    divergence = aggregate_positions(kl, how)
    reported = divergence.detach()[None] if len(kl) else kl.new_full((1,), torch.nan)
    return Barrier(hinge_barrier(divergence, tau_nats) / step.n_micro_batches, reported)


def batch_barrier(kl: Tensor, sequences: Sequences, how: Aggregate, scope: AggregateScope, tau_nats: float) -> Barrier:
    """The barrier of a batch that is evaluated: its sequences count alike; every other scope pools its positions."""
    step = StepShape(n_micro_batches=1, n_ranks=1, n_sequences=sequences.n_labelled)
    if scope == "sequence":
        return sequence_barrier(kl, sequences, how, tau_nats, step)
    return pooled_barrier(kl, how, tau_nats, step)


def rank_global_barrier(
    kl: Tensor, others: tuple[Tensor, Tensor], how: Aggregate, tau_nats: float, step: StepShape
) -> Barrier:
    """One hinge on the positions of this micro-batch on every rank.

    The value is the same on every rank; the gradient is that of the rank's own positions times the number of ranks,
    so that its average over ranks is the gradient of the one hinge.

    Args:
        others: divergences without gradient of the ranks before this one and of those after it, so that every rank
            sees ties in the same order.
    """
    before, after = others
    barrier = pooled_barrier(torch.cat([before, kl, after]), how, tau_nats, step)
    scaled = barrier.value * step.n_ranks
    return Barrier(scaled + (barrier.value - scaled).detach(), barrier.divergence)


def position_weights(kl: Tensor, how: Aggregate, tau_nats: float) -> tuple[Tensor, Tensor]:
    """D of all positions `(N,)` of a step, and the derivative of relu(D − τ) for each of them `(N,)`."""
    with torch.enable_grad():
        leaf = kl.detach().requires_grad_()
        divergence = aggregate_positions(leaf, how)
        (weights,) = torch.autograd.grad(hinge_barrier(divergence, tau_nats), leaf)
    return divergence.detach(), weights


def step_barrier(kl: Tensor, weights: Tensor, divergence: Tensor, tau_nats: float, step: StepShape) -> Barrier:
    """A micro-batch's share of one hinge on all positions of the step, linearised where the step stands.

    The hinge's derivative for every position is known from a pass over the whole step, so Σ wᵢ kᵢ over this
    micro-batch has exactly its gradient, whatever the split. The value is an equal share of relu(D − τ).

    Args:
        kl (`(N,)`): divergences of this micro-batch's positions.
        weights (`(N,)`): derivative of the hinge for each of them.
        divergence (scalar): D of the step; NaN for a step without a position.
    """
    linear = (weights * kl).sum() * step.n_ranks
    value = hinge_barrier(divergence.masked_fill(divergence.isnan(), 0.0), tau_nats) / step.n_micro_batches
    return Barrier(linear + (value - linear).detach(), divergence[None])
