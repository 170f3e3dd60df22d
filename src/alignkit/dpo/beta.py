"""β of direct preference optimisation: scheduled, per row, by batch, or steered to a divergence.

How this differs from its sources, and why:

1. β-DPO (Wu et al. 2024, arXiv 2407.08639) also leaves out pairs of a batch at random; here every pair counts, so that
   what changes is β alone. Its mean is over the micro-batch of all ranks, as in the authors' code.
2. The controller of Ziegler et al. (2019) steers the coefficient of a reward penalty by a sampled estimate. Here it
   steers β by the full-vocabulary divergence on the completions of the step.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from alignkit.schedules import value_at

BetaSchedule = Literal["constant", "linear", "cosine", "warmup", "step"]
BETA_SCHEDULES: tuple[BetaSchedule, ...] = get_args(BetaSchedule)
LOWEST_DYNAMIC_BETA = 1e-3


def scheduled_beta(
    kind: BetaSchedule, beta: float, beta_end: float, progress: float, *, warmup_ratio: float, n_levels: int
) -> float:
    """β at a share of the training's optimiser steps.

        "constant":          beta
        "linear", "cosine":  from beta to beta_end over the whole training
        "warmup":            linear from beta to beta_end over the first `warmup_ratio` of it, then beta_end
        "step":              `n_levels` levels of equal length and equal distance, the first beta, the last beta_end

    Every value lies between beta and beta_end, so that two positive ends never cross 0.

    Raises:
        ValueError: an unknown kind, or a progress outside [0, 1].
    """
    if kind == "warmup":
        return value_at("linear", beta, beta_end, min(1.0, progress / warmup_ratio))
    if kind == "step":
        level = min(int(progress * n_levels), n_levels - 1)
        return value_at("linear", beta, beta_end, level / (n_levels - 1))
    if kind not in BETA_SCHEDULES:
        raise ValueError(f"beta_schedule is {kind!r}; choose one of {', '.join(map(repr, BETA_SCHEDULES))}")
    return value_at(kind, beta, beta_end, progress)


@dataclass
class DynamicBeta:
    """β of a batch by how far its pairs are apart already, eq. 6 of β-DPO (arXiv 2407.08639).

        average ← 0.9 · average + 0.1 · m,   β_batch = max(β · (1 + alpha · (m − average)), 0.001)

    m is the mean of the batch's log-ratio margins, ln π(chosen)/ref(chosen) − ln π(rejected)/ref(rejected), in nats.
    The average starts at 0 and has taken m in before it is used.

    Args:
        alpha (`float`): how strongly β follows, per nat, > 0.
        decay (`float`): of the moving average, in [0, 1).
    """

    alpha: float
    decay: float = 0.9
    average_nats: float = field(default=0.0, init=False)

    def update(self, margin_nats: float) -> None:
        """Take in the mean margin of a batch.

        Raises:
            ValueError: it is NaN or infinite. The average is as it was.
        """
        if not math.isfinite(margin_nats):
            raise ValueError(f"the mean log-ratio margin is {margin_nats}; the policy or the reference has broken")
        self.average_nats = self.decay * self.average_nats + (1 - self.decay) * margin_nats

    def factor(self, margin_nats: float) -> float:
        """What β is multiplied by in a batch with this mean margin, before its lower bound."""
        return 1 + self.alpha * (margin_nats - self.average_nats)

    def beta(self, beta: float, margin_nats: float) -> float:
        """β of a batch with this mean margin."""
        return max(beta * self.factor(margin_nats), LOWEST_DYNAMIC_BETA)


@dataclass
class TargetKL:
    """β that settles the divergence from the reference at a target.

        error = clip(KL / target − 1, −0.2, 0.2),   β ← β · (1 + rate · error)

    A larger β ties the policy closer to its reference, so it grows while the divergence is above the target. Source:
    Ziegler et al. (2019), arXiv 1909.08593, section 2.2, whose rate is 0.1.

    Args:
        target_nats (`float`): divergence per token to settle at, > 0.
        beta (`float`): where to start, > 0.
        rate (`float`): how far a measurement moves β.
    """

    target_nats: float
    beta: float
    rate: float = 0.1

    def update(self, divergence_nats: float) -> None:
        """Take in a measured divergence per token.

        Raises:
            ValueError: it is NaN or infinite. β is as it was.
        """
        if not math.isfinite(divergence_nats):
            raise ValueError(f"the divergence is {divergence_nats}, so beta (now {self.beta:g}) cannot follow it")
        error = min(max(divergence_nats / self.target_nats - 1, -0.2), 0.2)
        self.beta *= 1 + self.rate * error
