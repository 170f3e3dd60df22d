"""Scheduled DPO: TRL's DPO trainer with a β that may change, shared prompts, and log-probabilities that are kept.

The pure functions of the method. The trainer and its configuration are `alignkit.ScheduledDPOTrainer` and
`alignkit.ScheduledDPOConfig`.
"""

from typing import TYPE_CHECKING

from alignkit._lazy import lazy_names

if TYPE_CHECKING:
    from alignkit.dpo.beta import BETA_SCHEDULES, BetaSchedule, DynamicBeta, TargetKL, scheduled_beta
    from alignkit.dpo.metrics import logratio_sums
    from alignkit.dpo.truncation import cut_pair

_NAMES_IN = {
    "alignkit.dpo.beta": ("BETA_SCHEDULES", "BetaSchedule", "DynamicBeta", "TargetKL", "scheduled_beta"),
    "alignkit.dpo.metrics": ("logratio_sums",),
    "alignkit.dpo.truncation": ("cut_pair",),
}
_MODULE_OF = {name: module for module, names in _NAMES_IN.items() for name in names}

__all__ = [
    "BETA_SCHEDULES",
    "BetaSchedule",
    "DynamicBeta",
    "TargetKL",
    "cut_pair",
    "logratio_sums",
    "scheduled_beta",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
