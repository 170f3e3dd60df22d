"""Losses of the multi-head reward model, as functions of a score matrix.

Differences from the system this replaces (SQCU/dialogue_yoinker, `scripts/train_btrm.py`):
1. The default reduction divides by the weight of the whole optimiser step, so that the gradient does not depend on how
   the step was split into micro-batches. Theirs, `"active_heads"`, is here too.
2. `"log_square"` is offered literally, but its minimum is at a score of 0, not at |score| = 1 as was intended;
   `"squared_log_square"` has its minimum where it was meant to be.
3. The regulariser reads a positive's own head only. Theirs once read every column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.reward_model.comparisons import Comparisons

Reduction = Literal["comparisons", "active_heads"]
LOG_SQUARE_EPSILON = 1e-6


@dataclass(frozen=True)
class LossOutput:
    """What a comparison loss returns.

    Attributes:
        loss (`Tensor`, `()`): the reduced loss.
        per_comparison (`Tensor`, `(C,)`): softplus(-(gap - margin)), neither weighted nor reduced.
        gap (`Tensor`, `(C,)`): winner's score minus loser's.
    """

    loss: Tensor
    per_comparison: Tensor
    gap: Tensor


def bradley_terry_loss(
    scores: Tensor,
    comparisons: Comparisons,
    *,
    reduction: Reduction = "comparisons",
    head_weights: Tensor | None = None,
    total_weight: Tensor | float | None = None,
) -> LossOutput:
    r"""Head-indexed Bradley-Terry loss.

    With l_c = softplus(-(S[winner_c, head_c] - S[loser_c, head_c] - margin_c)), weight w_c, unit u_c and head weight
    v_h (default 1):

        "comparisons":   Σ_c v_{h(c)} w_c l_c / W,  W = Σ_c w_c, or the weight of the whole optimiser step
        "active_heads":  mean over the heads present of  v_h Σ_{c of h} w_c l_c / Σ_{c of h} u_c

    `"comparisons"` is the same for any split of a step when every part is given the step's `total_weight`.
    `"active_heads"` depends on the split: a head present in one of four micro-batches weighs a quarter of what it
    weighs when the four are one. Head weights scale the losses and not the divisor: were they in both, a batch of one
    head would cancel its own weight. Source: Bradley and Terry (1952); Ouyang et al. (2022), eq. 1.

    Args:
        scores (`Tensor`, `(M, K)`): one row per text, one column per head. Half precision is upcast to float32.
        comparisons (`Comparisons`): C comparisons. With none, the loss is a finite zero with a gradient of zero.
        reduction (`str`): see above.
        head_weights (`Tensor`, `(K,)`, *optional*): fixed weight of each head.
        total_weight (`Tensor` or `float`, *optional*): W of `"comparisons"`, when `comparisons` is only a part.

    Raises:
        ValueError: an unknown reduction.
    """
    scores = _full_precision(scores)
    gap = scores[comparisons.winner, comparisons.head] - scores[comparisons.loser, comparisons.head]
    per_comparison = F.softplus(comparisons.margin - gap)
    weighted = comparisons.weight * per_comparison
    if head_weights is not None:
        weighted = weighted * torch.as_tensor(head_weights).to(weighted)[comparisons.head]
    if reduction == "comparisons":
        divisor = comparisons.weight.sum() if total_weight is None else total_weight
        loss = _divide(weighted.sum(), divisor)
    elif reduction == "active_heads":
        n_heads = scores.shape[1]
        head_sums = weighted.new_zeros(n_heads).index_add(0, comparisons.head, weighted)
        units = weighted.new_zeros(n_heads).index_add(0, comparisons.head, comparisons.unit.to(weighted))
        active = units > 0
        loss = _divide((head_sums / units.where(active, torch.ones_like(units))).sum(), active.sum())
    else:
        raise ValueError(f"reduction is {reduction!r}; choose 'comparisons' or 'active_heads'")
    # Adding nothing times the scores keeps an empty batch differentiable, and lets a NaN score show in the loss.
    return LossOutput(loss + 0.0 * scores.sum(), per_comparison, gap)


def positive_regularizer(
    scores: Tensor,
    heads: Tensor,
    *,
    kind: str,
    reduction: Reduction = "active_heads",
    weights: Tensor | None = None,
) -> Tensor:
    r"""Penalty on each positive's own score r_i = S[i, heads_i]; the other columns get no gradient.

        "log_square":          ln(r² + 1e-6)       the prior system's; minimum ln(1e-6) at r = 0
        "squared_log_square":  ln(r² + 1e-6)²      minimum 0 at |r| = 1
        "center":              r²                  minimum 0 at r = 0

    `"active_heads"` is the mean over the heads present of the head's mean; `"comparisons"` the mean over positives, or
    Σ_i weights_i · value_i when `weights` are given (1 / their number in the whole optimiser step, say).

    Args:
        scores (`Tensor`, `(n_pos, K)`): scores of the positives.
        heads (`Tensor`, `(n_pos,)`): own head of each.
        kind (`str`): see above.
        reduction (`str`): see above.
        weights (`Tensor`, `(n_pos,)`, *optional*): only with `"comparisons"`.

    Returns:
        `Tensor`, `()`. Zero with a gradient of zero when there are no positives.

    Raises:
        ValueError: an unknown kind.
    """
    scores = _full_precision(scores)
    own = scores[torch.arange(len(heads), device=heads.device), heads]
    if kind == "center":
        values = own.square()
    elif kind in ("log_square", "squared_log_square"):
        values = torch.log(own.square() + LOG_SQUARE_EPSILON)
        values = values.square() if kind == "squared_log_square" else values
    else:
        raise ValueError(f"regularizer is {kind!r}; choose 'log_square', 'squared_log_square' or 'center'")
    if reduction == "active_heads":
        counts = values.new_zeros(scores.shape[1]).index_add(0, heads, torch.ones_like(values))
        result = _divide((values / counts[heads]).sum(), (counts > 0).sum())
    else:
        result = _divide(values.sum(), len(values)) if weights is None else (weights * values).sum()
    return result + 0.0 * scores.sum()


def center_penalty(scores: Tensor, comparisons: Comparisons, *, total_weight: Tensor | float | None = None) -> Tensor:
    r"""Σ_c w_c (S[winner_c, head_c] + S[loser_c, head_c])² / W: TRL's `center_rewards_coefficient` term.

    Source: Eisenstein et al. (2023), arXiv 2312.09244, eq. 2. For pairs of weight 1 it is TRL's mean.
    """
    scores = _full_precision(scores)
    total = scores[comparisons.winner, comparisons.head] + scores[comparisons.loser, comparisons.head]
    divisor = comparisons.weight.sum() if total_weight is None else total_weight
    return _divide((comparisons.weight * total.square()).sum(), divisor) + 0.0 * scores.sum()


def reward_objective(
    scores: Tensor,
    comparisons: Comparisons,
    positive: Tensor,
    positive_head: Tensor,
    *,
    reduction: Reduction = "comparisons",
    head_weights: Tensor | None = None,
    regularizer: str | None = None,
    regularizer_weight: float = 0.0,
    center_coefficient: float | None = None,
    total_weight: Tensor | float | None = None,
    positive_weight: Tensor | None = None,
) -> LossOutput:
    """[`bradley_terry_loss`] plus the regularizer or the centring term that is switched on: what is trained.

    Args:
        scores (`Tensor`, `(M, K)`): scores of the texts.
        comparisons (`Comparisons`): comparisons over them.
        positive, positive_head (`Tensor`, `(n,)`): texts and heads that the regularizer reads.
        total_weight, positive_weight (*optional*): divisors of the whole optimiser step; see the two functions.
    """
    output = bradley_terry_loss(
        scores, comparisons, reduction=reduction, head_weights=head_weights, total_weight=total_weight
    )
    loss = output.loss
    if regularizer is not None:
        loss = loss + regularizer_weight * positive_regularizer(
            scores[positive], positive_head, kind=regularizer, reduction=reduction, weights=positive_weight
        )
    if center_coefficient is not None:
        loss = loss + center_coefficient * center_penalty(scores, comparisons, total_weight=total_weight)
    return replace(output, loss=loss)


def positive_weights(keys: Tensor, all_keys: Tensor) -> Tensor:
    """Weights `(n,)` that make `Σ weights · values` the mean over the distinct positives of a whole step.

    A positive that occurs m times among the step's keys gets 1 / (m · number of distinct keys) each time.

    Args:
        keys (`Tensor`, `(n,)` int64): one key per positive of a micro-batch, equal for equal (text, head).
        all_keys (`Tensor`, `(N,)` int64): the keys of every micro-batch and rank of the step.
    """
    ordered = all_keys.sort().values  # `unique` would wait for the device to learn how many there are
    n_distinct = (ordered[1:] != ordered[:-1]).sum() + 1
    counts = torch.searchsorted(ordered, keys, right=True) - torch.searchsorted(ordered, keys)
    return 1.0 / (counts * n_distinct)


def head_weight_vector(
    setting: str | Mapping[str, float] | None, head_names: Sequence[str], data_weights: Mapping[str, float]
) -> Tensor | None:
    """Weights `(K,)` of the heads from the setting `head_weights`; None when all are 1.

    `"inverse_count"` is W / (K · W_h), W_h the weight of the head's comparisons in the data and W = Σ W_h: every head
    counts alike in an epoch, and the mean over the data is 1 (exactly so for pairs and `pairing="all"`).

    Raises:
        ValueError: a dict that does not name exactly the heads, or a head of unknown count.
    """
    if setting is None or setting == "uniform":
        return None
    if isinstance(setting, Mapping):
        if {*setting} != {*head_names}:
            raise ValueError(f"head_weights names {sorted(setting)}; it must name exactly the heads {[*head_names]}")
        return torch.tensor([float(setting[name]) for name in head_names])
    weights = torch.tensor([float(data_weights[name]) for name in head_names])
    if not weights.all():
        raise ValueError("head_weights='inverse_count' needs counts, which a stream does not have; give a dict")
    return weights.sum() / (len(weights) * weights)


def _full_precision(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


def _divide(numerator: Tensor, denominator: Tensor | float) -> Tensor:
    """numerator / denominator, and 0 (not 0/0) when nothing was counted."""
    if isinstance(denominator, Tensor):
        denominator = denominator.to(numerator)
    else:
        denominator = numerator.new_full((), denominator)  # a number that is copied would be waited for
    return numerator / denominator.where(denominator != 0, torch.ones_like(denominator))
