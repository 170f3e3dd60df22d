"""Configuration of `MultiHeadRewardTrainer`."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from trl.trainer.reward_config import RewardConfig

from alignkit.reliability.config import ReliableArguments

Pairing = Literal["all", "positional"]
Reduction = Literal["comparisons", "active_heads"]
Regularizer = Literal["log_square", "squared_log_square", "center"]
Overflow = Literal["raise", "drop", "truncate_prompt"]
OnConflict = Literal["raise", "drop"]
CHOICES = {
    "pairing": get_args(Pairing),
    "reduction": get_args(Reduction),
    "regularizer": (None, *get_args(Regularizer)),
    "overflow": get_args(Overflow),
    "on_conflict": get_args(OnConflict),
}


@dataclass
class MultiHeadRewardConfig(ReliableArguments, RewardConfig):
    r"""
    Configuration class for [`MultiHeadRewardTrainer`].

    Only the parameters specific to multi-head reward models are listed here; all of [`~trl.RewardConfig`]'s keep
    their meaning, except `max_length`: a text that exceeds it is an error unless `overflow` says otherwise.

    Parameters:
        head_names (`list[str]`, *optional*):
            Names of the heads, in the order of the rows of `score`. If `None`, they are read from the checkpoint,
            which must then be a reward model with named heads.
        tier_weights (`dict[str, float]`, *optional*, defaults to `{"soft": 2.0, "semi_firm": 1.0, "furthest": 0.5}`):
            Weight of each tier of negatives. A tier with a weight above 0 must have negatives.
        negatives_per_tier (`int`, *optional*, defaults to `8`):
            Number of negatives of each tier drawn for a step. They are a function of the seed and the step alone.
        pairing (`str`, *optional*, defaults to `"all"`):
            `"all"`: every positive meets every negative of the step. `"positional"`: the i-th positive of a head in
            the micro-batch meets the i-th negative of a tier (depends on how a step is split).
        reduction (`str`, *optional*, defaults to `"comparisons"`):
            `"comparisons"`: weighted mean over the comparisons of the whole optimiser step, whatever the split into
            micro-batches and ranks. `"active_heads"`: mean over the heads present in a micro-batch.
        regularizer (`str`, *optional*):
            Penalty on each positive's own score: `"log_square"`, `"squared_log_square"` or `"center"`.
        regularizer_weight (`float`, *optional*, defaults to `0.1`):
            Weight of the regularizer.
        score_softcap (`float`, *optional*):
            Scores become c·tanh(score / c). A plain `AutoModel` reload returns them uncapped (same order). `None`
            keeps the cap of a reward-model checkpoint.
        head_weights (`str` or `dict[str, float]`, *optional*):
            Fixed weight of each head's losses: `"uniform"`, `"inverse_count"` (over an epoch each head counts alike
            and the mean is 1), or a dict that names every head.
        overflow (`str`, *optional*, defaults to `"raise"`):
            What to do with a text longer than `max_length`: `"raise"`, `"drop"` the row, or `"truncate_prompt"`: take
            the oldest tokens of the row's common prompt away.
        on_conflict (`str`, *optional*, defaults to `"raise"`):
            What to do when a text is a positive and a negative of the same head: `"raise"`, or `"drop"` the negative
            for that head.
        use_margin_magnitude (`bool`, *optional*, defaults to `False`):
            Whether the size of a `head_margins` entry, or of a difference of `ratings`, is the margin of the loss.
        encode_batch_size (`int`, *optional*):
            Number of texts encoded at a time. The gradient is that of the whole micro-batch; activations of one chunk
            are alive at a time, for one more forward. Independent of `gradient_checkpointing`, which would add a third
            forward: switch it off when chunks fit.
        share_prefix (`bool`, *optional*, defaults to `True`):
            Whether tokens that several texts of a micro-batch begin with are computed once. Scores do not change,
            except that LoRA dropout draws one mask for a shared prefix. A model that cannot share says why in the log.
        max_packed_tokens (`int`, *optional*):
            Longest row that texts with a common prefix are packed into. `None` for no limit.
        stream_retries (`int`, *optional*, defaults to `3`):
            How often in a row a streaming dataset that fails is reopened before the error is raised.

    `logging_nan_inf_filter` defaults to `False` and `enable_jit_checkpoint` to `True`; see [`ReliableArguments`].
    """

    _VALID_DICT_FIELDS = [*RewardConfig._VALID_DICT_FIELDS, "tier_weights", "head_weights"]

    head_names: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the heads, in order. None: those of the checkpoint."},
    )
    tier_weights: dict[str, Any] | str | None = field(
        default_factory=lambda: {"soft": 2.0, "semi_firm": 1.0, "furthest": 0.5},
        metadata={"help": "Weight of each tier of negatives."},
    )
    negatives_per_tier: int = field(
        default=8, metadata={"help": "Number of negatives of each tier drawn for an optimiser step."}
    )
    pairing: Pairing = field(
        default="all",
        metadata={"help": "How positives meet negatives: every positive all of the step's, or by position."},
    )
    reduction: Reduction = field(
        default="comparisons",
        metadata={"help": "Weighted mean over the comparisons of the optimiser step, or mean over the heads present."},
    )
    regularizer: Regularizer | None = field(
        default=None,
        metadata={"help": "Penalty on each positive's own score: log_square, squared_log_square or center."},
    )
    regularizer_weight: float = field(default=0.1, metadata={"help": "Weight of the regularizer."})
    score_softcap: float | None = field(default=None, metadata={"help": "c: scores become c*tanh(score/c)."})
    head_weights: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Fixed weight of each head: uniform, inverse_count, or a dict that names every head."},
    )
    overflow: Overflow = field(
        default="raise",
        metadata={"help": "What to do with a text over max_length."},
    )
    on_conflict: OnConflict = field(
        default="raise",
        metadata={"help": "What to do when a text is a positive and a negative of one head."},
    )
    use_margin_magnitude: bool = field(
        default=False, metadata={"help": "Whether sizes of head_margins and rating differences become margins."}
    )
    encode_batch_size: int | None = field(
        default=None, metadata={"help": "Texts encoded at a time; the gradient stays that of the whole micro-batch."}
    )
    share_prefix: bool = field(
        default=True, metadata={"help": "Whether tokens that several texts begin with are computed once."}
    )
    max_packed_tokens: int | None = field(
        default=None, metadata={"help": "Longest row that texts with a common prefix are packed into. None: no limit."}
    )
    stream_retries: int = field(default=3, metadata={"help": "Reopenings in a row of a streaming dataset that fails."})

    def __post_init__(self):
        super().__post_init__()
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {list(choices)}")
        if self.head_names is not None:
            check_head_names(self.head_names)
        if not isinstance(self.tier_weights, dict):
            raise ValueError(f"tier_weights is {self.tier_weights!r}; it must be a dict of tier name to weight")
        for tier, weight in self.tier_weights.items():
            if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise ValueError(f"tier_weights[{tier!r}] is {weight!r}; it must be a finite number, 0 or more")
        for name in ("negatives_per_tier", "encode_batch_size", "max_packed_tokens", "stream_retries", "max_length"):
            value, least = getattr(self, name), 0 if name == "stream_retries" else 1
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if self.score_softcap is not None and not 0 < self.score_softcap < math.inf:
            raise ValueError(f"score_softcap is {self.score_softcap}; it must be above 0, or None for no cap")
        if not 0 <= self.regularizer_weight < math.inf:
            raise ValueError(f"regularizer_weight is {self.regularizer_weight}; it must be finite, 0 or more")
        if self.regularizer is not None and self.center_rewards_coefficient is not None:
            raise ValueError(
                f"regularizer={self.regularizer!r} and center_rewards_coefficient={self.center_rewards_coefficient} "
                "are both set; they pull the same scores, keep one of them"
            )
        self._check_head_weights()

    def _check_head_weights(self) -> None:
        if self.head_weights is None or self.head_weights in ("uniform", "inverse_count"):
            return
        if not isinstance(self.head_weights, dict):
            raise ValueError(
                f"head_weights is {self.head_weights!r}; choose 'uniform', 'inverse_count', a dict of head name to "
                "weight, or None"
            )
        for name, weight in self.head_weights.items():
            if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise ValueError(f"head_weights[{name!r}] is {weight!r}; it must be a finite number, 0 or more")


def check_head_names(names: list[str]) -> None:
    """Raise a `ValueError` unless `names` are distinct, non-empty strings that can stand in a metric's key."""
    if isinstance(names, str):
        raise ValueError(f"head_names is {names!r}; make it a list, [{names!r}]")
    if not names:
        raise ValueError("head_names is empty; name at least one head")
    for name in names:
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"head name {name!r} must be a non-empty string without '/'")
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"head_names has {duplicates[0]!r} more than once: {names}; every head needs its own name")
