"""Index maths: the distinct tokens of a batch of rows, and where each row finds its own.

A token is distinct by all that precedes it: two rows share the tokens of their longest common prefix, whether that
ends inside the prompt, at its end or inside the completions. A batch of rows `r` therefore has
`|{r[: t + 1] : r, t < len(r)}|` distinct tokens; for one prompt of P tokens and completions of C_1 ... C_k tokens that
begin differently that is `P + C_1 + ... + C_k` instead of `k * P + C_1 + ... + C_k`.

Distinct tokens are laid out in `(R, W)` packed rows. Everything that acts on one token (embedding, projections, MLP,
norms) runs on them. Attention runs on `paths`, the rows as they were before sharing, in terms of packed tokens.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# Below this saving of the estimated cost, gathering and scattering cost as much as is saved.
LEAST_SAVING = 0.05


@dataclass(frozen=True)
class RowCost:
    """Estimated cost of a packed row of W tokens, `linear * W + attention * W**2`, in any unit.

    Attributes:
        linear: cost of one token in all that acts on tokens one by one.
        attention: cost of one query and key pair where attention computes the whole square of a packed row, as eager
            attention does; 0 where it computes the paths.
    """

    linear: float = 1.0
    attention: float = 0.0

    def __call__(self, tokens: int) -> float:
        return self.linear * tokens + self.attention * tokens**2


@dataclass(frozen=True)
class PackedRows:
    """M rows without what they share, as `(R, W)` packed tokens; D of the M rows are distinct.

    A flat index is `r * W + w`. Packed token i attends to packed token j exactly if j is on the path of i's owner, at
    a position up to i's: `paths[owner[i], position_ids[j]] == j and position_ids[j] <= position_ids[i]` (and, in a
    sliding window of n, `position_ids[j] > position_ids[i] - n`).

    Attributes:
        input_ids (`Tensor`, `(R, W)` int64): token ids, padded on the right with 0.
        position_ids (`Tensor`, `(R, W)` int64): position of a token in its own row.
        owner (`Tensor`, `(R, W)` int64): the path that a token was laid out for, -1 in padding.
        paths (`Tensor`, `(D, T)` int64): flat index of the token at each position of each distinct row. Past the end
            of a row it repeats the last token. The rows that share nothing with one before them come first, then the
            others of which at least half is their own.
        n_first (`int`): number of the former.
        n_whole (`int`): number of both, whose attention is computed for the whole row, which needs no mask.
        own_queries (`Tensor`, `(D - n_first, L)` int64): flat index of the own tokens of all but the first, padded
            like `paths`. The attention of the rest, and of all of them in a sliding window, is computed for these
            queries alone.
        lengths (`tuple[int, ...]`): number of tokens of each path.
        own (`tuple[int, ...]`): number of tokens that were laid out for each path; their sum is the number of tokens
            that are computed.
        index (`Tensor`, `(M, C)` int64): flat index of each position asked for; past the end of a row, its last token.
    """

    input_ids: Tensor
    position_ids: Tensor
    owner: Tensor
    paths: Tensor
    n_first: int
    n_whole: int
    own_queries: Tensor
    lengths: tuple[int, ...]
    own: tuple[int, ...]
    index: Tensor

    def to(self, *args, **kwargs) -> "PackedRows":
        """Copy on another device. Only `torch.Tensor.to`'s device arguments make sense here.

        One copy for all tensors, because each would be waited for.
        """
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        flat = torch.cat([tensor.flatten() for tensor in tensors.values()]).to(*args, **kwargs)
        parts = flat.split([tensor.numel() for tensor in tensors.values()])
        moved = {name: part.view_as(tensors[name]) for name, part in zip(tensors, parts, strict=True)}
        return dataclasses.replace(self, **moved)

    def pin_memory(self) -> "PackedRows":
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change) -> "PackedRows":
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return PackedRows(
            **{name: change(value) if isinstance(value, Tensor) else value for name, value in values.items()}
        )


def pack_rows(
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    width: int,
    max_packed_tokens: int | None = None,
    cost: RowCost = RowCost(),  # frozen
) -> PackedRows | None:
    """Lay out the distinct tokens of `rows`, or return None where that saves nothing worth having.

    Args:
        rows: M lists of token ids without padding.
        starts: first position of each row whose hidden state is asked for.
        width: C, the number of positions asked for; `index[m, j]` is position `starts[m] + j` of row m.
        max_packed_tokens: longest packed row. Rows that share a prefix are split over several packed rows to stay
            below it, and their prefix is computed in each. A single row that is longer has a packed row of its own.
        cost: of a packed row; decides which rows share one. Nothing but speed depends on it.

    Returns:
        None if no rows share a token, or if padding and attention eat up what sharing saves.

    Raises:
        ValueError: a row without tokens or a start outside its row; a limit below 1.
    """
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        if not 0 <= start < len(row):
            raise ValueError(f"row {number} has {len(row)} tokens; its start {start} must be one of them")
    if max_packed_tokens is not None and max_packed_tokens < 1:
        raise ValueError(f"max_packed_tokens is {max_packed_tokens}; it must be at least 1, or None for no limit")
    distinct = sorted({tuple(row) for row in rows})
    groups = _groups(distinct, cost, max_packed_tokens)
    packed_rows = [_Row(sorted(row)) for row in _share_rows(groups, cost, max_packed_tokens)]
    n_packed = max(row.n_tokens for row in packed_rows)
    n_tokens = sum(row.n_tokens for row in packed_rows)
    before, after = len(rows) * cost(max(map(len, rows))), len(packed_rows) * cost(n_packed)
    # A packed row of one token would be taken for a step of decoding.
    if n_tokens == sum(map(len, rows)) or after > (1 - LEAST_SAVING) * before or n_packed == 1:
        return None
    return _lay_out(rows, starts, width, packed_rows, n_packed)


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens that two rows have in common at their beginning."""
    return next(
        (position for position, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )


class _Row:
    """Distinct rows of one packed row, in sorted order, so that each shares most with the one before it.

    `shared[n]` is the number of tokens that `rows[n]` takes from `rows[n - 1]`.
    """

    def __init__(self, rows: Sequence[tuple[int, ...]]):
        self.rows = rows
        self.shared = [0, *(common_prefix_length(before, row) for before, row in pairwise(rows))]
        self.n_tokens = sum(map(len, rows)) - sum(self.shared)


def _groups(
    distinct: Sequence[tuple[int, ...]], cost: RowCost, max_packed_tokens: int | None
) -> list[tuple[list[tuple[int, ...]], int]]:
    """Runs of sorted rows that are cheaper in one packed row than apart, each with its number of tokens."""
    groups: list[tuple[list[tuple[int, ...]], int]] = []
    for row in distinct:
        if groups:
            members, tokens = groups[-1]
            joined = tokens + len(row) - common_prefix_length(members[-1], row)
            fits = max_packed_tokens is None or joined <= max_packed_tokens
            if fits and cost(joined) < cost(tokens) + cost(len(row)):
                groups[-1] = ([*members, row], joined)
                continue
        groups.append(([row], len(row)))
    return groups


def _share_rows(
    groups: list[tuple[list[tuple[int, ...]], int]], cost: RowCost, max_packed_tokens: int | None
) -> list[list[tuple[int, ...]]]:
    """Put groups into the number of packed rows that costs least, padding included: first fit, largest first."""
    largest_first = sorted(groups, key=lambda group: -group[1])
    total = sum(tokens for _, tokens in groups)
    best: tuple[float, list[list[tuple[int, ...]]]] | None = None
    for number in range(1, len(groups) + 1):
        room = -(-total // number)
        if max_packed_tokens is not None:
            room = min(room, max_packed_tokens)
        room = max(room, largest_first[0][1])
        filled: list[tuple[list[tuple[int, ...]], int]] = []
        for members, tokens in largest_first:
            place = next((i for i, (_, used) in enumerate(filled) if used + tokens <= room), None)
            if place is None:
                filled.append((list(members), tokens))
            else:
                filled[place] = (filled[place][0] + members, filled[place][1] + tokens)
        price = len(filled) * cost(max(used for _, used in filled))
        if best is None or price < best[0]:
            best = price, [members for members, _ in filled]
    assert best is not None
    return best[1]


def _lay_out(
    rows: Sequence[Sequence[int]], starts: Sequence[int], width: int, packed_rows: Sequence[_Row], n_packed: int
) -> PackedRows:
    shape = (len(packed_rows), n_packed)
    input_ids, position_ids = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    paths: dict[tuple[int, ...], list[int]] = {}
    own: dict[tuple[int, ...], int] = {}
    for number, packed in enumerate(packed_rows):
        path: list[int] = []
        used = 0
        for row, shared in zip(packed.rows, packed.shared, strict=True):
            own[row] = len(row) - shared
            begin = number * n_packed + used
            path = path[:shared] + list(range(begin, begin + own[row]))
            input_ids[number, used : used + own[row]] = torch.tensor(row[shared:])
            position_ids[number, used : used + own[row]] = torch.arange(shared, len(row))
            paths[row] = path
            used += own[row]
    # All queries against half of the square need no mask; own queries against all keys need one.
    ordered = sorted(paths, key=lambda row: (own[row] < len(row)) + (2 * own[row] < len(row)))
    n_first = sum(own[row] == len(row) for row in ordered)
    n_whole = sum(2 * own[row] >= len(row) for row in ordered)
    owner = torch.full(shape, -1)
    for number, row in enumerate(ordered):
        owner.view(-1)[torch.tensor(paths[row][-own[row] :])] = number
    return PackedRows(
        input_ids=input_ids,
        position_ids=position_ids,
        owner=owner,
        paths=_padded([paths[row] for row in ordered]),
        n_first=n_first,
        n_whole=n_whole,
        own_queries=_padded([paths[row][-own[row] :] for row in ordered[n_first:]]),
        lengths=tuple(len(row) for row in ordered),
        own=tuple(own[row] for row in ordered),
        index=_positions_asked_for([paths[tuple(row)] for row in rows], starts, width),
    )


def _padded(paths: Sequence[list[int]]) -> Tensor:
    longest = max(map(len, paths), default=0)
    rows = [path + path[-1:] * (longest - len(path)) for path in paths]
    return torch.tensor(rows, dtype=torch.long).view(len(paths), longest)


def _positions_asked_for(paths: Sequence[list[int]], starts: Sequence[int], width: int) -> Tensor:
    columns = torch.arange(width)
    return torch.stack(
        [
            torch.tensor(path)[(columns + start).clamp(max=len(path) - 1)]
            for path, start in zip(paths, starts, strict=True)
        ]
    )
