"""What the trainer asks of whatever generates completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from alignkit.es_lora.centre import Member
from alignkit.es_lora.grouped_lora import Adapters


@dataclass(frozen=True)
class GenerationRequest:
    """What every member is to complete.

    Attributes:
        prompts: token ids of each of N rows; a prompt with several rollouts has as many rows.
        keys: (place of the prompt, rollout) of each row, from which the noise of sampling is drawn.
        step: of the optimiser.
        max_completion_length: tokens, at most.
        temperature: 0 for greedy decoding.
    """

    prompts: Sequence[Sequence[int]]
    keys: Sequence[tuple[int, int]]
    step: int
    max_completion_length: int
    temperature: float


class PopulationBackend(Protocol):
    """Generates for members whose adapters are given."""

    def generate(
        self, numbers: Sequence[Member], adapters: Adapters, request: GenerationRequest
    ) -> list[list[list[int]]]:
        """Token ids of the completions: of each member, of each row, without the prompt, with the token that ended it.

        Args:
            numbers: of the members, for names; `None` is the centre.
            adapters: module -> A (n, H, R), B (n, R, O), as for [`alignkit.es_lora.population.evaluate_population`].
        """
        ...
