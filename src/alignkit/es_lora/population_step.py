"""One optimiser step of a population: who evaluates which member, and the rewards of its micro-batches."""

from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from alignkit.es_lora.centre import Member
from alignkit.es_lora.grouped_lora import Adapters
from alignkit.es_lora.prompts import Prompt
from alignkit.es_lora.rollout import Rollouts


class PopulationStep:
    """Members and rewards of one step.

    The P members and the centre are shared out over ranks; only their rewards are summed up over them.

    Args:
        population_size (`int`): P.
        accelerator: of the run.

    Attributes:
        own (`list`): numbers of the members of this rank; `None` is the centre.
        adapters: of these members, once drawn.
        prompts (`list[Prompt]`): of the micro-batches so far.
        rollouts (`list[Rollouts]`): of this rank's members, a micro-batch each.
    """

    def __init__(self, population_size: int, accelerator: Any):
        everyone: list[Member] = [None, *range(population_size)]  # the centre where the history is written
        ranks, rank = accelerator.num_processes, accelerator.process_index
        self._first, self._end = (len(everyone) * r // ranks for r in (rank, rank + 1))
        self._n_members = len(everyone)
        self._accelerator = accelerator
        self.own = everyone[self._first : self._end]
        self.adapters: Adapters = {}
        self.prompts: list[Prompt] = []
        self.rollouts: list[Rollouts] = []

    def add(self, prompts: list[Prompt], rollouts: Rollouts) -> None:
        self.prompts += prompts
        self.rollouts.append(rollouts)

    def rewards(self) -> Tensor:
        """Of all members, the centre last: (P + 1, M, J, F)."""
        return self._of_everyone(torch.cat([rollouts.rewards for rollouts in self.rollouts], dim=1))

    def lengths(self) -> tuple[Tensor, Tensor]:
        """Tokens of all completions, and whether they ended, likewise: (P + 1, M · J) each."""
        both = [torch.stack([rollouts.lengths, rollouts.ended.to(rollouts.lengths)], 2) for rollouts in self.rollouts]
        lengths, ended = self._of_everyone(torch.cat(both, dim=1)).unbind(2)
        return lengths, ended

    def _of_everyone(self, own: Tensor) -> Tensor:
        everyone = own.new_zeros(self._n_members, *own.shape[1:])
        everyone[self._first : self._end] = own
        return summed_over_ranks(everyone, self._accelerator).roll(-1, dims=0)

    def completions(self, best: int) -> list[dict[str, Any]]:
        """What the centre and the best member wrote, on whichever rank. Collective."""
        return gather_object(self._own_completions(best))

    def _own_completions(self, best: int) -> list[dict[str, Any]]:
        found = []
        for part, rollouts in enumerate(self.rollouts):
            per_prompt = rollouts.rewards.shape[2]
            first = sum(earlier.rewards.shape[1] for earlier in self.rollouts[:part])
            for place, number in enumerate(self.own):
                if number not in (None, best):
                    continue
                for row, completion in enumerate(rollouts.completions[place]):
                    at = place * len(rollouts.completions[place]) + row
                    found.append(
                        {
                            "member": "centre" if number is None else number,
                            "prompt": self.prompts[first + row // per_prompt].index,
                            "completion": completion,
                            "rewards": rollouts.rewards[place].flatten(0, 1)[row].tolist(),
                            **{name: values[at] for name, values in rollouts.extra.items()},
                        }
                    )
        return found


def summed_over_ranks(values: Tensor, accelerator: Any) -> Tensor:
    """Each rank has filled in its own rows and left the others 0: all of them, on every rank, on the CPU."""
    if accelerator.num_processes == 1:
        return values
    return accelerator.reduce(values.to(accelerator.device), reduction="sum").cpu()
