"""Arithmetic on one tile of logits, as functions that change none of their arguments, and the shape of the tiles.

Nothing here knows about autograd or about the loops over tiles. On CUDA the two functions of a tile are compiled with
`torch.compile`, which fuses each into a few kernels; elsewhere they run as written, on tiles that stay in the cache.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

HALF_DTYPES = (torch.float16, torch.bfloat16)
# Devices on which a tile is large and its functions are compiled.
COMPILED_DEVICES = {"cuda"}


class TileShape(NamedTuple):
    """Rows (positions) and columns (vocabulary entries) of one tile; it has as many rows again for the reference."""

    rows: int
    columns: int


# The logits of both models are 1 MiB and fit an L2 cache of 2 MiB: a pass over them takes 0.1 to 0.2 ns per logit, and
# 0.5 to 1.5 ns where the tile is in memory (the projection itself: 7 ns, one thread, H = 640). On smaller tiles the
# fixed cost of each operation is felt.
CACHE_TILE = TileShape(256, 512)
# 256 MiB of logits: enough to fill a GPU, with few launches.
COMPILED_TILE = TileShape(4096, 8192)


class TileStatistics(NamedTuple):
    """Sums over the C vocabulary entries of one tile, for n rows; index 0 of `(2, n)` is the policy, 1 the reference.

    z are the logits, e = exp(z - maximum) and gap = (z_policy - maximum_policy) - (z_ref - maximum_ref). The fields of
    the label are 0 in rows whose label lies in another tile.
    """

    maximum: Tensor  # (2, n): max z
    sum_exp: Tensor  # (2, n): Σ e
    weighted_centred: Tensor  # (n,): Σ e_policy (z_policy - maximum_policy), for the entropy
    weighted_gaps: Tensor  # (D, n): per direction, Σ e_policy gap ("reverse") or -Σ e_ref gap ("forward")
    label_logit: Tensor  # (n,): the policy's logit of the label
    before_label: Tensor  # (n,): the policy's largest logit at earlier entries of the tile


class RowStatistics(NamedTuple):
    """The sums of [`TileStatistics`] over the whole vocabulary."""

    maximum: Tensor  # (2, n)
    sum_exp: Tensor  # (2, n)
    weighted_centred: Tensor  # (n,)
    weighted_gaps: Tensor  # (D, n)
    label_logit: Tensor  # (n,)
    is_top1: Tensor  # (n,)


class RowValues(NamedTuple):
    """What the backward reads of n rows, the first k of which have a gradient of the KL."""

    labels: Tensor  # (n,)
    grad_nll: Tensor  # (n,)
    log_z_policy: Tensor  # (n,)
    grad_kl: Tensor  # (k,)
    log_z_ref: Tensor  # (k,)
    offset: Tensor  # (k,): log Z_policy - log Z_ref + KL(policy || ref)


def tile_shape(device: torch.device) -> TileShape:
    """The shape of the tiles on a device."""
    return COMPILED_TILE if device.type in COMPILED_DEVICES else CACHE_TILE


def tile_function(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`function`, compiled where the device's tiles need it."""
    return _compiled(function) if device.type in COMPILED_DEVICES else function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def label_rows_of_tiles(labels: Tensor, columns: int, n_tiles: int) -> Sequence[Tensor | None]:
    """For each tile, the rows whose label lies in it; None stands for "look in every row".

    A compiled function looks in every row at no cost, and would wait for the GPU to learn the number of rows.
    """
    if labels.device.type in COMPILED_DEVICES:
        return [None] * n_tiles
    tile_of_label = labels // columns
    return tile_of_label.argsort().split(tile_of_label.bincount(minlength=n_tiles).tolist())


