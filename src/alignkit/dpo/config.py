"""Configuration of `ScheduledDPOTrainer`."""

import math
from dataclasses import dataclass, field

from trl.trainer.dpo_config import DPOConfig

from alignkit.dpo.beta import BETA_SCHEDULES, BetaSchedule
from alignkit.dpo.low_memory import apply_low_memory
from alignkit.dpo.truncation import PromptTruncation, check_limits
from alignkit.reference import REFERENCE_KINDS
from alignkit.reliability.config import ReliableArguments

SORTING_LOSSES = ("aot", "aot_unpaired")


@dataclass
class ScheduledDPOConfig(ReliableArguments, DPOConfig):
    r"""
    Configuration class for [`ScheduledDPOTrainer`].

    Only the parameters that [`~trl.DPOConfig`] does not have are listed here, and those whose meaning changes.

    Parameters:
        beta_schedule (`str`, *optional*, defaults to `"constant"`):
            β over the training, from `beta` to `beta_end`: `"constant"`; `"linear"`; `"cosine"`; `"warmup"`, linear
            over the first `beta_warmup_ratio`, then `beta_end`; `"step"`, in `beta_steps` levels. A dataset column
            `beta` replaces `beta` and the schedule for its rows.
        beta_end (`float`, *optional*):
            Where a schedule that is not constant ends.
        beta_warmup_ratio (`float`, *optional*, defaults to `0.1`):
            Share of the training that a `"warmup"` takes, in (0, 1].
        beta_steps (`int`, *optional*, defaults to `2`):
            Levels of a `"step"` schedule, at least 2.
        dynamic_beta_alpha (`float`, *optional*):
            β of each micro-batch by the margins of its pairs (β-DPO without its filter of pairs):
            β · (1 + dynamic_beta_alpha · (mean margin − its moving average)), at least 0.001. Depends on how a step is
            split into micro-batches.
        eval_beta (`float`, *optional*):
            β of evaluations; by default `beta`, whatever the schedule, the dynamic or a column says.
        target_kl (`float`, *optional*):
            Settle `kl/reverse_on_data` at this many nats per token by moving β, from `beta` on. Not together with a
            schedule, `dynamic_beta_alpha` or a `beta` column.
        kl_steps (`int`, *optional*, defaults to `100`):
            How often `kl/reverse_on_data` is measured: the full-vocabulary KL(policy ‖ ref) at the positions of the
            completions, averaged over tokens; also in every evaluation. Costs two projections without gradient. `0`
            for never.
        share_prefix (`bool`, *optional*, defaults to `True`):
            Run a prompt once for all its completions. The numbers do not change, but for LoRA dropout, which then
            draws one mask for a shared prompt.
        max_packed_tokens (`int`, *optional*):
            Longest row of shared prompts with their completions; longer ones are split.
        max_length (`int`, *optional*, defaults to `1024`):
            Longest prompt and completion together, in tokens. What is too long is cut, at least one token of each
            completion stays, and no row is dropped.
        max_prompt_length (`int`, *optional*):
            Longest prompt; by default one token less than `max_length`.
        prompt_truncation (`str`, *optional*, defaults to `"keep_end"`):
            Which part of a longer prompt stays: `"keep_end"` or `"keep_start"`. Completions lose their end.
        low_memory (`bool`, *optional*, defaults to `False`):
            Preset for one small GPU, see [`alignkit.dpo.low_memory`]: fields that are at their default change, and the
            trainer loads the model in 4 bits and adds a LoRA where it is given neither.
        ref (`str`, *optional*):
            The reference: `"base"`, adapters switched off; `"adapter"`, a frozen copy of the adapter as it is now;
            `"previous"`, the adapters that are active but not trained; `"copy"`, of the whole model; `"ema"`, an
            exponential moving average of the policy. `None`: the policy as it is now, by the cheapest of these. A
            model object goes to the trainer's `ref_model`.
        ema_decay (`float`, *optional*, defaults to `0.99`):
            With `ref="ema"`: ref ← ema_decay · ref + (1 − ema_decay) · policy after every optimiser step.
        precompute_ref_log_probs (`bool`, *optional*, defaults to `False`):
            Run the reference once over each dataset and keep its log-probability of every completion token in files,
            found again by all runs with the same reference and the same tokens, whatever their β, learning rate, LoRA
            rank, seed or `ld_alpha`.
        ref_cache_dir (`str`, *optional*):
            Folder of those files; by default `$ALIGNKIT_CACHE/ref_logps`, or `~/.cache/alignkit/ref_logps`.

    `logging_nan_inf_filter` defaults to `False` and `enable_jit_checkpoint` to `True`; see [`ReliableArguments`].
    """

    beta_schedule: BetaSchedule = field(
        default="constant", metadata={"help": "beta over training: constant, linear, cosine, warmup or step."}
    )
    beta_end: float | None = field(default=None, metadata={"help": "Where a schedule of beta ends."})
    beta_warmup_ratio: float = field(default=0.1, metadata={"help": "Share of training that a warmup of beta takes."})
    beta_steps: int = field(default=2, metadata={"help": "Levels of a step schedule, at least 2."})
    dynamic_beta_alpha: float | None = field(
        default=None, metadata={"help": "How strongly beta follows the margins of a micro-batch (beta-DPO)."}
    )
    eval_beta: float | None = field(default=None, metadata={"help": "beta of evaluations; by default beta."})
    target_kl: float | None = field(
        default=None, metadata={"help": "Settle kl/reverse_on_data at this many nats per token by moving beta."}
    )
    kl_steps: int = field(
        default=100,
        metadata={"help": "Steps between measurements of kl/reverse_on_data; 0: never, nor in evaluations."},
    )
    share_prefix: bool = field(default=True, metadata={"help": "Run a prompt once for all its completions."})
    max_packed_tokens: int | None = field(
        default=None, metadata={"help": "Longest row of shared prompts with their completions."}
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Longest prompt in tokens; by default one less than max_length."}
    )
    prompt_truncation: PromptTruncation = field(
        default="keep_end", metadata={"help": "Which part of a longer prompt stays: keep_end or keep_start."}
    )
    low_memory: bool = field(
        default=False, metadata={"help": "Preset for one small GPU: 4-bit weights, LoRA, paged AdamW, short rows."}
    )
    ref: str | None = field(
        default=None, metadata={"help": "Reference: base, adapter, previous, copy or ema. None: the policy as it is."}
    )
    ema_decay: float = field(default=0.99, metadata={"help": "Decay of the moving average with ref='ema'."})
    ref_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of precomputed reference log-probabilities; by default per user."}
    )

    def __post_init__(self):
        if self.low_memory:
            apply_low_memory(self)
        super().__post_init__()
        self._check_numbers()
        self._check_schedule()
        self._check_reference()
        if self.truncation_mode != "keep_start":
            raise ValueError(
                f"truncation_mode is {self.truncation_mode!r}; prompts and completions are cut separately here: leave "
                "it out and set prompt_truncation"
            )

    def _check_numbers(self) -> None:
        for name in ("beta", "beta_end", "eval_beta", "dynamic_beta_alpha", "target_kl"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be a finite number above 0")
        if not 0 < self.beta_warmup_ratio <= 1:
            raise ValueError(f"beta_warmup_ratio is {self.beta_warmup_ratio}; it must be above 0 and at most 1")
        if self.beta_steps < 2:
            raise ValueError(f"beta_steps is {self.beta_steps}; a step schedule has at least 2 levels")
        if self.kl_steps < 0:
            raise ValueError(f"kl_steps is {self.kl_steps}; it must be 0 (never) or more")
        check_limits(self.max_length, self.max_prompt_length, self.prompt_truncation)
        if self.max_packed_tokens is not None and self.max_packed_tokens < 1:
            raise ValueError(f"max_packed_tokens is {self.max_packed_tokens}; it must be at least 1")

    def _check_schedule(self) -> None:
        if self.beta_schedule not in BETA_SCHEDULES:
            raise ValueError(f"beta_schedule is {self.beta_schedule!r}; choose one of {list(BETA_SCHEDULES)}")
        if self.beta_schedule == "constant" and self.beta_end is not None:
            raise ValueError(f"beta_end is {self.beta_end} but beta_schedule is 'constant', which has no end")
        if self.beta_schedule != "constant" and self.beta_end is None:
            raise ValueError(f"beta_schedule is {self.beta_schedule!r}; say where it ends with beta_end")
        if self.target_kl is None:
            return
        if self.beta_schedule != "constant" or self.dynamic_beta_alpha is not None:
            raise ValueError(
                f"target_kl={self.target_kl} moves beta itself; leave beta_schedule and dynamic_beta_alpha out"
            )
        if self.kl_steps == 0:
            raise ValueError("target_kl follows kl/reverse_on_data, which kl_steps=0 never measures; set kl_steps")

    def _check_reference(self) -> None:
        if self.ref not in (None, *REFERENCE_KINDS):
            raise ValueError(
                f"ref is {self.ref!r}; choose one of {list(REFERENCE_KINDS)}, or pass a loaded model as ref_model"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must be at least 0 and below 1")
        moves = self.ref == "ema" or self.sync_ref_model
        if self.precompute_ref_log_probs and moves:
            raise ValueError(
                "precompute_ref_log_probs needs a reference that stays as it is; ref='ema' and sync_ref_model move it"
            )
        if self.ref == "ema" and self.sync_ref_model:
            raise ValueError("ref='ema' and sync_ref_model both move the reference; choose one of them")
