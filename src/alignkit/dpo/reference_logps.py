"""Log-probabilities by the reference of the completion tokens of a batch: from its forward, or found once and kept.

Differences from TRL's `precompute_ref_log_probs`:
1. Values are kept per token under a key of the row's tokens. How they are summed (`ld_alpha`, length normalisation) is
   decided when they are read; TRL keeps sums, and hands out those of another `ld_alpha`.
2. They belong to the weights of the reference alone, whatever else the run is made of. A changed dataset, template or
   limit of lengths costs the rows whose tokens changed.
3. Files are checked when they are read, and found again by every run of the user.
"""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, send_to_device, tqdm
from datasets import Dataset
from torch import Tensor, nn

from alignkit.dpo.collator import PairCollator, cut_to_completions
from alignkit.dpo.pairs import pair_keys
from alignkit.growing_row_cache import GrowingRowCache
from alignkit.reference import ReferenceManager

LAYOUT = "log-probabilities of completion tokens, version 1"
# What a run that is broken off has found by then is lost since the last file. Every file stays open while it is read.
SECONDS_PER_FILE = 600
NOT_FOR_THE_MODEL = {"beta", "completion_mask", "n_cut", "row_keys"}


def reference_folder(given: str | None) -> Path:
    """The folder that was given, or `ref_logps` in the user's cache: `$ALIGNKIT_CACHE`, else `~/.cache/alignkit`."""
    if given is not None:
        return Path(given)
    return Path(os.environ.get("ALIGNKIT_CACHE") or Path.home() / ".cache" / "alignkit") / "ref_logps"