def project(out: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """out (n, C) = hidden (n, H) @ weight (C, H).T + bias, in float32 from half precision."""
    if hidden.dtype in HALF_DTYPES:
        torch.mm(hidden, weight.t(), out_dtype=torch.float32, out=out)
    else:
        torch.mm(hidden, weight.t(), out=out)
    if bias is not None:
        out.add_(bias)


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without rounding the product to half precision first, which would bias the sum."""
    if left.dtype in HALF_DTYPES:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left, right)


def transform_logits(raw: Tensor, scale: float, softcap: float | None) -> Tensor:
    """softcap · tanh(scale · raw / softcap), or scale · raw without a softcap."""
    scaled = raw if scale == 1.0 else raw * scale
    return scaled if softcap is None else torch.tanh(scaled / softcap) * softcap


def tile_statistics(
    raw: Tensor,  # (2, n, C): projections of the policy and of the reference
    local_label: Tensor,  # (n,): the label's column in this tile; below 0, or C and more, when it lies elsewhere
    label_rows: Tensor | None,  # the rows whose label lies in this tile; None: look in every row
    scale: float,
    softcap: float | None,
    directions: tuple[str, ...],
) -> TileStatistics:
    """The sums over one tile."""
    logits = transform_logits(raw, scale, softcap)
    maximum = logits.amax(-1)
    centred = logits - maximum.unsqueeze(-1)
    weights = centred.exp()
    policy_weights, ref_weights = weights.unbind()
    gap = centred[0] - centred[1]
    gaps = [
        (policy_weights * gap).sum(-1) if direction == "reverse" else -(ref_weights * gap).sum(-1)
        for direction in directions
    ]
    return TileStatistics(
        maximum,
        weights.sum(-1),
        (policy_weights * centred[0]).sum(-1),
        torch.stack(gaps),
        *_label_statistics(logits[0], local_label, label_rows),
    )


def _label_statistics(policy: Tensor, local_label: Tensor, label_rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """`label_logit` and `before_label` (n,) from the policy's logits (n, C)."""
    label_logit, before_label = torch.zeros_like(policy[:, 0]), torch.zeros_like(policy[:, 0])
    rows, column, is_here = _label_entries(local_label, label_rows, policy.shape[-1])
    if len(rows) > 0:
        earlier = torch.arange(policy.shape[-1], device=policy.device) < column.unsqueeze(-1)
        largest_earlier = policy[rows].where(earlier, torch.finfo(policy.dtype).min).amax(-1)
        label_logit[rows] = policy[rows, column].where(is_here, 0.0)
        before_label[rows] = largest_earlier.where(is_here, 0.0)
    return label_logit, before_label


def _label_entries(local_label: Tensor, label_rows: Tensor | None, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows to look at, the label's column in each, and whether the label lies in this tile at all."""
    rows = torch.arange(len(local_label), device=local_label.device) if label_rows is None else label_rows
    column = local_label[rows].clamp(0, columns - 1)
    return rows, column, column == local_label[rows]


def combine_tiles(
    tiles: Sequence[TileStatistics], tile_of_label: Tensor, directions: tuple[str, ...]
) -> RowStatistics:
    """The sums over the whole vocabulary from those over its tiles."""
    # With the tiles as the last axis a row is summed in the same order wherever it stands: equal rows stay equal.
    parts = TileStatistics(*(torch.stack(field, dim=-1) for field in zip(*tiles, strict=True)))
    maximum = parts.maximum.amax(-1)  # (2, n)
    step = parts.maximum - maximum.unsqueeze(-1)
    rescale = step.exp()
    step_gap = step[0] - step[1]
    weighted_gaps = [
        (rescale[0] * (gaps + step_gap * parts.sum_exp[0])).sum(-1)
        if direction == "reverse"
        else (rescale[1] * (gaps - step_gap * parts.sum_exp[1])).sum(-1)
        for direction, gaps in zip(directions, parts.weighted_gaps, strict=True)
    ]
    label_logit = parts.label_logit.sum(-1)
    is_earlier = torch.arange(len(tiles), device=maximum.device) < tile_of_label.unsqueeze(-1)
    largest_earlier = parts.maximum[0].where(is_earlier, torch.finfo(maximum.dtype).min).amax(-1)
    return RowStatistics(
        maximum,
        (rescale * parts.sum_exp).sum(-1),
        (rescale[0] * (parts.weighted_centred + step[0] * parts.sum_exp[0])).sum(-1),
        torch.stack(weighted_gaps),
        label_logit,
        (label_logit == maximum[0]) & (label_logit > largest_earlier) & (label_logit > parts.before_label.sum(-1)),
    )


def gradient_tile(
    raw_policy: Tensor,  # (n, C)
    raw_ref: Tensor,  # (k, C): of the first k rows
    values: RowValues,
    local_label: Tensor,  # (n,)
    label_rows: Tensor | None,  # as in `tile_statistics`
    scale: float,
    softcap: float | None,
    direction: str,
    dtype: torch.dtype,
) -> Tensor:
    r"""Gradient `(n, C)` of Σ grad_nll · NLL + Σ grad_kl · KL with respect to the policy's projection, in `dtype`.

    With p the probabilities of the policy and q those of the reference:

        ∂NLL / ∂z        = p - [label]
        ∂KL(p || q) / ∂z = p (log p - log q - KL) = p (z_policy - z_ref - offset)      "reverse"
        ∂KL(q || p) / ∂z = p - q                                                       "forward"
        ∂z / ∂raw        = scale (1 - (z / softcap)²)
    """
    k = len(raw_ref)
    logits, ref = transform_logits(raw_policy, scale, softcap), transform_logits(raw_ref, scale, softcap)
    nll_weight, kl_weight = (scale * values.grad_nll).unsqueeze(-1), (scale * values.grad_kl).unsqueeze(-1)
    gradient = (logits - values.log_z_policy.unsqueeze(-1)).exp_()
    gradient[k:].mul_(nll_weight[k:])
    if k > 0 and direction == "reverse":
        log_ratio_less_kl = (logits[:k] - ref).sub_(values.offset.unsqueeze(-1))
        gradient[:k].mul_(log_ratio_less_kl.mul_(kl_weight).add_(nll_weight[:k]))
    elif k > 0:
        ref_probabilities = (ref - values.log_z_ref.unsqueeze(-1)).exp_()
        gradient[:k].mul_(nll_weight[:k] + kl_weight).sub_(ref_probabilities.mul_(kl_weight))
    rows, column, is_here = _label_entries(local_label, label_rows, gradient.shape[-1])
    at_label = gradient[rows, column] - nll_weight[rows, 0] * is_here
    if softcap is not None:
        gradient.sub_(gradient * (logits / softcap).square_())
        at_label = at_label * (1.0 - (logits[rows, column] / softcap).square())
    gradient = gradient.to(dtype)
    # Rounded after the subtraction: p - 1 is small where p is near 1, and half precision would lose it.
    gradient[rows, column] = at_label.to(dtype)
    return gradient
