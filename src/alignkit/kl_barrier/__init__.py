"""KL barrier: supervised fine-tuning that pays for divergence from a reference only above a threshold.

The pure functions of the method, and the tools around it. The trainer and its configuration are
`alignkit.KLBarrierTrainer` and `alignkit.KLBarrierConfig`.
"""

from typing import TYPE_CHECKING

from alignkit._lazy import lazy_names

if TYPE_CHECKING:
    from alignkit.fused_head import fused_nll_kl, plain_nll_kl
    from alignkit.kl_barrier.aggregation import AGGREGATES, Aggregate, aggregate_positions, hinge_barrier
    from alignkit.kl_barrier.calibration import TauCalibration, calibrate_tau
    from alignkit.kl_barrier.divergences import forward_kl, reverse_kl
    from alignkit.kl_barrier.dual import DualWeight
    from alignkit.kl_barrier.evaluation_report import BarrierReport
    from alignkit.kl_barrier.faults import NonFiniteDivergenceError

_NAMES_IN = {
    "alignkit.fused_head": ("fused_nll_kl", "plain_nll_kl"),
    "alignkit.kl_barrier.aggregation": ("AGGREGATES", "Aggregate", "aggregate_positions", "hinge_barrier"),
    "alignkit.kl_barrier.calibration": ("TauCalibration", "calibrate_tau"),
    "alignkit.kl_barrier.divergences": ("forward_kl", "reverse_kl"),
    "alignkit.kl_barrier.dual": ("DualWeight",),
    "alignkit.kl_barrier.evaluation_report": ("BarrierReport",),
    "alignkit.kl_barrier.faults": ("NonFiniteDivergenceError",),
}
_MODULE_OF = {name: module for module, names in _NAMES_IN.items() for name in names}

__all__ = [
    "AGGREGATES",
    "Aggregate",
    "BarrierReport",
    "DualWeight",
    "NonFiniteDivergenceError",
    "TauCalibration",
    "aggregate_positions",
    "calibrate_tau",
    "forward_kl",
    "fused_nll_kl",
    "hinge_barrier",
    "plain_nll_kl",
    "reverse_kl",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