class ReferenceLogps:
    """Per-token log-probabilities by the reference, `(2B, T - 1)` in nats, 0 outside completions.

    Args:
        reference: which weights are the reference. A separate model answers `fused_lm_head=True` and is placed.
        accelerator: of the trainer.
        folder: where to keep what `find` finds, readable by all ranks; `None` without precomputation.

    Raises:
        ValueError: a folder for a reference that moves.
    """

    def __init__(self, reference: ReferenceManager, accelerator: Any, *, folder: Path | None):
        self._reference = reference
        self._accelerator = accelerator
        self._cache: GrowingRowCache | None = None
        if folder is None:
            return
        if reference.kind == "ema":
            raise ValueError('ref="ema" moves with the policy, so its log-probabilities cannot be precomputed')
        # Under FSDP rank 0 alone may have the weights yet.
        weights = broadcast_object_list([reference.fingerprint()])[0]
        meaning = {"layout": LAYOUT, "weights": weights, "precision": str(accelerator.mixed_precision)}
        self._cache = GrowingRowCache(folder, meaning=meaning, dtype=torch.float32, width=1)

    def of_batch(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """By the reference's forward.

        Args:
            model: the policy, wrapped as it is trained.
            batch: from a [`PairCollator`], or cut to its completions and `packed`; on the device.
        """
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        inputs = {name: value for name, value in batch.items() if name not in NOT_FOR_THE_MODEL and value is not None}
        with self._reference.active(model) as ref_model:
            log_probs = ref_model(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs
        # Prompt learning prepends virtual tokens.
        return log_probs[:, -(labels.shape[1] - 1) :]

    def has(self, row_keys: Sequence[bytes]) -> bool:
        """Whether the values of all these rows have been found."""
        cache = self._cache
        return cache is not None and all(key in cache for key in row_keys)

    def of_rows(self, row_keys: Sequence[bytes], completion_mask: Tensor) -> Tensor:
        """From the files.

        Args:
            row_keys: of the 2B rows.
            completion_mask (`(2B, T)`): of the batch, or of its completions.

        Raises:
            KeyError: a row that `find` was not asked for.
        """
        assert self._cache is not None, "there are no files without a folder"
        is_completion = completion_mask[:, 1:].bool()
        values = torch.cat([self._cache[key] for key in row_keys]).squeeze(1).to(is_completion.device)
        return values.new_zeros(is_completion.shape).masked_scatter(is_completion, values)

    def find(
        self,
        model: nn.Module,
        dataset: Dataset,
        collator: PairCollator,
        *,
        name: str,
        batch_size: int,
        computing: AbstractContextManager,
        show_progress: bool = False,
    ) -> int:
        """Find the values of all rows of a dataset that no file has yet. Collective.

        A pair is missing if one of its rows is; of pairs with the same rows, one. The missing ones are run longest
        first. Nothing draws a random number.

        Args:
            model: the policy, wrapped as it is trained.
            dataset: tokenised pairs.
            collator: of the trainer.
            name: of the dataset, for messages.
            batch_size: pairs per forward and rank.
            computing: precision that the forward runs in.
            show_progress: whether to show a bar on rank 0.

        Returns:
            Number of batches over all ranks: ceil(missing pairs / batch_size).

        Raises:
            OSError: a file cannot be written, or not all ranks see the same folder.
        """
        assert self._cache is not None, "there is nowhere to keep it without a folder"
        limits = {name: getattr(collator, name) for name in ("max_length", "max_prompt_length", "prompt_truncation")}
        keys, n_tokens = pair_keys(dataset, **limits)
        # One rank decides for all: another run may add a file between two looks.
        missing = self._missing(keys, n_tokens) if self._accelerator.is_main_process else []
        missing = broadcast_object_list([missing])[0]
        batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
        with computing:
            rounds = range(0, len(batches), self._accelerator.num_processes)
            bar = tqdm(rounds, desc=f"Reference over the {name}", disable=not show_progress)
            self._run(model, dataset, replace(collator, with_keys=True), batches, bar)
        self._accelerator.wait_for_everyone()
        self._cache.refresh()
        if not all(self.has(pair) for pair in keys):
            raise FileNotFoundError(
                f"{self._cache.folder} lacks rows of the {name} that were just written to it; choose a folder for "
                "ref_cache_dir that all ranks share"
            )
        return len(batches)

    def _missing(self, keys: Sequence[tuple[bytes, bytes]], n_tokens: np.ndarray) -> list[int]:
        assert self._cache is not None
        self._cache.refresh()
        planned: set[bytes] = set()
        missing = []
        for number, pair in enumerate(keys):
            if any(key not in self._cache and key not in planned for key in pair):
                missing.append(number)
                planned.update(pair)
        return sorted(missing, key=lambda number: -n_tokens[number])

    def _run(
        self,
        model: nn.Module,
        dataset: Dataset,
        collator: PairCollator,
        batches: Sequence[list[int]],
        rounds: Iterable[int],
    ) -> None:
        """Every rank runs its share of the batches, all as many, because a sharded forward needs all of them."""
        assert self._cache is not None
        rank = self._accelerator.process_index
        rows = dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]).with_format(None)
        found: dict[bytes, Tensor] = {}
        written_s = time.monotonic()
        for first in rounds:
            columns = rows[batches[min(first + rank, len(batches) - 1)]]
            examples = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            batch = send_to_device(collator(examples), self._accelerator.device)
            if batch.get("packed") is not None:
                batch = cut_to_completions(batch)
            log_probs = self.of_batch(model, batch)
            if first + rank < len(batches):
                found.update(self._rows_of(batch, log_probs))
            if time.monotonic() - written_s > SECONDS_PER_FILE:
                self._cache.add(found)
                found, written_s = {}, time.monotonic()
        self._cache.add(found)

    def _rows_of(self, batch: Mapping[str, Any], log_probs: Tensor) -> dict[bytes, Tensor]:
        """The values (C, 1) of the rows of a batch under their keys."""
        is_completion = batch["completion_mask"][:, 1:].bool()
        values = log_probs.float()[is_completion].cpu()[:, None]
        lengths = is_completion.sum(dim=1).tolist()
        assert self._cache is not None
        return {
            key: row
            for key, row in zip(batch["row_keys"], values.split(lengths), strict=True)
            if key not in self._cache
        }


def sum_completions(per_token: Tensor, completion_mask: Tensor, ld_alpha: float | None) -> tuple[Tensor, Tensor]:
    r"""Log-probability of every completion, as TRL's `compute_ref_log_probs` sums it.

        without ld_alpha:  Σ_t l_t
        with it:           Σ_{t <= n} l_t + ld_alpha · Σ_{t > n} l_t,   n = min(|chosen|, |rejected|)

    Args:
        per_token (`(2B, T - 1)`): log-probabilities l_t in nats, 0 outside completions; chosen rows first.
        completion_mask (`(2B, T)`): 1 at tokens of completions.
        ld_alpha: weight in [0, 1] of the tokens beyond the shorter completion (LD-DPO, arXiv 2409.06411).

    Returns:
        Chosen and rejected, `(B,)` each.
    """
    if ld_alpha is None:
        chosen, rejected = per_token.sum(dim=1).chunk(2)
        return chosen, rejected
    mask = completion_mask[:, 1:]
    position = mask.cumsum(dim=1)  # of a completion's last token also behind it, where values are 0
    shorter = torch.stack(mask.sum(dim=1).chunk(2)).amin(dim=0).repeat(2)[:, None]
    is_shared = (position > 0) & (position <= shorter)
    shared, rest = (per_token * is_shared).sum(dim=1), (per_token * (position > shorter)).sum(dim=1)
    chosen, rejected = (shared + ld_alpha * rest).chunk(2)
    return chosen, rejected
