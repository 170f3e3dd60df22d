"""Size of the noise over a run, the members that it makes, and what their fitness does to the centre."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from accelerate.utils import broadcast_object_list
from peft import PeftModel

from alignkit.es_lora.centre import Centre, Member
from alignkit.es_lora.estimator import anchor_decay
from alignkit.es_lora.grouped_lora import Adapters
from alignkit.es_lora.outcome import Outcome
from alignkit.es_lora.population import check_population
from alignkit.es_lora.prompts import left_padded
from alignkit.es_lora.sigmas import SigmaMode, module_sigmas
from alignkit.schedules import value_at

CANARY_PROMPTS = 2


@dataclass(frozen=True)
class UpdateSettings:
    """The fields of these names of [`ESLoRAConfig`]."""

    sigma: float
    sigma_mode: SigmaMode
    sigma_schedule: Literal["constant", "linear", "cosine"]
    sigma_end: float | None
    init_scale: float
    perturb_scale: float
    antithetic: bool
    divide_by_sigma: bool
    anchor_decay: float
    seed: int


class Update:
    """Everything of a step but its completions and their rewards.

    Args:
        centre ([`Centre`]): what moves.
        settings ([`UpdateSettings`]): how.

    Attributes:
        sigmas (`dict[str, float]`): std of the noise of each module before schedules; empty until [`prepare`].
        anchor (`dict[str, Tensor]`): the initial weights, if they pull.
    """

    def __init__(self, centre: Centre, settings: UpdateSettings):
        self._centre = centre
        self._settings = settings
        self.sigmas: dict[str, float] = {}
        trained = centre.trained() if settings.anchor_decay else {}
        self.anchor = {name: parameter.detach().clone() for name, parameter in trained.items()}

    def prepare(self, model: PeftModel, prompts: Sequence[Sequence[int]], pad_token: int) -> None:
        """Check that the population is one, and find [`sigmas`] on prompts unless they are known.

        Raises:
            ValueError: as [`module_sigmas`] and [`check_population`].
            RuntimeError: as [`check_population`].
        """
        settings, centre = self._settings, self._centre
        itself = {name: (a[0], b[0]) for name, (a, b) in centre.itself().items()}
        with centre.shared():
            check_population(model, itself, *left_padded(prompts[:CANARY_PROMPTS], pad_token, model.device))
        if not self.sigmas:  # after the check, which says what is wrong with a module that cannot be measured
            batch = left_padded(prompts, pad_token, model.device)
            sigmas = module_sigmas(centre, model, settings.sigma_mode, settings.sigma, *batch)
            self.sigmas = broadcast_object_list([sigmas])[0]

    def sigmas_at(self, step: int, max_steps: int) -> dict[str, float]:
        """Std of the noise of each module at a step."""
        settings = self._settings
        end = settings.sigma if settings.sigma_end is None else settings.sigma_end
        factor = value_at(settings.sigma_schedule, settings.sigma, end, step / max_steps) / settings.sigma
        if settings.sigma_mode == "adaptive":
            factor *= settings.perturb_scale if step else settings.init_scale
        return {name: sigma * factor for name, sigma in self.sigmas.items()}

    def members(self, numbers: Sequence[Member], step: int, max_steps: int) -> Adapters:
        """Adapters of members at a step."""
        settings = self._settings
        sigmas = self.sigmas_at(step, max_steps)
        return self._centre.members(numbers, sigmas, seed=settings.seed, step=step, antithetic=settings.antithetic)

    def write_gradients(self, outcome: Outcome, step: int, max_steps: int) -> None:
        """Write the estimate into the `grad` of the trained parameters; None where the step moves nothing."""
        parameters = self._centre.trained()
        if not outcome.moves:
            # Not zero: momentum and weight decay move a weight whose gradient is 0.
            for parameter in parameters.values():
                parameter.grad = None
            return
        settings = self._settings
        gradients = self._centre.gradients(
            outcome.shaped,
            self.sigmas_at(step, max_steps),
            seed=settings.seed,
            step=step,
            antithetic=settings.antithetic,
            divide_by_sigma=settings.divide_by_sigma,
        )
        for name, parameter in parameters.items():
            gradient = gradients[name] * self._learning_rate_unit(self._centre.module_of(name))
            if self.anchor:
                gradient += anchor_decay(parameter.detach(), self.anchor[name], settings.anchor_decay)
            parameter.grad = gradient

    def _learning_rate_unit(self, module: str) -> float:
        """Steps of a module are as long as its noise, so that the learning rate has the unit of `sigma`."""
        settings = self._settings
        if settings.divide_by_sigma:
            return 1.0
        return self.sigmas[module] / (1 if settings.sigma_mode == "adaptive" else settings.sigma)
