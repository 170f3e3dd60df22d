"""A barrier weight that steers the divergence to a target, in the place of a threshold.

How this differs from its sources, and why:

1. Dual ascent adds rate · (D - target) to the weight. Here the logarithm of the weight moves, by the relative error
   D / target - 1, so that one rate serves every target and the weight stays positive.
2. D is smoothed first, with the bias of the start corrected as in Adam: the divergence of one batch is noisy.
3. The move of one step is at most `rate`, as in Ziegler et al. (2019), which clips the same error at 0.2.
"""

import math
from dataclasses import dataclass, field

LOWEST_WEIGHT, HIGHEST_WEIGHT = 1e-4, 1e4


@dataclass
class DualWeight:
    r"""Multiplier of the divergence in NLL + weight · D, for: minimise NLL subject to D <= target.

        ema_t     = decay · ema_{t-1} + (1 - decay) · D_t          smoothed_t = ema_t / (1 - decay^t)
        ln weight += rate · clip(smoothed_t / target - 1, -1, 1)    kept within [1e-4, 1e4]

    The Lagrangian NLL + weight · (D - target) has the slope D - target in the weight, so the dual problem is solved by
    raising the weight where D is above the target and lowering it where D is below: the sign and the zero of the move
    are those of dual ascent (Boyd and Vandenberghe (2004), ch. 5; in exponentiated form Kivinen and Warmuth (1997)).
    A target that NLL alone does not reach ends with the weight at its lower bound.

    Args:
        target_nats (`float`): divergence to settle at, > 0.
        weight (`float`): where to start; rather too low than too high, because Adam's second moment remembers the
            gradients of a very large weight for 1 / (1 - β₂) steps and holds the policy still meanwhile.
        rate (`float`): the most by which ln weight moves in one step. From the start to the right weight it takes at
            least |ln ratio| / rate steps. Much faster than the policy follows, it oscillates.
        decay (`float`): of the moving average of D, in [0, 1).

    Raises:
        ValueError: a setting outside its range.
    """

    target_nats: float
    weight: float = 1.0
    rate: float = 0.05
    decay: float = 0.9
    average_nats: float = field(default=0.0, init=False)
    n_updates: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.target_nats < math.inf:
            raise ValueError(f"target_nats is {self.target_nats}; give a finite divergence above 0")
        if not LOWEST_WEIGHT <= self.weight <= HIGHEST_WEIGHT:
            raise ValueError(f"weight is {self.weight}; start within [{LOWEST_WEIGHT:g}, {HIGHEST_WEIGHT:g}]")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate is {self.rate}; give a finite number above 0")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay}; give a number in [0, 1)")

    def update(self, divergence: float) -> None:
        """Take in D of one optimiser step, in nats, and move the weight.

        Raises:
            ValueError: D is NaN or infinite. The weight is as it was before.
        """
        if not math.isfinite(divergence):
            raise ValueError(
                f"the divergence is {divergence}, so the weight (now {self.weight:g}) cannot follow it; training has "
                "diverged: lower the learning rate, or train in bfloat16 or float32 rather than float16"
            )
        self.n_updates += 1
        self.average_nats = self.decay * self.average_nats + (1 - self.decay) * divergence
        smoothed = self.average_nats / (1 - self.decay**self.n_updates)
        error = min(max(smoothed / self.target_nats - 1, -1.0), 1.0)
        self.weight = min(max(self.weight * math.exp(self.rate * error), LOWEST_WEIGHT), HIGHEST_WEIGHT)

    def state_dict(self) -> dict[str, float | int]:
        """What a checkpoint needs to go on from here; the settings are not part of it."""
        return {"weight": self.weight, "average_nats": self.average_nats, "n_updates": self.n_updates}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Go on from `state_dict()`.

        Raises:
            KeyError: the state lacks an entry.
        """
        self.weight, self.average_nats = float(state["weight"]), float(state["average_nats"])
        self.n_updates = int(state["n_updates"])
