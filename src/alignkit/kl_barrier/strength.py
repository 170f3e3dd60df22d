"""How strong the barrier is at a point of the training: λ and τ."""

from alignkit.kl_barrier.config import SCHEDULED, KLBarrierConfig
from alignkit.kl_barrier.dual import DualWeight
from alignkit.schedules import value_at


class BarrierStrength:
    """λ and τ as they are scheduled; with `target_kl`, a λ that moves so that D settles there, and τ = 0.

    Attributes:
        dual ([`DualWeight`]): the λ that moves, or None.
    """

    def __init__(self, args: KLBarrierConfig):
        self._args = args
        self.dual = None if args.target_kl is None else DualWeight(args.target_kl, weight=args.barrier_weight)

    def weight(self, progress: float) -> float:
        """λ, at a share of the training's optimiser steps."""
        return self._scheduled("barrier_schedule", progress) if self.dual is None else self.dual.weight

    def tau_nats(self, progress: float) -> float:
        """τ, at a share of the training's optimiser steps."""
        return self._scheduled("tau_schedule", progress) if self.dual is None else 0.0

    def _scheduled(self, schedule: str, progress: float) -> float:
        name = SCHEDULED[schedule]
        start, end = getattr(self._args, name), getattr(self._args, f"{name}_end")
        return value_at(getattr(self._args, schedule), start, end or 0.0, progress)
