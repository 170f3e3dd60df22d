"""Which sequence a labelled position belongs to. A sequence is a row, or a document of a padding-free row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED_LABEL = -100
POSITIONS = "label_positions"


@dataclass(frozen=True)
class Sequences:
    """The sequences of a batch.

    Attributes:
        index (`Tensor`, `(N,)`): sequence of each position whose next token has a label, in row-major order.
        count (`int`): number of sequences S, also those without a labelled position.
        n_labelled (`Tensor`, scalar): how many have one. The first token of a sequence is never predicted.
    """

    index: Tensor
    count: int
    n_labelled: Tensor


def sequences_of(batch: Mapping[str, Any]) -> Sequences:
    """Sequences of a collated batch of causal language modelling.

    Args:
        batch: `labels` (B, T), -100 where there is none; `position_ids` (B, T), which restart at 0 with every document
            of a padding-free batch; `cu_seq_lens_q` (D + 1), the documents' boundaries, and what [`add_positions`]
            adds save a wait for the GPU each.
    """
    labels = batch["labels"]
    owner_of_tokens = _owner_of_tokens(batch)
    owner, mask = owner_of_tokens[:, 1:], labels[:, 1:] != IGNORED_LABEL
    if batch.get("cu_seq_lens_q") is not None and len(labels) == 1:
        count = len(batch["cu_seq_lens_q"]) - 1
    elif batch.get("position_ids") is not None:
        count = int(owner_of_tokens[-1, -1]) + 1  # they are numbered in their order
    else:
        count = len(labels)
    per_sequence = torch.zeros(count, dtype=torch.long, device=labels.device)
    per_sequence.index_add_(0, owner.flatten(), mask.flatten().long())
    index = owner[mask] if batch.get(POSITIONS) is None else owner[batch[POSITIONS]]
    return Sequences(index, count, (per_sequence > 0).sum())


def add_positions(batches: Sequence[dict[str, Any]]) -> None:
    """Add to every micro-batch of a step where its labels are: rows and columns `(N,)` in `labels[:, 1:]`, row by row.

    Waits for the device once for all of them. Without it every use of a micro-batch would wait to learn its N.
    """
    masks = [batch["labels"][:, 1:] != IGNORED_LABEL for batch in batches]
    sizes = torch.stack([mask.sum() for mask in masks]).tolist()
    for batch, mask, size in zip(batches, masks, sizes, strict=True):
        places = (~mask).flatten().to(torch.uint8).argsort(stable=True)[:size]
        batch[POSITIONS] = (places // mask.shape[1], places % mask.shape[1])


def _owner_of_tokens(batch: Mapping[str, Any]) -> Tensor:
    """Sequence of every token `(B, T)`."""
    position_ids = batch.get("position_ids")
    if position_ids is None:
        rows = torch.arange(len(batch["labels"]), device=batch["labels"].device)
        return rows[:, None].expand_as(batch["labels"])
    starts = position_ids == 0
    starts[:, 0] = True  # a row never continues the last one, not even where a row is cut inside a document
    return starts.flatten().cumsum(0).view_as(position_ids) - 1


def documents_of(batch: Mapping[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of every sequence that has a labelled position, in row-major order. Waits for the device.

    The first label of a sequence is set to -100: nothing predicts it. Padding stays: it has no label, and what stands
    after the last labelled token cannot change a causal model's hidden states.
    """
    columns = _owner_of_tokens(batch), batch["input_ids"], batch["labels"]
    owner, ids, labels = torch.stack(columns).flatten(1).tolist()
    documents: dict[int, tuple[list[int], list[int]]] = {}
    for sequence, token, label in zip(owner, ids, labels, strict=True):
        tokens, targets = documents.setdefault(sequence, ([], []))
        targets.append(label if tokens else IGNORED_LABEL)
        tokens.append(token)
    return [cut for document in documents.values() if (cut := _up_to_last_label(*document))[0]]


def _up_to_last_label(tokens: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    length = max((place + 1 for place, label in enumerate(labels) if label != IGNORED_LABEL), default=0)
    return tokens[:length], labels[:length]
