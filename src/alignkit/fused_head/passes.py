"""The two passes over tiles of the vocabulary: forward sums, and gradients by recomputation.

A tile of a weight is converted when it is needed and dropped after it: no copy of a whole head is ever made.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from alignkit.fused_head.tiles import (
    RowStatistics,
    RowValues,
    accumulate,
    combine_tiles,
    gradient_tile,
    label_rows_of_tiles,
    project,
    tile_function,
    tile_shape,
    tile_statistics,
)


class Call(NamedTuple):
    """The constants of one call."""

    scale: float
    softcap: float | None
    directions: tuple[str, ...]
    compute_dtype: torch.dtype  # to which hidden states and weights are rounded
    product_dtype: torch.dtype  # in which the products are formed
    sum_dtype: torch.dtype  # of logits, sums and results


class Heads(NamedTuple):
    """Weights and biases; a `ref_weight` of None says that the policy's head serves both models."""

    weight: Tensor  # (V, H)
    bias: Tensor | None
    ref_weight: Tensor | None  # (V, H_ref)
    ref_bias: Tensor | None


class Rows(NamedTuple):
    """Hidden states of a tile's n rows, the first k of which have a reference, by the head that projects them."""

    n: int
    policy_head: Tensor  # (n + k, H), the reference's last, when the head serves both models; else (n, H)
    ref_head: Tensor  # (k, H_ref); empty when the policy's head serves both


class Gradients(NamedTuple):
    """Gradients in the dtype of the sums; None where none was asked for."""

    hidden: Tensor | None  # (rows, H)
    weight: Tensor | None  # (V, H)
    bias: Tensor | None  # (V,)


def call_constants(hidden: Tensor, scale: float, softcap: float | None, directions: tuple[str, ...]) -> Call:
    """The dtypes of a call: under autocast, inputs are rounded to its dtype as any matrix product would round them.

    A CPU has no product of half-precision inputs with a float32 result, so there the product is one of float32.
    """
    device = hidden.device.type
    compute_dtype = hidden.dtype
    if torch.is_autocast_enabled(device) and compute_dtype != torch.float64:
        compute_dtype = torch.get_autocast_dtype(device)
    sum_dtype = torch.float64 if compute_dtype == torch.float64 else torch.float32
    product_dtype = compute_dtype if device == "cuda" else sum_dtype
    return Call(scale, softcap, directions, compute_dtype, product_dtype, sum_dtype)


