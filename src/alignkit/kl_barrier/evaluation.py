"""One evaluation against the reference: every batch and rank put together once, counted once.

How this differs from averaging what the batches report, and why:

1. D of a sequence is an aggregate of that sequence alone, so neither the batch size nor the number of ranks matters.
2. NLL, entropy and accuracy are sums over tokens divided once: a mean over batches over-weights the short last one.
3. Both directions and all five aggregates are reported, whichever of them was trained on.
4. The tokens of the largest divergence are shown in their text, those of a non-finite one before all others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import gather_object
from torch import Tensor

from alignkit.kl_barrier.aggregation import AGGREGATES, Aggregate, aggregate_positions
from alignkit.kl_barrier.evaluation_report import DIRECTIONS, BarrierReport, WorstToken
from alignkit.kl_barrier.sequences import IGNORED_LABEL, sequences_of

FloatArray = npt.NDArray[np.float64]
SUMS = ("n_tokens", "nll", "entropy", "is_top1")
CONTEXT_TOKENS = 10


class Statistics(Protocol):
    """What is known of the labelled positions `(N,)` of a batch, in row-major order."""

    log_probs: Any
    entropy: Any
    is_top1: Any
    reverse_kl: Any
    forward_kl: Any


@dataclass(frozen=True)
class Position:
    """A token of large divergence and the tokens around it, as numbers. `sequence` counts from the batch's first."""

    divergence_nats: float
    token: int
    before: list[int]
    after: list[int]
    sequence: int
    position: int
    step: int = 0

    def rank_key(self) -> tuple[bool, float]:
        """NaN first, then from large to small."""
        is_number = self.divergence_nats == self.divergence_nats
        return is_number, -self.divergence_nats if is_number else 0.0


class BarrierEvaluation:
    """Collects the batches of one evaluation. What is kept grows with the sequences, not with the tokens.

    Args:
        kl_direction (`str`): direction whose largest values are kept as the worst tokens.
        n_worst (`int`): how many of them.
    """

    def __init__(self, kl_direction: str = "reverse", *, n_worst: int = 20):
        self._direction = kl_direction
        self._n_worst = n_worst
        self._batches: list[FloatArray] = []  # of each batch a line per sequence, (S, 4 + 2 · 5)
        self._worst: list[Position] = []

    @torch.no_grad()
    def add(self, statistics: Statistics, batch: Mapping[str, Any], *, n_real: int | None = None) -> None:
        """Add a batch. Waits for the device.

        Args:
            statistics: vectors `(N,)` at the positions whose next token has a label, in row-major order.
            batch: `input_ids` and `labels` `(B, T)`; `attention_mask` or `position_ids` if there are any.
            n_real (`int`, *optional*): only the first so many sequences count. Under several ranks a dataloader fills
                the last batch with rows that were there before.

        Raises:
            ValueError: statistics of another number of positions than the batch has labels.
        """
        sequences = sequences_of(batch)
        index = sequences.index
        for name in ("log_probs", "entropy", "is_top1", *DIRECTIONS):
            if len(getattr(statistics, name)) != len(index):
                raise ValueError(
                    f"{name} has {len(getattr(statistics, name))} positions, but {len(index)} next tokens have a label"
                )
        n_real = sequences.count if n_real is None else min(n_real, sequences.count)
        columns = [torch.ones_like(statistics.entropy), -statistics.log_probs, statistics.entropy, statistics.is_top1]
        sums = [
            torch.zeros(sequences.count, device=index.device).index_add(0, index, values.float()) for values in columns
        ]
        divergences = [
            aggregate_positions(getattr(statistics, direction), how, index, n_sequences=sequences.count)
            for direction in DIRECTIONS
            for how in AGGREGATES
        ]
        lines = torch.stack([*sums, *divergences], dim=1)[:n_real].cpu().double().numpy()
        is_labelled = lines[:, 0] > 0
        kl = getattr(statistics, f"{self._direction}_kl").float()[index < n_real]
        number = is_labelled.cumsum() - 1
        found = _worst_positions(kl, index[index < n_real], batch, self._n_worst)
        step = len(self._batches)
        self._worst += [replace(one, step=step, sequence=int(number[one.sequence])) for one in found]
        self._worst = sorted(self._worst, key=Position.rank_key)[: self._n_worst]
        self._batches.append(lines[is_labelled])

    def assemble(self, tokenizer: Any, *, aggregate: Aggregate, tau_nats: float) -> BarrierReport:
        """The report over all ranks, in the order of the data. Collective.

        Args:
            tokenizer: decodes the worst tokens.
            aggregate (`str`), tau_nats (`float`): the gate that is reported.

        Raises:
            ValueError: no token of the evaluation has a label.
        """
        gathered = gather_object([(self._batches, self._worst)])
        # Rank after rank in every step is the order in which the sampler deals the rows out.
        order = sorted((step, rank) for rank, (batches, _) in enumerate(gathered) for step in range(len(batches)))
        tables = [gathered[rank][0][step] for step, rank in order]
        starts = dict(zip(order, np.cumsum([0, *map(len, tables)]).tolist(), strict=False))
        table = np.concatenate(tables) if tables else np.zeros((0, 0))
        if not len(table):
            raise ValueError(
                "no token of the evaluation set has a label that a token before it predicts, so there is nothing to "
                "measure; look at max_length and at the masks of completion_only_loss or assistant_only_loss"
            )
        worst = [
            replace(one, sequence=starts[one.step, rank] + one.sequence)
            for rank, (_, found) in enumerate(gathered)
            for one in found
        ]
        worst.sort(key=lambda one: (*one.rank_key(), one.sequence, one.position))
        n_tokens, nll, entropy, n_right = table[:, : len(SUMS)].sum(0)
        by_direction = np.split(table[:, len(SUMS) :], len(DIRECTIONS), axis=1)
        return BarrierReport(
            n_sequences=len(table),
            n_tokens=int(n_tokens),
            nll=float(nll / n_tokens),
            entropy=float(entropy / n_tokens),
            token_accuracy=float(n_right / n_tokens),
            divergences={
                direction: dict(zip(AGGREGATES, columns.T, strict=True))
                for direction, columns in zip(DIRECTIONS, by_direction, strict=True)
            },
            direction=f"{self._direction}_kl",
            aggregate=aggregate,
            tau_nats=tau_nats,
            worst_tokens=[_decoded(one, tokenizer) for one in worst[: self._n_worst]],
        )


