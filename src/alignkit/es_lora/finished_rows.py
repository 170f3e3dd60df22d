"""Rows of a population that have ended leave the batch, so that one endless member does not hold up all the others.

`generate` runs all rows until the last has ended. Here it still sees all of them, with its processors, criteria and
random numbers unchanged; only the model below runs on fewer. Rows that have given an end token are gone for good, and
`generate` replaces whatever they would give by padding, so that their logits may be anything.

Every few steps the rows that go on are put into new groups of equal size, each of one member, so that the products of
[`GroupedLoRA`] stay grouped. There are never more groups than members, and so never more copies of adapters.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from .grouped_lora import GroupedLoRA

_STEPS_BETWEEN_LOOKS = 4  # a look waits for the device
_WORTH_DROPPING = 0.9  # of the rows at most must remain, because the cache is copied


@contextmanager
def dropping_finished_rows(
    model: PreTrainedModel, layers: Sequence[GroupedLoRA], members: int, prompts: Tensor, end_tokens: Sequence[int]
) -> Iterator[None]:
    """Within the context one `generate` of the model runs only on rows that are needed; its result is the same.

    It acts on the dynamic caches of attention, the default of `generate`, and does nothing with any other.

    Args:
        model: that generates, with the adapters of `layers` in it.
        members (`int`): P.
        prompts (`Tensor`, (M, T)): of one member.
        end_tokens (`Sequence[int]`): each of which ends a completion; with none nothing is done.
    """
    if not end_tokens:
        yield
        return
    rows = _Rows(layers, members, prompts, end_tokens)
    before = model.register_forward_pre_hook(rows.before_forward, with_kwargs=True)
    after = model.register_forward_hook(rows.after_forward)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def equal_groups(rows_of_members: Sequence[Sequence[int]], most_groups: int) -> tuple[list[int], list[list[int]]]:
    """Put rows into groups of one size, each with rows of one member, so that the fewest are added.

    Args:
        rows_of_members (`Sequence[Sequence[int]]`): rows of each member, (P, ragged); some member has one.
        most_groups (`int`): at least as many as there are members with rows.

    Returns:
        `tuple[list[int], list[list[int]]]`: the member of each group, (G,), and its rows, (G, size), of which the last
            is repeated where the group is not full.
    """

    def n_groups(size: int) -> int:
        return sum(-(-len(rows) // size) for rows in rows_of_members)

    sizes = range(1, max(map(len, rows_of_members)) + 1)
    size = min(
        (size for size in sizes if n_groups(size) <= most_groups), key=lambda size: (size * n_groups(size), -size)
    )
    members, groups = [], []
    for member, rows in enumerate(rows_of_members):
        for start in range(0, len(rows), size):
            part = list(rows[start : start + size])
            members.append(member)
            groups.append(part + part[-1:] * (size - len(part)))
    return members, groups


class _Rows:
    """Which of all N = P·M rows are in the batch, as two hooks of the model."""

    def __init__(self, layers: Sequence[GroupedLoRA], members: int, prompts: Tensor, end_tokens: Sequence[int]):
        device = prompts.device
        self._layers = layers
        self._end_tokens = torch.tensor(end_tokens, device=device)
        self._n_rows = members * len(prompts)
        self._prompt_length = prompts.shape[1]
        self._unseen: list[Tensor] = []  # last tokens since the last look, (N,) each
        self._finished = torch.zeros(self._n_rows, dtype=torch.bool, device=device)
        self._n_members = members
        self._batch = list(range(self._n_rows))  # the row at each place of the batch
        self._kept: Tensor | None = None  # the same; None for all

    def before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache: Any = kwargs.get("past_key_values")
        # An end token of a prompt ends nothing.
        if not _can_drop(cache) or cache.get_seq_length() < self._prompt_length:
            return None
        self._unseen.append(kwargs["input_ids"][:, -1])
        if len(self._unseen) == _STEPS_BETWEEN_LOOKS:
            self._finished |= torch.isin(torch.stack(self._unseen), self._end_tokens).any(0)
            self._unseen.clear()
            self._drop(cache)
        if self._kept is None:
            return None
        return args, {
            name: value[self._kept]
            if isinstance(value, Tensor) and value.dim() and len(value) == self._n_rows
            else value
            for name, value in kwargs.items()
        }

    def after_forward(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Give `generate` a row of logits for each of its rows."""
        if self._kept is not None:
            logits = output.logits.new_zeros(self._n_rows, *output.logits.shape[1:])
            logits[self._kept] = output.logits
            output.logits = logits

    def _drop(self, cache: DynamicCache) -> None:
        running = [row for row, is_finished in enumerate(self._finished.tolist()) if not is_finished]
        if not 0 < len(running) <= _WORTH_DROPPING * len(self._batch):
            return
        prompts = self._n_rows // self._n_members
        rows_of_members: list[list[int]] = [[] for _ in range(self._n_members)]
        for row in running:
            rows_of_members[row // prompts].append(row)
        members, groups = equal_groups(rows_of_members, self._n_members)
        batch = list(chain.from_iterable(groups))
        if len(batch) > _WORTH_DROPPING * len(self._batch):
            return
        place = {row: index for index, row in enumerate(self._batch)}
        device = self._finished.device
        places, self._kept = torch.tensor([[place[row] for row in batch], batch]).to(device)
        cache.batch_select_indices(places)
        self._batch, groups_of = batch, torch.tensor(members, device=device)
        for layer in self._layers:
            layer.select(groups_of)


def _can_drop(cache: Any) -> bool:
    # Not isinstance: layers that also hold the state of a recurrence inherit the selection and leave that state out.
    return type(cache) is DynamicCache and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )
