"""ES-LoRA: evolution strategies on LoRA weights, without gradients of the model.

The pure functions of the method, and the one-pass generate of a population. The trainer and its configuration are
`alignkit.ESLoRATrainer` and `alignkit.ESLoRAConfig`. One step with the centre θ, the noise ε_p of member p and its
fitness f_p is

    f_p = mean reward of the completions under θ + σ ε_p,    ∇ = −(1/P) Σ_p shaped(f)_p ε_p [/ σ]

and an ordinary optimiser takes the step against ∇.
"""

from typing import TYPE_CHECKING

from alignkit._lazy import lazy_names

if TYPE_CHECKING:
    from alignkit.es_lora.estimator import (
        anchor_decay,
        es_gradient,
        low_rank_es_gradient,
        streamed_es_gradient,
    )
    from alignkit.es_lora.fitness import (
        FITNESS_SHAPINGS,
        FitnessShaping,
        SignalToNoise,
        combine_rewards,
        has_variance,
        replace_failed,
        shape_fitness,
        signal_to_noise,
        step_indices,
    )
    from alignkit.es_lora.noise import antithetic_member, member_noise, member_noises, noise_slice
    from alignkit.es_lora.population import check_population, evaluate_population
    from alignkit.es_lora.sampling import SharedGumbelProcessor

_NAMES_IN = {
    "estimator": ("anchor_decay", "es_gradient", "low_rank_es_gradient", "streamed_es_gradient"),
    "fitness": (
        "FITNESS_SHAPINGS",
        "FitnessShaping",
        "SignalToNoise",
        "combine_rewards",
        "has_variance",
        "replace_failed",
        "shape_fitness",
        "signal_to_noise",
        "step_indices",
    ),
    "noise": ("antithetic_member", "member_noise", "member_noises", "noise_slice"),
    "population": ("check_population", "evaluate_population"),
    "sampling": ("SharedGumbelProcessor",),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _NAMES_IN.items() for name in names}

__all__ = [
    "FITNESS_SHAPINGS",
    "FitnessShaping",
    "SharedGumbelProcessor",
    "SignalToNoise",
    "anchor_decay",
    "antithetic_member",
    "check_population",
    "combine_rewards",
    "es_gradient",
    "evaluate_population",
    "has_variance",
    "low_rank_es_gradient",
    "member_noise",
    "member_noises",
    "noise_slice",
    "replace_failed",
    "shape_fitness",
    "signal_to_noise",
    "step_indices",
    "streamed_es_gradient",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