def _worst_positions(kl: Tensor, index: Tensor, batch: Mapping[str, Any], n: int) -> list[Position]:
    """The n largest divergences of a batch's first positions; of equal ones those that come first."""
    values, places = kl.sort(descending=True, stable=True)  # NaN is largest
    where = (batch["labels"][:, 1:] != IGNORED_LABEL).flatten().nonzero().squeeze(1)[places[:n]]
    ids, mask, position_ids = batch["input_ids"].cpu(), batch.get("attention_mask"), batch.get("position_ids")
    is_text = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.cpu().bool()
    is_start = torch.zeros_like(is_text) if position_ids is None else position_ids.cpu() == 0
    found = []
    for value, place, sequence in zip(values[:n].tolist(), where.tolist(), index[places[:n]].tolist(), strict=True):
        row, column = divmod(place, ids.shape[1] - 1)
        column += 1  # of the predicted token
        starts = is_start[row].nonzero().flatten()
        start = int(starts[starts <= column].max()) if (starts <= column).any() else 0
        end = int(starts[starts > column].min()) if (starts > column).any() else ids.shape[1]
        before = ids[row, start:column][is_text[row, start:column]].tolist()
        after = ids[row, column + 1 : end][is_text[row, column + 1 : end]].tolist()
        found.append(
            Position(
                divergence_nats=value,
                token=int(ids[row, column]),
                before=before[-CONTEXT_TOKENS:],
                after=after[:CONTEXT_TOKENS],
                sequence=sequence,
                position=len(before),
            )
        )
    return found


def _decoded(worst: Position, tokenizer: Any) -> WorstToken:
    decode = getattr(tokenizer, "tokenizer", tokenizer).decode  # a processor holds its tokenizer
    return WorstToken(
        divergence_nats=worst.divergence_nats,
        token=decode([worst.token]),
        token_id=worst.token,
        before=decode(worst.before),
        after=decode(worst.after),
        sequence=worst.sequence,
        position=worst.position,
    )
