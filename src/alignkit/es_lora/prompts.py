"""Prompts of a data set, tokenised once, and the order in which steps see them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from alignkit.es_lora.fitness import step_indices
from alignkit.es_lora.noise import keyed_words
from alignkit.row_checks import check_text, check_tokens, row_refused_by_template

logger = logging.getLogger(__name__)

NOT_FOR_REWARDS = ("prompt", "completion", "completion_ids")
OF_THE_RUN = {"prompts", "completions"}


@dataclass(frozen=True)
class Prompt:
    """One prompt of a step.

    Attributes:
        place: in the endless sequence of prompts that training sees, or in the evaluation set.
        index: row of the data set.
        prompt: as in the data set, text or messages.
        ids: its tokens.
        columns: all other columns of the row.
    """

    place: int
    index: int
    prompt: Any
    ids: list[int]
    columns: dict[str, Any]


class PromptSet:
    """The prompts of a data set.

    Args:
        rows: a data set of rows with a column `prompt`, of texts or of messages.
        tokenizer: of the model; conversational prompts go through its chat template.
        split (`str`): name of the set, for errors.
        longest (`int`, *optional*): tokens for which the model has room beside the completion.
        n_embeddings (`int`): tokens that the model knows.
        chat_template_kwargs (`dict`, *optional*): for the chat template.

    Raises:
        ValueError: no rows, no length, no column `prompt`, or a prompt that is empty, too long or of another kind.
    """

    def __init__(
        self,
        rows: Any,
        tokenizer: PreTrainedTokenizerBase,
        split: str,
        *,
        longest: int | None,
        n_embeddings: int,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        if rows is None:
            raise ValueError(f"{split} is missing; give rows with 'prompt'")
        if isinstance(rows, Mapping):
            raise ValueError(f"{split} is a {type(rows).__name__} of {sorted(rows)}; give one of them")
        if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
            raise ValueError(f"{split} is a {type(rows).__name__} without a length; steps cycle through a known set")
        if not len(rows):
            raise ValueError(f"{split} has no rows")
        prompts = _prompts(rows, split)
        if taken := OF_THE_RUN & set(rows[0]):
            raise ValueError(
                f"{split} has the columns {sorted(taken)}, which reward functions get from the run; rename them"
            )
        self._rows = rows
        self.conversational = is_conversational(prompts[0])
        self._ids = [
            _checked(ids, f"{split} row {index}", longest, n_embeddings, tokenizer)
            for index, ids in enumerate(_tokens(prompts, tokenizer, split, chat_template_kwargs or {}))
        ]

    def __len__(self) -> int:
        return len(self._ids)

    def at(self, index: int, place: int) -> Prompt:
        """Row `index` of the data set."""
        row = self._rows[index]
        columns = {name: value for name, value in row.items() if name not in NOT_FOR_REWARDS}
        return Prompt(place, index, row["prompt"], self._ids[index], columns)

    def subset(self, size: int | None, seed: int) -> list[Prompt]:
        """The same rows for the same seed, in their order; all of them without a size, or when there are fewer."""
        chosen: Sequence[int] = range(len(self))
        if size is not None and size < len(self):
            words = keyed_words("evaluation subset", seed, count=len(self))
            chosen = sorted(np.argsort(words, kind="stable")[:size].tolist())
        return [self.at(index, index) for index in chosen]


@dataclass(frozen=True)
class PromptReader:
    """How the data sets of a run are read.

    Attributes:
        tokenizer, longest, n_embeddings, chat_template_kwargs: as for [`PromptSet`].
        eval_prompts: size of the subset that evaluations use.
        seed: that draws it.
    """

    tokenizer: Any
    longest: int | None
    n_embeddings: int
    chat_template_kwargs: dict[str, Any] | None
    eval_prompts: int | None
    seed: int

    def read(self, rows: Any, split: str) -> PromptSet:
        return PromptSet(
            rows,
            self.tokenizer,
            split,
            longest=self.longest,
            n_embeddings=self.n_embeddings,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def evaluation(self, rows: Any, split: str = "eval_dataset") -> list[Prompt]:
        """The prompts of a set on which the centre is evaluated."""
        return self.read(rows, split).subset(self.eval_prompts, self.seed)

    def evaluations(self, rows: Any) -> dict[str, list[Prompt]]:
        """Those of all sets: by name of a dict of them, or by an empty name."""
        if rows is None:
            return {}
        if isinstance(rows, dict):
            return {name: self.evaluation(part, f"eval_dataset[{name!r}]") for name, part in rows.items()}
        return {"": self.evaluation(rows)}


class PromptSequence(Dataset):
    """The endless sequence of prompts that training sees: shuffled passes over a set, one after another."""

    def __init__(self, prompts: PromptSet, seed: int):
        self._prompts = prompts
        self._seed = seed

    def __getitem__(self, place: int) -> Prompt:
        (index,) = step_indices(len(self._prompts), 1, place, self._seed)
        return self._prompts.at(index, place)

    def __len__(self) -> int:
        """Of one pass."""
        return len(self._prompts)


class StepPlaces(Sampler[list[int]]):
    """Places of the prompts of each micro-batch of an epoch, equal on all ranks.

    An epoch is as many whole steps as cover the set, so that the last one may go on into the next pass.

    Args:
        n_prompts (`int`): of the set.
        per_step (`int`): prompts of an optimiser step.
        parts (`int`): micro-batches of a step.
    """

    def __init__(self, n_prompts: int, per_step: int, parts: int):
        if per_step > n_prompts:
            logger.warning("prompts_per_step is %d: a step sees each of %d rows more than once", per_step, n_prompts)
        self._steps = -(-n_prompts // per_step)
        self._per_step = per_step
        self._parts = parts
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        size = self._per_step // self._parts
        first = self._epoch * self._steps * self._per_step
        for batch in range(len(self)):
            yield list(range(first + batch * size, first + (batch + 1) * size))

    def __len__(self) -> int:
        return self._steps * self._parts


class PromptLoader(DataLoader):
    """Micro-batches of prompts, not sharded over ranks."""

    def __init__(self, sequence: PromptSequence, places: StepPlaces):
        super().__init__(sequence, batch_sampler=places, collate_fn=list)
        self._places = places

    def set_epoch(self, epoch: int) -> None:
        """Called by the `Trainer` before each epoch, on the sampler itself when batches are skipped to resume."""
        self._places.set_epoch(epoch)


def is_conversational(prompt: Any) -> bool:
    """Whether a prompt is a list of messages."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict) and "role" in prompt[0]


