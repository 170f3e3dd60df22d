"""Comparisons: the one form that every kind of preference data takes before the loss.

A batch is a score matrix `S (M, K)`, one row per distinct text and one column per head, and a list of comparisons
over it. A pair is one comparison; a tie is two opposite comparisons of half weight; a ranking of n items is its
n(n-1)/2 pairs; a positive that meets n negatives is n comparisons. One loss consumes them all.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NO_TIER = -1


@dataclass(frozen=True)
class Comparisons:
    """`C` comparisons over the rows of a score matrix `(M, K)`.

    Args:
        winner (`Tensor`, `(C,)` int64): row of the preferred text.
        loser (`Tensor`, `(C,)` int64): row of the other text.
        head (`Tensor`, `(C,)` int64): column the comparison belongs to.
        weight (`Tensor`, `(C,)` float32, *optional*): weight in the loss, default 1.
        margin (`Tensor`, `(C,)` float32, *optional*): score gap asked for, default 0.
        unit (`Tensor`, `(C,)` float32, *optional*): how much of one unit of its head a comparison is, default 1. Only
            the reduction `"active_heads"` reads it: it divides a head's weighted sum by the sum of its units, so that
            a pair counts 1, half a tie 0.5, and the n comparisons of one positive 1/n each.
        tier (`Tensor`, `(C,)` int64, *optional*): index of the loser's tier, or -1.
    """

    winner: Tensor
    loser: Tensor
    head: Tensor
    weight: Tensor = None  # type: ignore[assignment]  # filled in below, so that readers always see a tensor
    margin: Tensor = None  # type: ignore[assignment]
    unit: Tensor = None  # type: ignore[assignment]
    tier: Tensor = None  # type: ignore[assignment]

    def __post_init__(self):
        size, device = self.winner.shape, self.winner.device
        defaults = {
            "weight": lambda: torch.ones(size, device=device),
            "margin": lambda: torch.zeros(size, device=device),
            "unit": lambda: torch.ones(size, device=device),
            "tier": lambda: torch.full(size, NO_TIER, dtype=torch.long, device=device),
        }
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default())
        for field in dataclasses.fields(self):
            shape = getattr(self, field.name).shape
            if shape != size or len(shape) != 1:
                raise ValueError(
                    f"Comparisons.{field.name} has shape {tuple(shape)}; all fields must have the shape (C,) of "
                    f"`winner`, {tuple(size)}"
                )

    def __len__(self) -> int:
        return len(self.winner)

    def to(self, *args, **kwargs) -> "Comparisons":
        """Copy on another device. Only `torch.Tensor.to`'s device arguments make sense here.

        One copy for all fields of a dtype, because each would be waited for.
        """
        fields = vars(self)
        moved: dict[str, Tensor] = {}
        for dtype in {tensor.dtype for tensor in fields.values()}:
            names = [name for name, tensor in fields.items() if tensor.dtype == dtype]
            together = torch.stack([fields[name] for name in names]).to(*args, **kwargs)
            moved |= dict(zip(names, together, strict=True))
        return Comparisons(**moved)

    def pin_memory(self) -> "Comparisons":
        return self._map(lambda tensor: tensor.pin_memory())

    def rows(self, index: Tensor) -> "Comparisons":
        """The same comparisons over another score matrix: row `r` becomes row `index[r]`."""
        return dataclasses.replace(self, winner=index[self.winner], loser=index[self.loser])

    @staticmethod
    def concatenate(parts: "Sequence[Comparisons]") -> "Comparisons":
        names = [field.name for field in dataclasses.fields(Comparisons)]
        return Comparisons(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    @staticmethod
    def empty(device: torch.device | str = "cpu") -> "Comparisons":
        return Comparisons(*(torch.zeros(0, dtype=torch.long, device=device) for _ in range(3)))

    def _map(self, function) -> "Comparisons":
        return Comparisons(**{field.name: function(getattr(self, field.name)) for field in dataclasses.fields(self)})


def tiered_comparisons(
    positive_heads: Tensor,
    negative_tiers: Sequence[str],
    *,
    tier_weights: Mapping[str, float],
    pairing: Literal["all", "positional"],
    negative_heads: Tensor | Sequence[Sequence[int] | None] | None = None,
) -> Comparisons:
    r"""Comparisons of positives against tiers of negatives. Rows: the positives first, then the negatives.

    `"all"`: positive i of head h meets every negative j that may be used against h, with weight
    `tier_weights[t] / n_it`, n_it the number of tier-t negatives it meets, so that drawing more negatives does not
    change a tier's share. `"positional"`: per head and tier the first min(m, n) positives and negatives pair by
    position, each comparison weighing `tier_weights[t] / min(m, n)`, so that a head's sum is Σ_t w_t · mean.

    Args:
        positive_heads (`Tensor`, `(n_pos,)`): head of each positive.
        negative_tiers (`Sequence[str]`): tier of each negative, length n_neg.
        tier_weights (`Mapping[str, float]`): weight of each tier; a tier of weight 0 makes no comparison.
        pairing (`"all"` or `"positional"`): see above.
        negative_heads (*optional*): which heads each negative may be used against, as a `(n_neg, K)` bool mask or as
            n_neg lists of heads, None meaning all; default all for all.

    Raises:
        ValueError: a tier without weight, a weight that is negative or not finite, or an unknown pairing.
    """
    _check_tiers(negative_tiers, tier_weights, pairing, negative_heads)
    positive_heads = torch.as_tensor(positive_heads, dtype=torch.long)
    n_positives, n_negatives = len(positive_heads), len(negative_tiers)
    device = positive_heads.device
    names = list(tier_weights)
    tier = torch.tensor([names.index(name) for name in negative_tiers], dtype=torch.long, device=device)
    weights = torch.tensor([float(tier_weights[name]) for name in names], device=device)
    if negative_heads is None:
        meets = torch.ones(n_positives, n_negatives, dtype=torch.bool, device=device)
    elif isinstance(negative_heads, Tensor):
        meets = negative_heads.to(device).bool().T[positive_heads]  # (n_pos, n_neg)
    else:
        rows = [[heads is None or head in heads for heads in negative_heads] for head in positive_heads.tolist()]
        meets = torch.tensor(rows, dtype=torch.bool, device=device).reshape(n_positives, n_negatives)
    meets = meets & (weights[tier] > 0)
    if pairing == "positional":
        meets = _positional(meets, positive_heads, tier, len(names))
    winner, column = meets.nonzero(as_tuple=True)
    head, pair_tier = positive_heads[winner], tier[column]
    # "all" shares a tier's weight among the negatives of one positive, "positional" among the pairs of one head.
    owner = winner if pairing == "all" else head
    n_owners = int(owner.max()) + 1 if len(owner) else 0
    per_owner_and_tier = torch.zeros(n_owners, max(len(names), 1), device=device)
    per_owner_and_tier.index_put_((owner, pair_tier), torch.ones_like(owner, dtype=torch.float32), accumulate=True)
    return Comparisons(
        winner=winner,
        loser=n_positives + column,
        head=head,
        weight=weights[pair_tier] / per_owner_and_tier[owner, pair_tier],
        unit=1.0 / per_owner_and_tier.sum(1)[owner],
        tier=pair_tier,
    )


def _positional(meets: Tensor, positive_heads: Tensor, tier: Tensor, n_tiers: int) -> Tensor:
    """Keep of `meets (n_pos, n_neg)` the pairs (i-th positive of a head, i-th usable negative of a tier)."""
    keep = torch.zeros_like(meets)
    for head in positive_heads.unique():
        rows = (positive_heads == head).nonzero().squeeze(1)
        for index in range(n_tiers):
            columns = (meets[rows[0]] & (tier == index)).nonzero().squeeze(1)
            n_pairs = min(len(rows), len(columns))
            keep[rows[:n_pairs], columns[:n_pairs]] = True
    return keep


def _check_tiers(negative_tiers, tier_weights, pairing, negative_heads) -> None:
    if pairing not in ("all", "positional"):
        raise ValueError(f"pairing is {pairing!r}; choose 'all' or 'positional'")
    for name, weight in tier_weights.items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"tier_weights[{name!r}] is {weight}; a tier weight must be finite and not negative")
    unknown = sorted(set(negative_tiers) - set(tier_weights))
    if unknown:
        raise ValueError(
            f"tier {unknown[0]!r} has no weight: add it to tier_weights, which names {list(tier_weights)}"
        )
    if negative_heads is not None and len(negative_heads) != len(negative_tiers):
        raise ValueError(f"negative_heads has {len(negative_heads)} rows for {len(negative_tiers)} negatives")
