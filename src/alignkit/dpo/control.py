"""Which β a micro-batch has, from everything that may say so."""

from typing import Any

from torch import Tensor

from alignkit.dpo.beta import LOWEST_DYNAMIC_BETA, DynamicBeta, TargetKL, scheduled_beta
from alignkit.dpo.checks import check_beta_column
from alignkit.dpo.config import ScheduledDPOConfig


class BetaControl:
    """β as it is scheduled, given per row, moved by the margins of a batch, or steered to a divergence.

    Attributes:
        start (`float`): `beta` of the configuration, from where schedules begin.
        target ([`TargetKL`], *optional*): what steers β.
    """

    def __init__(self, args: ScheduledDPOConfig):
        self._args = args
        self.start = args.beta
        self._dynamic = None if args.dynamic_beta_alpha is None else DynamicBeta(args.dynamic_beta_alpha)
        self.target = None if args.target_kl is None else TargetKL(args.target_kl, args.beta)

    def restart(self, beta: float) -> None:
        """Begin again from another β than that of the configuration."""
        self.start = beta
        if self.target is not None:
            self.target.beta = beta

    @property
    def needs_margin(self) -> bool:
        """Whether β depends on the margins of the batch."""
        return self._dynamic is not None

    def scheduled(self, progress: float) -> float:
        """β at a share of the training's optimiser steps, before the batch has its say."""
        if self.target is not None:
            return self.target.beta
        args = self._args
        return scheduled_beta(
            args.beta_schedule,
            self.start,
            args.beta_end or 0.0,
            progress,
            warmup_ratio=args.beta_warmup_ratio,
            n_levels=args.beta_steps,
        )

    def of_batch(self, progress: float, column: Tensor | None, margin_nats: float | None) -> float | Tensor:
        """β of a training micro-batch: a number, or `(B,)` where the rows have their own.

        Args:
            progress: share of the training's optimiser steps that is done.
            column (`(B,)`): β of the rows, replaces the schedule.
            margin_nats: mean log-ratio margin of the micro-batch over all ranks; with `needs_margin`.

        Raises:
            ValueError: a column that the other settings do not allow. Of a stream it is seen here first.
        """
        if column is not None:
            check_beta_column(self._args, ("beta",))
        beta: Any = self.scheduled(progress) if column is None else column
        if self._dynamic is None:
            return beta
        assert margin_nats is not None
        self._dynamic.update(margin_nats)
        if isinstance(beta, Tensor):
            return (beta * self._dynamic.factor(margin_nats)).clamp(min=LOWEST_DYNAMIC_BETA)
        return self._dynamic.beta(beta, margin_nats)

    def evaluation(self) -> float:
        """β of evaluations."""
        return self.start if self._args.eval_beta is None else self._args.eval_beta

    def state_dict(self) -> dict[str, float]:
        """What does not follow from the step: nothing for a schedule."""
        state = {}
        if self._dynamic is not None:
            state["average_margin_nats"] = self._dynamic.average_nats
        if self.target is not None:
            state["beta"] = self.target.beta
        return state

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up what `state_dict` returned."""
        if self._dynamic is not None:
            self._dynamic.average_nats = state["average_margin_nats"]
        if self.target is not None:
            self.target.beta = state["beta"]
