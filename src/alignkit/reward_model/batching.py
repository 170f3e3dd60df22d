"""Encoded rows to a batch: distinct texts once, comparisons between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from alignkit.reward_model.comparisons import Comparisons

# Comparison c of row r has the id r * ROW_STRIDE + c: how duplicates of a row are recognised after gathering.
ROW_STRIDE = 1 << 20


@dataclass
class ComparisonCollator:
    """Collates encoded rows. Each distinct text is in the batch once, however many comparisons name it.

    Args:
        pad_token_id (`int`): id put into padding; never looked for afterwards, the attention mask says what is real.
        pad_to_multiple_of (`int`, *optional*): pad the length to a multiple of this.

    Returns a dict of
        `input_ids`, `attention_mask` (M, T): texts, padded on the right
        `text_key` (M,): 64-bit key of each text
        `comparisons`: `Comparisons` over the M texts; `comparison_id` (C,)
        `positive`, `positive_head` (n,): texts that win or are members, once per head (what regularizers act on)
        `member`, `member_head`, `member_id` (m,): positives of a corpus, still to meet their negatives
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        # First texts of all rows, then second texts, ...: for pairs this is TRL's order, so that sums round alike.
        texts = {
            key: ids
            for texts_at in zip_longest(*(zip(row["text_key"], row["input_ids"], strict=True) for row in rows))
            for key, ids in filter(None, texts_at)
        }
        keys = list(texts)
        position = {key: index for index, key in enumerate(keys)}
        batch: dict[str, Any] = pad_texts(
            list(texts.values()), self.pad_token_id, pad_to_multiple_of=self.pad_to_multiple_of
        )
        batch["text_key"] = torch.tensor(keys, dtype=torch.long)
        comparisons, comparison_ids, positives, members = [], [], {}, []
        for row in rows:
            at = [position[key] for key in row["text_key"]]
            columns = zip(
                *(row[name] for name in ("winner", "loser", "head", "weight", "margin", "unit")), strict=True
            )
            for number, (winner, loser, head, weight, margin, unit) in enumerate(columns):
                comparisons.append((at[winner], at[loser], head, weight, margin, unit))
                comparison_ids.append(row["row"] * ROW_STRIDE + number)
            positives.update(
                dict.fromkeys(
                    (at[text], head) for text, head in zip(row["positive"], row["positive_head"], strict=True)
                )
            )
            members += [
                (at[text], head, row["row"] * ROW_STRIDE + number)
                for number, (text, head) in enumerate(zip(row["member"], row["member_head"], strict=True))
            ]
        indices = _columns([c[:3] for c in comparisons], 3, torch.long)
        values = _columns([c[3:] for c in comparisons], 3, torch.float32)
        batch["comparisons"] = Comparisons(*indices, *values)
        batch["comparison_id"] = torch.tensor(comparison_ids, dtype=torch.long)
        batch["positive"], batch["positive_head"] = _columns(list(positives), 2, torch.long)
        batch["member"], batch["member_head"], batch["member_id"] = _columns(members, 3, torch.long)
        return batch


def pad_texts(
    texts: Sequence[Sequence[int]], pad_token_id: int, *, pad_to_multiple_of: int | None = None
) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` `(M, T)` of texts, padded on the right."""
    tensors = [torch.tensor(ids, dtype=torch.long) for ids in texts]
    input_ids = pad_sequence(tensors, batch_first=True, padding_value=pad_token_id)
    mask = pad_sequence([torch.ones_like(ids) for ids in tensors], batch_first=True)
    if pad_to_multiple_of is not None:
        return pad_length(
            input_ids, mask, -(-input_ids.shape[1] // pad_to_multiple_of) * pad_to_multiple_of, pad_token_id
        )
    return {"input_ids": input_ids, "attention_mask": mask}


def pad_length(input_ids: Tensor, attention_mask: Tensor, length: int, pad_token_id: int) -> dict[str, Tensor]:
    """The same texts padded on the right to `length` tokens."""
    extra = (0, length - input_ids.shape[1])
    return {
        "input_ids": torch.nn.functional.pad(input_ids, extra, value=pad_token_id),
        "attention_mask": torch.nn.functional.pad(attention_mask, extra),
    }


def _columns(rows: list[tuple], width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return torch.tensor(rows, dtype=dtype).reshape(-1, width).unbind(1)
