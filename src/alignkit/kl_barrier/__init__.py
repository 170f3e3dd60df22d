"""KL barrier: supervised fine-tuning that pays for divergence from a reference only above a threshold.

The pure functions of the method, and the tools around it. The trainer and its configuration are
`alignkit.KLBarrierTrainer` and `alignkit.KLBarrierConfig`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignkit.kl_barrier.aggregation import AGGREGATES, Aggregate, aggregate_positions, hinge_barrier
    from alignkit.kl_barrier.divergences import forward_kl, reverse_kl
    from alignkit.kl_barrier.dual import DualWeight

_NAMES_IN = {
    "aggregation": ("AGGREGATES", "Aggregate", "aggregate_positions", "hinge_barrier"),
    "divergences": ("forward_kl", "reverse_kl"),
    "dual": ("DualWeight",),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _NAMES_IN.items() for name in names}

__all__ = [
    "AGGREGATES",
    "Aggregate",
    "DualWeight",
    "aggregate_positions",
    "forward_kl",
    "hinge_barrier",
    "reverse_kl",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its public names are {__all__}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
