"""Training metrics as sums and counts: added on the device, gathered once, divided once.

An average of averages is wrong as soon as batches differ in size: with padding, accumulation, or a short last batch.
"""

from typing import Any

import torch
from torch import Tensor


def gather_ragged(accelerator: Any, values: Tensor) -> Tensor:
    """Concatenation over ranks of vectors `(n,)` whose n differs from rank to rank. Collective."""
    if accelerator.num_processes == 1:
        return values
    sizes = accelerator.gather(torch.tensor([len(values)], device=values.device)).tolist()
    rows = accelerator.gather(torch.nn.functional.pad(values, (0, max(sizes) - len(values)))[None])
    return torch.cat([row[:size] for row, size in zip(rows, sizes, strict=True)])


def gather_around(accelerator: Any, values: Tensor) -> tuple[Tensor, Tensor]:
    """What the ranks before this one and those after it hold, each concatenated in rank order. Collective."""
    if accelerator.num_processes == 1:
        return values[:0], values[:0]
    sizes = accelerator.gather(torch.tensor([len(values)], device=values.device)).tolist()
    everything = gather_ragged(accelerator, values)
    start = sum(sizes[: accelerator.process_index])
    return everything[:start], everything[start + len(values) :]


def count_real_rows(accelerator: Any, n_rows: int) -> int:
    """How many of this rank's `n_rows` of the current batch of an evaluation count.

    Where a data set does not divide evenly, accelerate fills the last batch of each rank with rows seen before.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return n_rows
    return min(max(state.remainder - accelerator.process_index * n_rows, 0), n_rows)


class MetricSums:
    """Running sums, counts and extremes of vectors of metrics, without a host sync until they are read.

    Every rank must add the same names with the same shapes; entries that a rank has nothing to say about have a count
    of 0 there (for means) or are infinite (for extremes).
    """

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._lows: dict[str, Tensor] = {}

    def add_mean(self, name: str, total: Tensor, count: Tensor) -> None:
        """Add sums `(n,)` and their counts `(n,)`; the metric is Σ total / Σ count."""
        pair = _exact(torch.stack([total, count.expand_as(total)]))
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def add_total(self, name: str, total: Tensor) -> None:
        """Add `(n,)` to a sum that stays a sum."""
        self.add_mean(f"total/{name}", total, torch.zeros_like(total))

    def add_extremes(self, name: str, low: Tensor, high: Tensor) -> None:
        """Add minima and maxima `(n,)`, read as `min_<name>` and `max_<name>`."""
        pair = _exact(torch.stack([low, -high]))
        self._lows[name] = torch.minimum(self._lows[name], pair) if name in self._lows else pair

    def pop(self, accelerator: Any) -> dict[str, list[float]]:
        """The metrics over all ranks since the last call; NaN where a mean counted nothing. Collective."""
        if not self._sums and not self._lows:
            return {}
        tensors = [*self._sums.values(), *self._lows.values()]
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        every_rank = accelerator.gather(flat[None])  # (ranks, n)
        n_sums = sum(tensor.numel() for tensor in self._sums.values())
        reduced = torch.cat([every_rank[:, :n_sums].sum(0), every_rank[:, n_sums:].amin(0)]).cpu()
        pairs = [part.reshape(2, -1) for part in reduced.split([tensor.numel() for tensor in tensors])]
        metrics = {}
        for name, (total, count) in zip(self._sums, pairs[: len(self._sums)], strict=True):
            is_total = name.startswith("total/")
            metrics[name.removeprefix("total/")] = (total if is_total else total / count).tolist()
        for name, (low, minus_high) in zip(self._lows, pairs[len(self._sums) :], strict=True):
            metrics[f"min_{name}"], metrics[f"max_{name}"] = low.tolist(), (-minus_high).tolist()
        self._sums, self._lows = {}, {}
        return metrics


def _exact(values: Tensor) -> Tensor:
    """In float64, so that token counts stay whole numbers; in float32 on Apple's GPUs, which have no more."""
    return values.detach().to(torch.float32 if values.device.type == "mps" else torch.float64)
