"""What a training step tells about the barrier: metrics for the log, a watch on the gate, and gradient norms."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from alignkit.kl_barrier.dual import DualWeight
from alignkit.metrics import MetricSums

logger = logging.getLogger(__name__)

WATCHED_STEPS = 100


class BarrierMetrics:
    """Sums and counts of the micro-batches since the last log."""

    def __init__(self) -> None:
        self._sums = MetricSums()

    @torch.no_grad()
    def add(
        self, kl: Tensor, divergence: Tensor, log_probs: Tensor, n_tokens: Tensor, *, weight: float, tau_nats: float
    ) -> None:
        """Add a micro-batch.

        Args:
            kl (`(N,)`): divergences of its positions, nats.
            divergence (`(S,)` or `(1,)`): every D; NaN for none.
            log_probs: log-probabilities of the labels, 0 where there is none.
            n_tokens (scalar): number of labels.
            weight, tau_nats: of this step.
        """
        values, n_values = _defined(divergence)
        hinge = (values - tau_nats).relu()
        count = n_values[None]
        self._sums.add_mean("nll", -log_probs.sum()[None], n_tokens[None])
        self._sums.add_mean("kl/mean", kl.sum()[None], kl.new_full((1,), len(kl)))  # a copied list would be waited for
        self._sums.add_mean("kl/divergence", values.sum()[None], count)
        self._sums.add_mean("kl/gate_open", (values > tau_nats).sum()[None], count)
        self._sums.add_mean("barrier", weight * hinge.sum()[None], count)
        for name, value in (("barrier/weight", weight), ("barrier/tau_nats", tau_nats)):
            self._sums.add_mean(name, kl.new_full((1,), value), kl.new_ones(1))
        # The added entry loses every comparison; a micro-batch without a position has nothing else.
        largest = torch.cat([kl.new_full((1,), -torch.inf), kl]).amax()[None]
        self._sums.add_extremes("kl", largest, largest)

    def add_pressure(self, ratio: Tensor) -> None:
        """Add the ratio of the gradient norms of barrier and NLL."""
        self._sums.add_mean("barrier/pressure", ratio[None], torch.ones_like(ratio)[None])

    def pop(self, accelerator: Any) -> dict[str, float]:
        """The metrics over all ranks since the last call. Collective."""
        metrics = {name: values[0] for name, values in self._sums.pop(accelerator).items()}
        if "max_kl" in metrics:
            del metrics["min_kl"]
            metrics["kl/max"] = metrics.pop("max_kl")
        return metrics


class StepMonitor:
    """Follows the barrier over the micro-batches of a step, and its gate over the steps.

    Args:
        accelerator: of the trainer.
        dual: the weight that D moves, if there is one.
    """

    def __init__(self, accelerator: Any, dual: DualWeight | None):
        self._accelerator = accelerator
        self._dual = dual
        self.metrics = BarrierMetrics()
        self._step: list[Tensor] = []  # of each micro-batch: sum of D, number above tau, number
        self._watched: list[Tensor] = []  # the same of each step

    @torch.no_grad()
    def add(self, kl: Tensor, divergence: Tensor, output: Any, *, weight: float, tau_nats: float) -> None:
        """Add a micro-batch.

        Args:
            kl (`(N,)`): divergences of its positions, nats.
            divergence (`(S,)` or `(1,)`): every D; NaN for none.
            output: `log_probs` of the labels, 0 where there is none, and `label_mask`.
            weight, tau_nats: of this step.
        """
        self.metrics.add(kl, divergence, output.log_probs, output.label_mask.sum(), weight=weight, tau_nats=tau_nats)
        values, count = _defined(divergence)
        self._step.append(torch.stack([values.sum(), (values > tau_nats).sum().to(values), count.to(values)]))

    def end_step(self, tau_nats: float) -> None:
        """Move the dual weight, or watch the gate. Collective."""
        if not self._step:
            return
        step, self._step = torch.stack(self._step).sum(0), []
        if self._dual is None:
            self._watch(step, tau_nats)
            return
        total, _, count = self._accelerator.reduce(step, "sum").tolist()
        if count:
            self._dual.update(total / count)

    def _watch(self, step: Tensor, tau_nats: float) -> None:
        """Warn when the gate was open for every D of 100 steps, or for none: then tau measures nothing."""
        self._watched.append(step)
        if len(self._watched) < WATCHED_STEPS:
            return
        _, n_open, count = self._accelerator.reduce(torch.stack(self._watched).sum(0), "sum").tolist()
        self._watched = []
        if n_open not in (0, count):
            return
        share, verdict = ("100 %", "always binds") if n_open else ("0 %", "has done nothing")
        logger.warning(
            "the gate was open for %s of the divergences of the last %d steps: a barrier at tau_nats=%g %s; measure "
            "tau_nats with alignkit.kl_barrier.calibrate_tau",
            share,
            WATCHED_STEPS,
            tau_nats,
            verdict,
        )


def can_measure_pressure(trainer: Any) -> bool:
    """Of a sharded model no rank has the gradients; a compiled or offloaded graph has one backward only."""
    is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    return not (is_sharded or trainer.args.torch_compile or trainer.args.activation_offloading)


def pressure(barrier: Tensor, nll: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """‖∇ barrier‖ / ‖∇ NLL‖ over the trained parameters; 0 without a backward when the barrier is 0.

    0: the barrier does nothing. About 1: it balances the data. Far above 1: it undoes the training.
    """
    if barrier.item() == 0:
        return barrier.detach()
    wanted = list(parameters)
    return gradient_norm(barrier, wanted) / gradient_norm(nll, wanted)


def gradient_norm(loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of a loss's gradient, in float32. The graph stays, and `.grad` is not touched."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
    norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
    return torch.stack(norms).norm() if norms else loss.detach().new_zeros(())


def _defined(divergence: Tensor) -> tuple[Tensor, Tensor]:
    """The divergences with 0 in place of those of sequences without a position, and how many there are."""
    is_defined = ~divergence.isnan()
    return divergence.detach().where(is_defined, 0.0), is_defined.sum()