def fold_vocabulary(
    policy_hidden: Tensor, ref_hidden: Tensor, heads: Heads, labels: Tensor, call: Call
) -> RowStatistics:
    """The sums of N rows over the whole vocabulary."""
    shape = tile_shape(labels.device)
    statistics_of = tile_function(tile_statistics, labels.device)
    tiles = _slices(len(heads.weight), shape.columns)
    buffer = _tile_buffer(2 * len(labels), heads, call)
    blocks = []
    for rows in _slices(len(labels), shape.rows) or [slice(0, 0)]:
        block = _rows(policy_hidden[rows], ref_hidden[rows], heads, call)
        label_rows = label_rows_of_tiles(labels[rows], shape.columns, len(tiles))
        statistics = []
        for columns, rows_of_tile in zip(tiles, label_rows, strict=True):
            raw = _project_rows(buffer, block, _tile_of(heads, columns, call)).unflatten(0, (2, -1))
            local_label = labels[rows] - columns.start
            statistics.append(statistics_of(raw, local_label, rows_of_tile, call.scale, call.softcap, call.directions))
        blocks.append(combine_tiles(statistics, labels[rows] // shape.columns, call.directions))
    return RowStatistics(*(torch.cat(parts, dim=-1) for parts in zip(*blocks, strict=True)))


def accumulate_gradients(
    policy_hidden: Tensor,  # (rows, H): only rows with a gradient, those of the KL first
    ref_hidden: Tensor,  # (k, H_ref): of the rows with a gradient of the KL
    heads: Heads,
    values: RowValues,
    call: Call,
    needs: tuple[bool, bool, bool],
) -> Gradients:
    """Gradients of Σ grad_nll · NLL + Σ grad_kl · KL; `needs` names those asked for, in the order of [`Gradients`].

    Every row is projected again for the policy, and the first k for the reference too.
    """
    shape = tile_shape(policy_hidden.device)
    gradient_of = tile_function(gradient_tile, policy_hidden.device)
    tiles = _slices(len(heads.weight), shape.columns)
    buffer = _tile_buffer(len(policy_hidden) + len(ref_hidden), heads, call)
    gradients = _zero_gradients((policy_hidden, heads.weight, heads.bias), needs, call.sum_dtype)
    for rows in _slices(len(policy_hidden), shape.rows):
        block = _rows(policy_hidden[rows], ref_hidden[rows], heads, call)
        block_values = RowValues(*(value[rows] for value in values))
        label_rows = label_rows_of_tiles(block_values.labels, shape.columns, len(tiles))
        for columns, rows_of_tile in zip(tiles, label_rows, strict=True):
            tile = _tile_of(heads, columns, call)
            raw = _project_rows(buffer, block, tile)
            gradient = gradient_of(
                raw[: block.n],
                raw[block.n :],
                block_values,
                block_values.labels - columns.start,
                rows_of_tile,
                call.scale,
                call.softcap,
                call.directions[0],
                call.product_dtype,
            )
            if gradients.hidden is not None:
                accumulate(gradients.hidden[rows], gradient, tile.weight)
            if gradients.weight is not None:
                accumulate(gradients.weight[columns], gradient.t(), block.policy_head[: block.n])
            if gradients.bias is not None:
                gradients.bias[columns] += gradient.sum(0, dtype=call.sum_dtype)
    return gradients


def _zero_gradients(inputs: tuple[Tensor | None, ...], needs: tuple[bool, ...], dtype: torch.dtype) -> Gradients:
    return Gradients(
        *(
            torch.zeros_like(like, dtype=dtype) if like is not None and is_needed else None
            for like, is_needed in zip(inputs, needs, strict=True)
        )
    )


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _tile_buffer(n_rows: int, heads: Heads, call: Call) -> Tensor:
    """Memory for the projections of one tile of both models."""
    shape = tile_shape(heads.weight.device)
    size = min(n_rows, 2 * shape.rows) * min(len(heads.weight), shape.columns)
    return torch.empty(size, device=heads.weight.device, dtype=call.sum_dtype)


def _rows(policy_hidden: Tensor, ref_hidden: Tensor, heads: Heads, call: Call) -> Rows:
    policy, ref = (_converted(hidden, call) for hidden in (policy_hidden, ref_hidden))
    if heads.ref_weight is None:
        return Rows(len(policy), torch.cat([policy, ref]), ref[:0])
    return Rows(len(policy), policy, ref)


def _tile_of(heads: Heads, columns: slice, call: Call) -> Heads:
    def tile(part: Tensor | None) -> Tensor | None:
        return None if part is None else _converted(part[columns], call)

    return Heads(
        _converted(heads.weight[columns], call), tile(heads.bias), tile(heads.ref_weight), tile(heads.ref_bias)
    )


def _converted(tensor: Tensor, call: Call) -> Tensor:
    return tensor.to(call.compute_dtype).to(call.product_dtype)


def _project_rows(buffer: Tensor, rows: Rows, tile: Heads) -> Tensor:
    """Projections `(n + k, C)` of the policy's rows and, below them, of the reference's, written into the buffer."""
    split, columns = len(rows.policy_head), len(tile.weight)
    out = buffer[: (split + len(rows.ref_head)) * columns].view(-1, columns)
    project(out[:split], rows.policy_head, tile.weight, tile.bias)
    if tile.ref_weight is not None and len(rows.ref_head) > 0:
        project(out[split:], rows.ref_head, tile.ref_weight, tile.ref_bias)
    return out
