"""Tiers of negatives: a pool of encoded texts, the draw of a step, and how it joins a micro-batch."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from alignkit.reward_model.batching import pad_length, pad_texts
from alignkit.reward_model.comparisons import Comparisons, tiered_comparisons
from alignkit.reward_model.data import RowEncoder, encode_text, encoded_row, text_key
from alignkit.reward_model.rows import ParsedRow, parse_negative


@dataclass(frozen=True)
class NegativePool:
    """Encoded negatives.

    Attributes:
        name (`str`): name of the dataset, for error messages.
        head_names (`list[str]`): names of the K heads.
        rows (`list[int]`): row of the dataset that each of the N texts comes from.
        input_ids (`list[list[int]]`): token ids of each text.
        keys (`list[int]`): their 64-bit keys.
        tiers (`list[str]`): their tiers.
        heads (`Tensor`, `(N, K)` bool): heads each may be used against.
        dropped (`dict[str, int]`): per tier, texts dropped because they exceed `max_length`.
        conflicts (`dict[str, int]`): per tier, (text, head) uses dropped because the text is a positive of the head.
    """

    name: str
    head_names: list[str]
    rows: list[int]
    input_ids: list[list[int]]
    keys: list[int]
    tiers: list[str]
    heads: Tensor
    dropped: dict[str, int]
    conflicts: dict[str, int]

    @staticmethod
    def from_dataset(dataset: Dataset, encoder: RowEncoder) -> "NegativePool":
        """Encode the rows (`text`, `tier`, `heads`) of a negatives dataset.

        Raises:
            TypeError: no `Dataset`.
            ValueError: an empty dataset or a bad row, named by number.
        """
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"{encoder.split} is a {type(dataset).__name__}; its rows are drawn by number, so make it a "
                "datasets.Dataset, for example by Dataset.from_list(rows)"
            )
        if len(dataset) == 0:
            raise ValueError(f"the {encoder.split} dataset is empty; give it at least one row")
        rows, input_ids, tiers, heads = [], [], [], []
        dropped: dict[str, int] = {}
        for index, row in enumerate(dataset):
            try:
                text, tier, row_heads = parse_negative(row, encoder.head_names)
                texts, _ = encoder.fit([encode_text(encoder.tokenizer, text)])
            except ValueError as error:
                raise ValueError(f"{encoder.split} row {index}: {error}") from error
            if not texts:
                dropped[tier] = dropped.get(tier, 0) + 1
                continue
            rows.append(index)
            input_ids.append(texts[0])
            tiers.append(tier)
            heads.append([head in row_heads for head in range(len(encoder.head_names))])
        mask = torch.tensor(heads, dtype=torch.bool).reshape(-1, len(encoder.head_names))
        keys = [text_key(ids) for ids in input_ids]
        return NegativePool(encoder.split, encoder.head_names, rows, input_ids, keys, tiers, mask, dropped, {})

    def without_conflicts(
        self, positives: Iterable[tuple[int, int]], *, on_conflict: Literal["raise", "drop"]
    ) -> "NegativePool":
        """The pool without uses of a text against a head of which the same text is a positive.

        Args:
            positives (iterable of `(text key, head)`): the positives of the dataset.
            on_conflict (`str`): `"raise"` names the first conflict, `"drop"` drops and counts them.
        """
        heads = self.heads.clone()
        conflicts: dict[str, int] = {}
        rows_of: dict[int, list[int]] = {}
        for row, key in enumerate(self.keys):
            rows_of.setdefault(key, []).append(row)
        for key, head in positives:
            for row in rows_of.get(key, ()):
                if not heads[row, head]:
                    continue
                if on_conflict == "raise":
                    raise ValueError(
                        f"{self.name} row {self.rows[row]} (tier {self.tiers[row]!r}) is also a positive of head "
                        f"{self.head_names[head]!r}, against which it may be used; take the head out of its 'heads', "
                        "or set on_conflict='drop'"
                    )
                heads[row, head] = False
                conflicts[self.tiers[row]] = conflicts.get(self.tiers[row], 0) + 1
        return dataclasses.replace(self, heads=heads, conflicts=conflicts)

    @cached_property
    def rows_of_tier(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, tier in enumerate(self.tiers):
            rows.setdefault(tier, []).append(row)
        return rows

    def heads_met(self, tier_weights: Mapping[str, float]) -> set[str]:
        """Names of the heads against which some text of a tier of weight above 0 may be used."""
        weights = self.member_weights(tier_weights)
        return {name for name, weight in zip(self.head_names, weights, strict=True) if weight > 0}

    def member_weights(self, tier_weights: Mapping[str, float]) -> list[float]:
        """What a positive of each of the K heads weighs with `pairing="all"`: the weights of the tiers it meets."""
        weights = [0.0] * len(self.head_names)
        for tier, rows in self.rows_of_tier.items():
            for head in self.heads[rows].any(0).nonzero().flatten().tolist():
                weights[head] += tier_weights[tier]
        return weights

    def draw(self, seed: int, step: int, per_tier: int) -> "NegativePool":
        """The negatives of a step: `per_tier` of each tier (or all, if fewer), a function of (seed, step) alone.

        Each tier is walked through in a random order that changes with every pass, so that all its texts are used
        equally often. Ranks, micro-batches and resumed runs agree without talking to each other.
        """
        drawn: list[int] = []
        for number, tier in enumerate(sorted(self.rows_of_tier)):
            rows = self.rows_of_tier[tier]
            n_drawn = min(per_tier, len(rows))
            epoch, slot = divmod(step, len(rows) // n_drawn)
            order = _permutation(seed, number, epoch, len(rows))
            drawn += [rows[i] for i in order[slot * n_drawn : (slot + 1) * n_drawn]]
        return self.subset(drawn)

    def encoded_rows(self) -> list[dict[str, Any]]:
        """The texts as encoded rows without comparisons, so that an evaluation scores them like any other text."""
        return [encoded_row(-1, [ids], ParsedRow([ids])) for ids in self.input_ids]

    def join(
        self,
        batch: dict[str, Any],
        *,
        tier_weights: dict[str, float],
        pairing: Literal["all", "positional"],
        on_conflict: Literal["raise", "drop"],
        pad_token_id: int,
    ) -> dict[str, Any]:
        """The batch with these negatives as further texts, and their comparisons with the batch's members."""
        if not len(batch["member"]):
            return batch
        device, n_texts = batch["input_ids"].device, len(batch["text_key"])
        packed = torch.cat([batch["text_key"], batch["member"], batch["member_head"]]).cpu()  # one wait for the GPU
        keys = packed[:n_texts].tolist()
        member, member_head = packed[n_texts:].chunk(2)
        members = [(keys[text], head) for text, head in zip(member.tolist(), member_head.tolist(), strict=True)]
        # A stream's positives are not known beforehand, so its conflicts show only here.
        pool = self.without_conflicts(members, on_conflict=on_conflict)
        position = {key: index for index, key in enumerate(keys)}
        new_texts = []
        for key, ids in zip(pool.keys, pool.input_ids, strict=True):
            if key not in position:
                position[key] = len(position)
                new_texts.append(ids)
        comparisons = tiered_comparisons(
            member_head, pool.tiers, tier_weights=tier_weights, pairing=pairing, negative_heads=pool.heads
        )
        index = torch.cat([member, torch.tensor([position[key] for key in pool.keys], dtype=torch.long)])
        joined = dict(batch)
        joined["comparisons"] = Comparisons.concatenate([batch["comparisons"], comparisons.rows(index).to(device)])
        if new_texts:
            joined.update(_concatenate_texts(batch, new_texts, pad_token_id))
        return joined

    def subset(self, rows: list[int]) -> "NegativePool":
        """Some of the negatives, as a pool."""
        return dataclasses.replace(
            self,
            rows=[self.rows[row] for row in rows],
            input_ids=[self.input_ids[row] for row in rows],
            keys=[self.keys[row] for row in rows],
            tiers=[self.tiers[row] for row in rows],
            heads=self.heads[rows],
        )


@lru_cache(maxsize=64)
def _permutation(seed: int, tier: int, epoch: int, size: int) -> list[int]:
    return np.random.default_rng([seed, tier, epoch]).permutation(size).tolist()


def _concatenate_texts(batch: dict[str, Any], texts: list[list[int]], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of the batch's texts followed by others, on the batch's device."""
    more = pad_texts(texts, pad_token_id)
    length = max(batch["input_ids"].shape[1], more["input_ids"].shape[1])
    old = pad_length(batch["input_ids"], batch["attention_mask"], length, pad_token_id)
    more = pad_length(more["input_ids"], more["attention_mask"], length, pad_token_id)
    new = torch.stack([more[name] for name in old]).to(batch["input_ids"].device)  # one copy, which is waited for
    return {name: torch.cat([tensor, added]) for (name, tensor), added in zip(old.items(), new, strict=True)}
