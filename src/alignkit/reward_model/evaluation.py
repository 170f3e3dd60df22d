"""One evaluation: raw scores and comparisons of every batch and rank, put together once, counted once."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from alignkit.reward_model.comparisons import Comparisons, tiered_comparisons
from alignkit.reward_model.metrics import EvaluationReport, evaluation_report
from alignkit.reward_model.negatives import NegativePool

COMPARISON_FIELDS = ("head", "weight", "margin", "unit", "tier")


@dataclass
class EvaluationSet:
    """Everything an evaluation is computed from, on the CPU.

    Attributes:
        scores (`Tensor`, `(M, K)`): scores of the distinct texts.
        lengths (`Tensor`, `(M,)`): their lengths in tokens.
        comparisons (`Comparisons`): comparisons over the M texts.
        positive, positive_head (`Tensor`, `(n,)`): distinct (text, head) that a regularizer acts on.
    """

    scores: Tensor
    lengths: Tensor
    comparisons: Comparisons
    positive: Tensor
    positive_head: Tensor

    def report(self, head_names: list[str], tier_names: list[str]) -> EvaluationReport:
        """All metrics. Each pair and each positive counts once: weights are the loss's alone."""
        names = [*tier_names, None]  # -1, no tier, reads the last
        return evaluation_report(
            self.scores,
            self.comparisons.winner,
            self.comparisons.loser,
            self.comparisons.head,
            self.comparisons.unit,
            head_names=head_names,
            lengths=self.lengths,
            tiers=[names[tier] for tier in self.comparisons.tier.tolist()],
        )


@dataclass
class EvaluationRecord:
    """Collects batches. Sampler padding repeats rows across ranks: ids tell which, so that each counts once."""

    texts: list[dict[str, np.ndarray]] = field(default_factory=list)

    def add(self, batch: dict[str, Any], scores: Tensor) -> None:
        comparisons, keys = batch["comparisons"], batch["text_key"]
        arrays = {
            "key": keys,
            "scores": scores,
            "length": batch["attention_mask"].sum(1),
            "winner_key": keys[comparisons.winner],
            "loser_key": keys[comparisons.loser],
            **{name: getattr(comparisons, name) for name in COMPARISON_FIELDS},
            "comparison_id": batch["comparison_id"],
            "positive_key": keys[batch["positive"]],
            "positive_head": batch["positive_head"],
            "member_key": keys[batch["member"]],
            "member_head": batch["member_head"],
            "member_id": batch["member_id"],
        }
        self.texts.append({name: tensor.detach().cpu().numpy() for name, tensor in arrays.items()})

    def assemble(self, negatives: NegativePool | None, *, tier_weights: dict[str, float]) -> EvaluationSet:
        """Gather over ranks (collective) and let every member meet every negative that may be used against it."""
        batches = gather_object(self.texts)
        columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        keys, first = np.unique(columns["key"], return_index=True)
        _, once = np.unique(columns["comparison_id"], return_index=True)
        rows = {name: torch.from_numpy(columns[name][once]) for name in COMPARISON_FIELDS}
        comparisons = Comparisons(
            winner=_rows(keys, columns["winner_key"][once]), loser=_rows(keys, columns["loser_key"][once]), **rows
        )
        if negatives is not None and len(columns["member_id"]):
            _, once = np.unique(columns["member_id"], return_index=True)
            member_key, member_head = columns["member_key"][once], torch.from_numpy(columns["member_head"][once])
            members = zip(member_key.tolist(), member_head.tolist(), strict=True)
            # Conflicts were reported when the data was prepared.
            pool = negatives.without_conflicts(members, on_conflict="drop")
            met = tiered_comparisons(
                member_head, pool.tiers, tier_weights=tier_weights, pairing="all", negative_heads=pool.heads
            )
            index = torch.cat([_rows(keys, member_key), _rows(keys, np.array(pool.keys))])
            comparisons = Comparisons.concatenate([comparisons, met.rows(index)])
        positives = np.unique(np.stack([columns["positive_key"], columns["positive_head"]]), axis=1)
        return EvaluationSet(
            scores=torch.from_numpy(columns["scores"][first]),
            lengths=torch.from_numpy(columns["length"][first]),
            comparisons=comparisons,
            positive=_rows(keys, positives[0]),
            positive_head=torch.from_numpy(positives[1]),
        )


def _rows(keys: np.ndarray, wanted: np.ndarray) -> Tensor:
    """Row of each wanted key among the sorted distinct keys.

    Raises:
        ValueError: a text that was never scored.
    """
    rows = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    n_missing = int((keys[rows] != wanted).sum())
    if n_missing:
        raise ValueError(
            f"{n_missing} texts of the evaluation were not scored: the encoded evaluation set was cut, or "
            "dataloader_drop_last=True left its last batch out; cut the rows before they are given to the trainer"
        )
    return torch.from_numpy(rows)
