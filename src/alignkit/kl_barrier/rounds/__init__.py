"""Rounds of self-training under the barrier: propose by steering, filter by the original model, heal, measure."""

from typing import TYPE_CHECKING

from alignkit._lazy import lazy_names

if TYPE_CHECKING:
    from alignkit.kl_barrier.rounds.adapters import LoraAdapter, concatenate_adapters, load_adapter, save_adapter
    from alignkit.kl_barrier.rounds.coherence import AnswerProbe
    from alignkit.kl_barrier.rounds.filters import FilterSettings, TooFewCompletionsError
    from alignkit.kl_barrier.rounds.loop import run_rounds
    from alignkit.kl_barrier.rounds.proposals import Proposal, Proposer
    from alignkit.kl_barrier.rounds.report import write_report
    from alignkit.kl_barrier.rounds.settings import RoundProbes, TraitProbe
    from alignkit.kl_barrier.rounds.steering import ActivationSteering

_NAMES_IN = {
    "adapters": ("LoraAdapter", "concatenate_adapters", "load_adapter", "save_adapter"),
    "coherence": ("AnswerProbe",),
    "filters": ("FilterSettings", "TooFewCompletionsError"),
    "loop": ("run_rounds",),
    "proposals": ("Proposal", "Proposer"),
    "report": ("write_report",),
    "settings": ("RoundProbes", "TraitProbe"),
    "steering": ("ActivationSteering",),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _NAMES_IN.items() for name in names}

__all__ = [
    "ActivationSteering",
    "AnswerProbe",
    "FilterSettings",
    "LoraAdapter",
    "Proposal",
    "Proposer",
    "RoundProbes",
    "TooFewCompletionsError",
    "TraitProbe",
    "concatenate_adapters",
    "load_adapter",
    "run_rounds",
    "save_adapter",
    "write_report",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
