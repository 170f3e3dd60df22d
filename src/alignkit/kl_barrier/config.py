"""Configuration of `KLBarrierTrainer`."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from trl.trainer.sft_config import SFTConfig

from alignkit.fused_head import KLDirection
from alignkit.kl_barrier.aggregation import Aggregate
from alignkit.kl_barrier.barrier import AggregateScope
from alignkit.reliability.config import ReliableArguments
from alignkit.schedules import Schedule

PrecomputeRef = Literal["hidden"]
CHOICES = {
    "aggregate": get_args(Aggregate),
    "aggregate_scope": get_args(AggregateScope),
    "kl_direction": get_args(KLDirection),
    "precompute_ref": (None, *get_args(PrecomputeRef)),
    "barrier_schedule": get_args(Schedule),
    "tau_schedule": get_args(Schedule),
}
SCHEDULED = {"barrier_schedule": "barrier_weight", "tau_schedule": "tau_nats"}


@dataclass
class KLBarrierConfig(ReliableArguments, SFTConfig):
    r"""
    Configuration class for [`KLBarrierTrainer`]: loss = NLL + barrier_weight · relu(D − tau_nats).

    Only the parameters specific to the barrier are listed here; all of [`~trl.SFTConfig`]'s keep their meaning.

    Parameters:
        barrier_weight (`float`, *optional*, defaults to `0.3`):
            λ, weight of the barrier. `0` trains exactly as `SFTTrainer` does.
        tau_nats (`float`, *optional*, defaults to `0.5`):
            Largest divergence that costs nothing, in nats per token. It does not transfer between aggregates, scopes,
            models or datasets: measure it with [`alignkit.kl_barrier.calibrate_tau`].
        aggregate (`str`, *optional*, defaults to `"mean"`):
            D over token positions: `"mean"`; `"rmse"`, root mean square; `"p95"`, 95th percentile (blind to fewer than
            5 % of the positions, gradient through two of them); `"max"`; `"cvar95"`, mean of the largest 5 %.
        aggregate_scope (`str`, *optional*, defaults to `"sequence"`):
            What one D spans. `"sequence"`: every sequence has its own hinge, and the barrier is their mean over the
            optimiser step and all ranks; under packing a sequence is a document. `"micro_batch"`: the positions of
            one rank's micro-batch (depends on how a step is split). `"rank_global"`: those of one micro-batch on all
            ranks. `"step"`: those of the whole optimiser step, exactly, for one more forward of both models.
        kl_direction (`str`, *optional*, defaults to `"reverse"`):
            `"reverse"`: KL(policy ‖ ref); `"forward"`: KL(ref ‖ policy).
        ref (`str`, *optional*):
            The reference: `"base"`, adapters switched off; `"adapter"`, a frozen copy of the adapter as it is now;
            `"copy"`, of the whole model; `"previous"`, the adapters that are active but not trained; `"ema"`, an
            exponential moving average of the policy; or a name or path. `None`: `"base"` for a fresh adapter,
            `"copy"` without adapters; an adapter that has been trained before needs a choice. A model object goes to
            the trainer's `ref_model`.
        ema_decay (`float`, *optional*, defaults to `0.99`):
            With `ref="ema"`: ref ← ema_decay · ref + (1 − ema_decay) · policy after every optimiser step.
        precompute_ref (`str`, *optional*):
            `"hidden"`: run the reference once over the training set before the first step and keep its last hidden
            states (H numbers per labelled token) in memory-mapped files.
        ref_cache_dir (`str`, *optional*):
            Folder of those files, by default `reference_hidden` in `output_dir`. Files of other weights or other
            tokens are an error.
        pressure_steps (`int`, *optional*, defaults to `100`):
            How often `barrier/pressure`, the ratio of the gradient norms of barrier and NLL, is measured on one
            micro-batch, for two more backward passes when the gate is open; `0` for never. Not measured under FSDP,
            DeepSpeed, `torch_compile` and `activation_offloading`.
        barrier_schedule, tau_schedule (`str`, *optional*, defaults to `"constant"`):
            `"constant"`; `"linear"` or `"cosine"` from the value to its `_end`; `"warmup"` from 0 to the value over
            the first tenth of the steps.
        barrier_weight_end, tau_nats_end (`float`, *optional*):
            Where a linear or cosine schedule ends.
        target_kl (`float`, *optional*):
            Settle D at this many nats: `tau_nats` is then 0, and dual ascent moves the weight, which starts at
            `barrier_weight`.

    `logging_nan_inf_filter` defaults to `False` and `enable_jit_checkpoint` to `True`; see [`ReliableArguments`].
    """

    barrier_weight: float = field(default=0.3, metadata={"help": "Weight of the barrier. 0: exactly SFTTrainer."})
    tau_nats: float = field(
        default=0.5, metadata={"help": "Largest divergence that costs nothing, nats per token. See calibrate_tau."}
    )
    aggregate: Aggregate = field(
        default="mean",
        metadata={"help": "D over token positions: mean, rmse, p95, max, cvar95 (the worst twentieth)."},
    )
    aggregate_scope: AggregateScope = field(
        default="sequence", metadata={"help": "What one D spans: sequence, micro_batch, rank_global, or step."}
    )
    kl_direction: KLDirection = field(
        default="reverse", metadata={"help": "reverse: KL(policy || ref); forward: KL(ref || policy)."}
    )
    ref: str | None = field(
        default=None,
        metadata={"help": "Reference: base, adapter, copy, previous, ema, or a name or path. None: base or copy."},
    )
    ema_decay: float = field(default=0.99, metadata={"help": "Decay of the moving average with ref='ema'."})
    precompute_ref: PrecomputeRef | None = field(
        default=None, metadata={"help": "hidden: keep the reference's last hidden states of the training set on disk."}
    )
    ref_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of those states; by default reference_hidden in output_dir."}
    )
    pressure_steps: int = field(
        default=100, metadata={"help": "Steps between measurements of barrier/NLL gradient norms; 0: never."}
    )
    barrier_schedule: Schedule = field(
        default="constant", metadata={"help": "Schedule of barrier_weight: constant, linear, cosine or warmup."}
    )
    tau_schedule: Schedule = field(
        default="constant", metadata={"help": "Schedule of tau_nats: constant, linear, cosine or warmup."}
    )
    barrier_weight_end: float | None = field(
        default=None, metadata={"help": "Where a linear or cosine barrier_schedule ends."}
    )
    tau_nats_end: float | None = field(default=None, metadata={"help": "Where a linear or cosine tau_schedule ends."})
    target_kl: float | None = field(
        default=None, metadata={"help": "Settle D at this many nats by dual ascent on the weight; replaces tau_nats."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {list(choices)}")
        for name in ("barrier_weight", "tau_nats", "barrier_weight_end", "tau_nats_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be a finite number, 0 or more")
        for schedule, name in SCHEDULED.items():
            needs_end, end = getattr(self, schedule) in ("linear", "cosine"), getattr(self, f"{name}_end")
            if needs_end and end is None:
                raise ValueError(f"{schedule} is {getattr(self, schedule)!r}; say where it ends with {name}_end")
            if not needs_end and end is not None:
                raise ValueError(
                    f"{name}_end is {end} but {schedule} is {getattr(self, schedule)!r}, which has no end"
                )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must be at least 0 and below 1")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length is {self.max_length}; it must be at least 1, or None for no limit")
        if self.pressure_steps < 0:
            raise ValueError(f"pressure_steps is {self.pressure_steps}; it must be 0 (never) or more")
        if self.precompute_ref is not None and self.ref == "ema":
            raise ValueError("precompute_ref needs a reference that stays as it is; ref='ema' moves at every step")
        if self.label_smoothing_factor > 0:
            raise ValueError(
                f"label_smoothing_factor is {self.label_smoothing_factor}; it needs the full logits, which are never "
                "built: set it to 0"
            )
        self._check_target()

    def _check_target(self) -> None:
        if self.target_kl is None:
            return
        if not 0 < self.target_kl < math.inf:
            raise ValueError(f"target_kl is {self.target_kl}; it must be a finite number of nats above 0")
        if self.barrier_schedule != "constant" or self.tau_schedule != "constant":
            raise ValueError(
                f"target_kl={self.target_kl} moves the weight itself and replaces tau_nats; leave barrier_schedule "
                "and tau_schedule constant"
            )
        if self.barrier_weight == 0:
            raise ValueError("target_kl needs a barrier_weight above 0 to start from")
