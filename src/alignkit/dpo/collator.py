"""Preference pairs to a batch, and a batch to its completions.

Differences from TRL's `DataCollatorForPreference`, whose tensors come out where nothing is cut:
1. Prompts and completions are cut by [`alignkit.dpo.truncation`], and what was cut is counted.
2. A column `beta` goes along, with the keys under which log-probabilities of the reference are kept, and with the rows
   packed so that a prompt is run once for all its completions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignkit.dpo.truncation import PromptTruncation, check_limits, cut_pair
from alignkit.row_cache import row_key
from alignkit.shared_prefix import PackedRows, RowCost, pack_rows


@dataclass
class PairCollator:
    """Collates tokenised pairs `prompt_ids`, `chosen_ids`, `rejected_ids` and, where there is one, `beta`.

    Args:
        pad_token_id: id put into padding; never looked for afterwards, the masks say what is real.
        max_length, max_prompt_length, prompt_truncation: see [`cut_pair`].
        pad_to_multiple_of: pad the length to a multiple of this.
        share_prefix: plan rows in which a prompt occurs once.
        max_packed_tokens: longest such row.
        cost: of such a row, by which they are planned.
        with_keys: give the key of each row.

    Returns a dict of
        `input_ids`, `attention_mask`, `completion_mask` (2B, T): the chosen rows, then the rejected ones, padded on
            the right
        `n_cut` (B, 2): tokens cut of the prompt, and of both completions together
        `beta` (B,) float32: where the rows have it
        `row_keys`: 2B keys of 16 bytes, with `with_keys`
        `packed`: `PackedRows`, whose `index` is (2B, C + 1) from the last prompt token on, with `share_prefix`; `None`
            where nothing can be shared or it does not pay

    Raises:
        ValueError: limits that leave no room, or an empty completion.
    """

    pad_token_id: int
    max_prompt_length: int | None = None
    max_length: int | None = None
    prompt_truncation: PromptTruncation = "keep_end"
    pad_to_multiple_of: int | None = None
    share_prefix: bool = False
    max_packed_tokens: int | None = None
    cost: RowCost = field(default_factory=RowCost)
    with_keys: bool = False

    def __post_init__(self):
        check_limits(self.max_length, self.max_prompt_length, self.prompt_truncation)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        pairs = [
            cut_pair(
                example["prompt_ids"],
                example["chosen_ids"],
                example["rejected_ids"],
                max_length=self.max_length,
                max_prompt_length=self.max_prompt_length,
                prompt_truncation=self.prompt_truncation,
            )
            for example in examples
        ]
        rows = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
        batch: dict[str, Any] = self._pad(rows)
        batch["n_cut"] = torch.tensor([(pair.n_cut_prompt, pair.n_cut_chosen + pair.n_cut_rejected) for pair in pairs])
        if "beta" in examples[0]:
            batch["beta"] = torch.tensor([example["beta"] for example in examples], dtype=torch.float32)
        if self.with_keys:
            batch["row_keys"] = [row_key(prompt, completion) for prompt, completion in rows]
        if self.share_prefix:
            batch["packed"] = self._pack(rows)
        return batch

    def _pad(self, rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        multiple = self.pad_to_multiple_of or 1
        longest = max(len(prompt) + len(completion) for prompt, completion in rows)
        shape = len(rows), -(-longest // multiple) * multiple
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask, completion_mask = torch.zeros(2, *shape, dtype=torch.long)
        for number, (prompt, completion) in enumerate(rows):
            end = len(prompt) + len(completion)
            input_ids[number, :end] = torch.tensor([*prompt, *completion])
            attention_mask[number, :end] = 1
            completion_mask[number, len(prompt) : end] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}

    def _pack(self, rows: Sequence[tuple[list[int], list[int]]]) -> PackedRows | None:
        if any(len(prompt) == 0 for prompt, _ in rows):
            # The first token of a row is predicted from nothing: there is no position to start from.
            return None
        return pack_rows(
            [[*prompt, *completion] for prompt, completion in rows],
            [len(prompt) - 1 for prompt, _ in rows],
            width=1 + max(len(completion) for _, completion in rows),
            max_packed_tokens=self.max_packed_tokens,
            cost=self.cost,
        )


def cut_to_completions(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with its three tensors (2B, T) cut to [last prompt token | completion], (2B, C + 1).

    The first column of `attention_mask` holds the number of prompt tokens, so that its sum is that of the uncut mask:
    TRL counts tokens by it. It therefore fits a forward of packed rows only, which has masks of its own.

    Args:
        batch: from a [`PairCollator`], on any device; `packed` is not `None`, so that every prompt has a token.
    """
    input_ids, attention_mask, completion_mask = (
        batch[name] for name in ("input_ids", "attention_mask", "completion_mask")
    )
    # The width comes from the shape of the packed rows' index: a maximum would make the host wait for the device.
    columns = torch.arange(batch["packed"].index.shape[1], device=input_ids.device)
    n_prompt = completion_mask.argmax(dim=1, keepdim=True)  # (2B, 1)
    positions = n_prompt - 1 + columns  # (2B, C + 1)
    is_real = positions < attention_mask.sum(dim=1, keepdim=True)
    cut_ids = input_ids.gather(1, positions.clamp(max=input_ids.shape[1] - 1)).where(is_real, 0)
    cut_completions = is_real.long()
    cut_completions[:, 0] = 0
    cut_attention = torch.cat([n_prompt, cut_completions[:, 1:]], dim=1)
    return {**batch, "input_ids": cut_ids, "attention_mask": cut_attention, "completion_mask": cut_completions}
