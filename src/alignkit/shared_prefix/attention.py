"""Attention of packed rows along their paths, behind `torch.nn.functional.scaled_dot_product_attention`.

A dense mask over packed rows would compute the whole square, most of it for pairs of tokens that have nothing to do
with each other. `PathMask` stands where a model's layers pass the mask, and when it arrives in the function, queries,
keys and values are gathered into the rows as they were before sharing. `torch.nn.attention.bias.CausalBias` works the
same way: a tensor subclass, so that it goes through layers, checkpointing and FSDP like any other mask.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from alignkit.shared_prefix.layout import PackedRows


class Piece(NamedTuple):
    """One call of the attention function.

    `queries (B, L)` and `keys (B, T)` are flat indices of packed tokens; `mask` is None where both are the same and a
    query attends to all keys up to its own.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None


class PathMask(Tensor):
    """The mask of packed rows, `(R, 1, W, W)` and never built: only `scaled_dot_product_attention` can read it.

    Args:
        packed (`PackedRows`): on the device of the model's input.
        window (`int`, *optional*): sliding window, by positions.

    Attributes:
        pieces (`list[Piece]`): whole rows first. On a GPU at most two, padded; on a CPU one for each row, unpadded.
        outputs (`Tensor`, `(R, W)` int64): where each packed token is among the outputs of the pieces.
    """

    pieces: list[Piece]
    outputs: Tensor

    @staticmethod
    def __new__(cls, packed: PackedRows, window: int | None = None) -> "PathMask":
        rows, length = packed.input_ids.shape
        device = packed.paths.device
        mask = torch.zeros((), dtype=torch.bool, device=device).expand(rows, 1, length, length).as_subclass(cls)
        positions = packed.position_ids.flatten()
        at_once = rows_at_once(device, len(packed.paths))
        mask.pieces = []
        begins: list[Tensor] = []  # of each path's first own token, less its position, among the outputs
        in_window = window is None or window >= packed.paths.shape[1]
        n_outputs, n_first = 0, packed.n_first
        n_whole = packed.n_whole if in_window else n_first  # what needs a mask anyway, has one for fewer queries
        shared = [length - own for length, own in zip(packed.lengths, packed.own, strict=True)]
        for first, last in [*_chunks(0, n_whole, at_once), *_chunks(n_whole, len(packed.paths), at_once)]:
            longest = max(packed.lengths[first:last])
            if first < n_whole:
                queries = keys = packed.paths[first:last, :longest]
                columns = torch.arange(longest, device=device)
                reach = None if window is None or window >= longest else _in_reach(columns, columns, window)
            else:
                begin = 0 if window is None else max(0, min(shared[first:last]) - window + 1)
                keys = packed.paths[first:last, begin:longest]
                queries = packed.own_queries[first - n_first : last - n_first, : max(packed.own[first:last])]
                columns = torch.arange(begin, longest, device=device)
                reach = _in_reach(positions[queries], columns, window)[:, None]
            mask.pieces.append(Piece(queries, keys, reach))
            begin_of_rows = torch.arange(n_outputs, n_outputs + queries.numel(), queries.shape[1], device=device)
            # What is skipped is the position of a path's first own token.
            begins.append(begin_of_rows if first < n_whole else begin_of_rows - positions[queries[:, 0]])
            n_outputs += queries.numel()
        # Padding has the last owner and position 0, which a late path does not compute: any output will do.
        outputs = torch.cat(begins)[packed.owner] + packed.position_ids
        mask.outputs = outputs.masked_fill(packed.owner < 0, 0)
        return mask

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is scaled_dot_product_attention:
            with torch._C.DisableTorchFunctionSubclass():
                return _attend(*args, **(kwargs or {}))
        if func is Tensor.to:
            return args[0]  # to another device, by accelerate's hooks; what it holds follows the queries
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, Tensor):
            raise ValueError(
                f"the model computes with its attention mask ({func.__name__}); packed rows have none, set "
                "share_prefix=False"
            )
        return result


def rows_at_once(device: torch.device, n_rows: int) -> int:
    """Padding costs a CPU more than further calls do; on a GPU it is the other way round."""
    return 1 if device.type == "cpu" else n_rows


def _chunks(first: int, last: int, size: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + size, last)) for begin in range(first, last, size)]


def _in_reach(positions: Tensor, columns: Tensor, window: int | None) -> Tensor:
    """Which columns of a path queries at these positions attend to; what pads a path is past them all."""
    rows = positions[..., None]
    return columns <= rows if window is None else (columns <= rows) & (columns > rows - window)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: PathMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` of packed `(R, heads, W, head_dim)`."""
    tokens = [tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)]  # (R * W, heads, head_dim)
    attended = []
    for piece in attn_mask.pieces:
        # A model split over devices has its masks where its input is.
        queries, keys = piece.queries.to(query.device), piece.keys.to(query.device)
        output = scaled_dot_product_attention(
            _gather(tokens[0], queries),
            _gather(tokens[1], keys),
            _gather(tokens[2], keys),
            attn_mask=None if piece.mask is None else piece.mask.to(query.device),
            dropout_p=dropout_p,
            is_causal=piece.mask is None,
            scale=scale,
            enable_gqa=enable_gqa,
        )
        attended.append(output.transpose(1, 2).flatten(0, 1))
    return _gather(torch.cat(attended), attn_mask.outputs.to(query.device))


def _gather(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens `(N, heads, head_dim)` in the order of an index `(B, T)`, as `(B, heads, T, head_dim)`."""
    return tokens.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)
