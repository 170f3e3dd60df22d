"""Multi-head Bradley-Terry reward models: pure functions, and the tools around a trained model.

The trainer and its configuration are `alignkit.MultiHeadRewardTrainer` and `alignkit.MultiHeadRewardConfig`.
"""

from typing import TYPE_CHECKING

from alignkit._lazy import lazy_names

if TYPE_CHECKING:
    from alignkit.reward_model.comparisons import Comparisons, tiered_comparisons
    from alignkit.reward_model.export import (
        RewardModel,
        combine,
        export_scalar,
        load_reward_model,
        reward_functions,
    )
    from alignkit.reward_model.losses import LossOutput, bradley_terry_loss, center_penalty, positive_regularizer
    from alignkit.reward_model.metrics import EvaluationReport, evaluation_report
    from alignkit.reward_model.probing import ProbeResult, probe
    from alignkit.reward_model.receptivity_report import ReceptivityReport, receptivity

_NAMES_IN = {
    "comparisons": ("Comparisons", "tiered_comparisons"),
    "export": ("RewardModel", "combine", "export_scalar", "load_reward_model", "reward_functions"),
    "losses": ("LossOutput", "bradley_terry_loss", "center_penalty", "positive_regularizer"),
    "metrics": ("EvaluationReport", "evaluation_report"),
    "probing": ("ProbeResult", "probe"),
    "receptivity_report": ("ReceptivityReport", "receptivity"),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _NAMES_IN.items() for name in names}

__all__ = [
    "Comparisons",
    "EvaluationReport",
    "LossOutput",
    "ProbeResult",
    "ReceptivityReport",
    "RewardModel",
    "bradley_terry_loss",
    "center_penalty",
    "combine",
    "evaluation_report",
    "export_scalar",
    "load_reward_model",
    "positive_regularizer",
    "probe",
    "receptivity",
    "reward_functions",
    "tiered_comparisons",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