def left_padded(prompts: Sequence[Sequence[int]], pad_token: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (N, T), of rows of unequal length."""
    length = max(len(prompt) for prompt in prompts)
    rows = [[pad_token] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    ids, is_token = torch.tensor([rows, mask]).to(device)  # one copy, because each is waited for
    return ids, is_token


def _prompts(rows: Any, split: str) -> list[Any]:
    """The column `prompt`.

    Raises:
        ValueError: a row that is no mapping, or without one; by its number.
    """
    if "prompt" in getattr(rows, "column_names", ()):
        return rows["prompt"][:]  # row by row it takes a hundred times as long
    for index in range(len(rows)):
        if not isinstance(rows[index], Mapping):
            raise ValueError(
                f"{split} row {index} is {rows[index]!r:.80}; give rows with 'prompt', as datasets.Dataset has them"
            )
        if "prompt" not in rows[index]:
            raise ValueError(f"{split} row {index} has the columns {sorted(rows[index])}; it needs 'prompt'")
    return [rows[index]["prompt"] for index in range(len(rows))]


def _tokens(
    prompts: Sequence[Any], tokenizer: Any, split: str, chat_template_kwargs: dict[str, Any]
) -> list[list[int]]:
    kinds = {is_conversational(prompt) for prompt in prompts}
    for index, prompt in enumerate(prompts):
        if len(kinds) > 1 or not (isinstance(prompt, str) or is_conversational(prompt)):
            raise ValueError(
                f"{split} row {index}: prompt is {prompt!r:.80}; give texts, or lists of messages, throughout"
            )
        try:
            check_text(prompt, "prompt", may_be_empty=True)
        except ValueError as error:
            raise ValueError(f"{split} row {index}: {error}") from error
    if kinds == {False}:
        return tokenizer(text=list(prompts))["input_ids"]
    if tokenizer.chat_template is None and "chat_template" not in chat_template_kwargs:
        raise ValueError(f"{split}: the prompts are chat messages but the tokenizer has no chat_template; set one")
    render = partial(
        tokenizer.apply_chat_template,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        **chat_template_kwargs,
    )
    try:
        return render(list(prompts))["input_ids"]
    except TemplateError as error:
        raise row_refused_by_template(prompts, split, render, error) from error


def _checked(ids: list[int], where: str, longest: int | None, n_embeddings: int, tokenizer: Any) -> list[int]:
    if not ids:
        raise ValueError(f"{where}: the prompt has no tokens, and a completion needs one to follow")
    if longest is not None and len(ids) > longest:
        raise ValueError(
            f"{where}: the prompt has {len(ids)} tokens and the model's context has room for {longest} "
            "beside max_completion_length; shorten the prompt or the completion"
        )
    check_tokens(ids, n_embeddings, tokenizer, where)
    return list(ids)
