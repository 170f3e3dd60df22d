"""Completions of members for prompts, and their rewards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignkit.es_lora.backends.protocol import GenerationRequest, PopulationBackend
from alignkit.es_lora.centre import Member
from alignkit.es_lora.grouped_lora import Adapters
from alignkit.es_lora.prompts import Prompt, is_conversational
from alignkit.es_lora.rewards import RewardFunctions
from alignkit.es_lora.timing import Stopwatch


@dataclass(frozen=True)
class Rollouts:
    """What members did with prompts.

    Attributes:
        rewards (`Tensor`, (n, M, J, F)): of n members, M prompts, J rollouts, F functions; see [`RewardFunctions`].
        completions (`list`): n lists of M · J texts, or conversations.
        lengths (`Tensor`, (n, M · J)): tokens of each.
        ended (`Tensor`, (n, M · J)): whether it ended before its longest length.
        extra (`dict[str, list]`): columns from `log_extra`, in the order of the completions.
    """

    rewards: Tensor
    completions: list[list[Any]]
    lengths: Tensor
    ended: Tensor
    extra: dict[str, list[Any]]


class Rollout:
    """Generates and scores.

    Args:
        backend ([`PopulationBackend`]): generates.
        rewards ([`RewardFunctions`]): score.
        tokenizer: of the model.
        end_tokens (`Sequence[int]`): that end a completion.
        stopwatch ([`Stopwatch`]): takes the time, unless an evaluation does.
        trainer_state (`Callable`): gives what reward functions see as `trainer_state`.
    """

    def __init__(
        self,
        backend: PopulationBackend,
        rewards: RewardFunctions,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_tokens: Sequence[int],
        stopwatch: Stopwatch,
        trainer_state: Callable[[], Any],
    ):
        self._backend = backend
        self._rewards = rewards
        self._tokenizer: Any = tokenizer
        self._end_tokens = set(end_tokens)
        self._stopwatch = stopwatch
        self._trainer_state = trainer_state

    def run(
        self,
        numbers: Sequence[Member],
        adapters: Adapters,
        prompts: Sequence[Prompt],
        *,
        step: int,
        rollouts: int,
        max_completion_length: int,
        temperature: float,
    ) -> Rollouts:
        """Completions and rewards of members; none of either without members."""
        is_training = self._stopwatch.phase != "eval"
        rows = [prompt for prompt in prompts for _ in range(rollouts)]
        shape = (len(numbers), len(prompts), rollouts, len(self._rewards.names))
        if not numbers:
            empty = torch.zeros(0, len(rows), dtype=torch.float64)
            return Rollouts(torch.zeros(shape, dtype=torch.float64), [], empty, empty, {})
        if is_training:
            self._stopwatch.enter("generate")
        request = GenerationRequest(
            prompts=[prompt.ids for prompt in rows],
            keys=[(prompt.place, rollout) for prompt in prompts for rollout in range(rollouts)],
            step=step,
            max_completion_length=max_completion_length,
            temperature=temperature,
        )
        ids = self._backend.generate(numbers, adapters, request)
        completions = [self._texts(member, is_conversational(prompts[0].prompt)) for member in ids]
        if is_training:
            self._stopwatch.enter("reward")
        size = 1 if self._rewards.one_member_at_a_time else len(numbers)
        scores = [
            self._score(rows, completions[start : start + size], ids[start : start + size])
            for start in range(0, len(numbers), size)
        ]
        return Rollouts(
            rewards=torch.cat(scores).view(shape),
            completions=completions,
            lengths=torch.tensor([[len(row) for row in member] for member in ids], dtype=torch.float64),
            ended=torch.tensor([[row[-1] in self._end_tokens for row in member] for member in ids]).double(),
            extra=self._rewards.pop_extra(),
        )

    def _texts(self, ids: list[list[int]], conversational: bool) -> list[Any]:
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [[{"role": "assistant", "content": text}] for text in texts] if conversational else texts

    def _score(self, rows: Sequence[Prompt], completions: list[list[Any]], ids: list[list[list[int]]]) -> Tensor:
        repeated = [row for _ in completions for row in rows]
        columns = {name: [row.columns[name] for row in repeated] for name in rows[0].columns}
        return self._rewards(
            [row.prompt for row in repeated],
            [text for member in completions for text in member],
            [row for member in ids for row in member],
            columns,
            self._trainer_state(),
        )
