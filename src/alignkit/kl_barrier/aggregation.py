"""One number D for the divergences of many positions, over all of them or over each sequence, and the hinge on it.

How this differs from `torch.mean`, `torch.quantile`, `torch.linalg.vector_norm` and their like, and why:

1. All five work over ragged sequences at once, without a loop and, given `n_sequences`, without a host sync.
2. The 95th percentile takes any number of positions and half precision; `torch.quantile` refuses more than 2^24
   elements. Its rank is computed in whole numbers: in float32 it is off by rows once n is large.
3. The root mean square has the gradient 0 at all-zero divergences, without an epsilon, where √0 would give NaN. It is
   taken of the mean of squares: `vector_norm` over 2^24 float32 numbers is off by 1 %.
4. No position at all gives 0 with a gradient of 0. A NaN always shows, also in a quantile that would sort it away.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Aggregate = Literal["mean", "rmse", "p95", "max", "cvar95"]
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)


def aggregate_positions(
    kl: Tensor, how: Aggregate, sequence_index: Tensor | None = None, *, n_sequences: int | None = None
) -> Tensor:
    r"""D, the aggregate of the divergences k_1 ... k_n of a set of positions, in nats.

        "mean":    Σ k_i / n                                              gradient to all rows, 1/n each
        "rmse":    √(Σ k_i² / n)                                          all rows, k_i / (n D); 0 when D = 0
        "p95":     (1 - f) k_(r) + f k_(r+1),  r + f = 0.95 (n - 1)       at most 2 rows; sorted, counted from 0
        "max":     max k_i                                                1 row, or ties in equal parts
        "cvar95":  mean of the m = max(1, ⌈n / 20⌉) largest               m rows, 1/m each

    p95 does not see what fewer than 5 % of the positions do, however large their divergence; cvar95 does. Which of
    equal k_i stands at the edge of p95 or cvar95, and gets the gradient, is left open. Source of cvar95: Rockafellar
    and Uryasev (2000).

    Args:
        kl (`Tensor`, `(N,)`): divergence of each position. Half precision is upcast to float32.
        how (`str`): see above.
        sequence_index (`Tensor`, `(N,)` of integers, *optional*): sequence of each position, 0 to S - 1, in any order.
        n_sequences (`int`, *optional*): S. Default: the largest index plus 1, which costs a host sync on a GPU.

    Returns:
        `Tensor`, `()`; `(S,)` with a `sequence_index`. Without positions, 0 with a gradient of 0.

    Raises:
        ValueError: an unknown aggregate, `kl` that is no vector of floats, an index of another shape, of another type
            or below 0, or `n_sequences` that is smaller than the index needs (on a GPU an error of the device).
    """
    _check(kl, how, sequence_index)
    kl = _full_precision(kl)
    if sequence_index is None:
        return _over_all(kl, how)
    if n_sequences is None:
        n_sequences = _count_sequences(sequence_index)
    elif sequence_index.device.type == "cpu" and (needed := _count_sequences(sequence_index)) > n_sequences:
        raise ValueError(f"n_sequences is {n_sequences}, but sequence_index goes up to {needed - 1}")
    if not len(kl):
        return kl.new_zeros(n_sequences) + kl.sum()
    if how in ("p95", "cvar95"):
        return _over_sorted_sequences(kl, how, sequence_index, n_sequences)
    return _over_sequences(kl, how, sequence_index, n_sequences)


def plain_aggregate_positions(kl: Tensor, how: Aggregate, sequence_index: Tensor) -> Tensor:
    """[`aggregate_positions`] over sequences as a loop over them: the slow twin that tests compare with.

    Args:
        kl (`Tensor`, `(N,)`), how (`str`), sequence_index (`Tensor`, `(N,)`): as there.

    Returns:
        `Tensor`, `(S,)`.
    """
    _check(kl, how, sequence_index)
    parts = [_over_all(kl[sequence_index == s], how) for s in range(_count_sequences(sequence_index))]
    return torch.stack([_full_precision(part) for part in parts]) if parts else _full_precision(kl)


def hinge_barrier(d: Tensor, tau_nats: Tensor | float) -> Tensor:
    """relu(D - tau): the divergence above the threshold, in float32 or better. At D = tau the gradient is 0.

    Args:
        d (`Tensor`, any shape): aggregates, in nats. A NaN stays NaN.
        tau_nats (`float` or `Tensor`): largest divergence that costs nothing; `inf` keeps the gate shut. A tensor is
            not checked, because that would wait for a GPU.

    Returns:
        `Tensor`, the shape of `d`, in nats.

    Raises:
        ValueError: `tau_nats` is a negative number or NaN.
    """
    if not isinstance(tau_nats, Tensor) and not tau_nats >= 0:
        raise ValueError(f"tau_nats is {tau_nats}; a divergence is never negative, so give a number >= 0")
    return (_full_precision(d) - tau_nats).relu()


def _over_all(kl: Tensor, how: Aggregate) -> Tensor:
    n = len(kl)
    if n == 0:
        return kl.sum()
    if how == "mean":
        return kl.mean()
    if how == "rmse":
        return _root(kl.square().mean())
    if how == "max":
        return kl.amax()
    if how == "cvar95":
        return kl.topk((n + 19) // 20).values.mean()
    rank, hundredths = divmod(95 * (n - 1), 100)
    quantile = kl.kthvalue(rank + 1).values
    if hundredths:
        upper = kl.kthvalue(rank + 2).values
        quantile = (1 - hundredths / 100) * quantile + hundredths / 100 * upper
    largest = kl.detach().amax()
    return torch.where(largest.isnan(), largest, quantile)


def _over_sequences(kl: Tensor, how: Aggregate, sequence_index: Tensor, n_sequences: int) -> Tensor:
    counts = _counts(sequence_index, n_sequences)
    if how == "max":
        lowest = kl.new_full((n_sequences,), -math.inf)  # never a tie with a divergence, which 0 would be
        return lowest.scatter_reduce(0, sequence_index, kl, "amax").where(counts > 0, 0.0)
    values = kl if how == "mean" else kl.square()
    means = kl.new_zeros(n_sequences).index_add(0, sequence_index, values) / counts.clamp(min=1)
    return means if how == "mean" else _root(means)


def _over_sorted_sequences(kl: Tensor, how: Aggregate, sequence_index: Tensor, n_sequences: int) -> Tensor:
    counts = _counts(sequence_index, n_sequences)
    by_value = kl.detach().argsort()
    order = by_value[sequence_index[by_value].argsort(stable=True)]  # by sequence, and by value within each
    starts = counts.cumsum(0) - counts
    if how == "cvar95":
        tails = (counts + 19) // 20
        owner = sequence_index[order]
        is_tail = torch.arange(len(kl), device=kl.device) >= (starts + counts - tails)[owner]
        tail_values = kl[order].where(is_tail, 0.0)
        return kl.new_zeros(n_sequences).index_add(0, owner, tail_values) / tails.clamp(min=1)
    last = (counts - 1).clamp(min=0)
    ranks, hundredths = 95 * last // 100, 95 * last % 100
    share = hundredths.to(kl.dtype) / 100
    # A sequence without positions may start behind the last row; its value is replaced by 0.
    lower, upper, largest = (
        kl[order[(starts + rank).clamp(max=len(kl) - 1)]] for rank in (ranks, torch.minimum(ranks + 1, last), last)
    )
    quantile = (1 - share) * lower + share * upper.where(hundredths > 0, 0.0)  # 0 times an infinite neighbour is NaN
    largest = largest.detach()
    return torch.where(largest.isnan(), largest, quantile).where(counts > 0, 0.0)


def _root(mean_square: Tensor) -> Tensor:
    """Square root with the gradient 0 at 0."""
    is_zero = mean_square == 0
    return mean_square.masked_fill(is_zero, 1.0).sqrt().masked_fill(is_zero, 0.0)


def _counts(sequence_index: Tensor, n_sequences: int) -> Tensor:
    """Positions of each sequence, `(S,)`."""
    zeros = torch.zeros(n_sequences, dtype=torch.long, device=sequence_index.device)
    return zeros.index_add(0, sequence_index, torch.ones_like(sequence_index, dtype=torch.long))


def _count_sequences(sequence_index: Tensor) -> int:
    if not len(sequence_index):
        return 0
    low, high = torch.stack(sequence_index.aminmax()).tolist()
    if low < 0:
        raise ValueError(f"sequence_index holds {low}; number the sequences from 0")
    return high + 1


def _check(kl: Tensor, how: Aggregate, sequence_index: Tensor | None) -> None:
    if how not in AGGREGATES:
        raise ValueError(f"aggregate is {how!r}; choose one of {', '.join(map(repr, AGGREGATES))}")
    if kl.ndim != 1 or not kl.is_floating_point():
        raise ValueError(f"kl is {kl.dtype} of the shape {tuple(kl.shape)}; give a vector (N,) of floats")
    if sequence_index is None:
        return
    if sequence_index.shape != kl.shape:
        raise ValueError(
            f"sequence_index has the shape {tuple(sequence_index.shape)} and kl {tuple(kl.shape)}; they must be equal"
        )
    if sequence_index.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"sequence_index is {sequence_index.dtype}; give integers (int64)")


def _full_precision(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
