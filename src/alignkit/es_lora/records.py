"""What is kept of a run: its history, and the means of its steps for the log."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import Tensor

from alignkit.es_lora.history import History
from alignkit.es_lora.outcome import Outcome
from alignkit.es_lora.population_step import PopulationStep
from alignkit.es_lora.step_metrics import step_metrics

logger = logging.getLogger(__name__)


class RunRecord:
    """The record of a run.

    Args:
        history ([`History`]): gets a line for each step and evaluation.
        names (`Sequence[str]`): of the reward functions.
        completions_steps (`int`): steps from one line with completions to the next.

    Attributes:
        steps_without_variance (`int`): since the start of this process.
    """

    def __init__(self, history: History, names: Sequence[str], completions_steps: int):
        self._history = history
        self._names = names
        self._completions_steps = completions_steps
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self.steps_without_variance = 0
        self._done: set[tuple[int, str]] = set()  # evaluations of the step after which this process began

    def begin(self, step: int) -> None:
        """A run starts, or goes on, after a step."""
        kept = self._history.cut(step)
        self._done = {
            (step, record["evaluation"]) for record in kept if record["step"] == step and "evaluation" in record
        }
        self._metrics.clear()

    def add_step(
        self,
        number: int,
        outcome: Outcome,
        rewards: Tensor,
        step: PopulationStep,
        *,
        sigma: float,
        user_metrics: Mapping[str, Sequence[float]],
    ) -> None:
        """Take down a step. Collective. `number` counts from 1; `sigma` is the mean over modules."""
        if not outcome.moves:
            self._warn_of_no_variance(number)
        metrics = step_metrics(outcome, rewards, self._names, *step.lengths(), sigma)
        for name, value in metrics.items():
            self._metrics[name].append(value)
        for name, values in user_metrics.items():
            self._metrics[name] += values
        record = {"step": number, **outcome.record(), "prompts": [prompt.index for prompt in step.prompts]}
        if number % self._completions_steps == 0:
            record["completions"] = step.completions(record["best_member"])
        self._history.append(record)

    def add_evaluation(self, step: int, name: str, reward: float, rewards: Tensor) -> None:
        """Take down an evaluation of the centre: its mean reward, and the rewards (N, F) of each prompt."""
        if (step, name) in self._done:  # a resumed run repeats the one of its start or end
            return
        self._history.append({"step": step, "evaluation": name, "reward": reward, "rewards": rewards.tolist()})

    def pop_metrics(self) -> dict[str, list[float]]:
        """Values of each metric since the last call."""
        metrics, self._metrics = dict(self._metrics), defaultdict(list)
        return metrics

    def _warn_of_no_variance(self, number: int) -> None:
        self.steps_without_variance += 1
        if self.steps_without_variance.bit_count() == 1:  # the 1st, 2nd, 4th, 8th, ...
            logger.warning(
                "step %d: all members have the same fitness and the step moves nothing (%d such steps so far); the "
                "reward is too coarse, sigma too small, or the temperature too low",
                number,
                self.steps_without_variance,
            )
