"""Evaluation of a multi-head reward model from its raw scores.

Of every head that has a comparison, and overall (all comparisons together, each scored by its own head's column)
except those marked *:

- `accuracy`: weighted share of comparisons whose winner scores higher; equal scores count 1/2. A labelled tie is two
  opposite comparisons of half the weight, so it adds 1/2 whatever the scores are.
- `accuracy_<tier>`: the same on the comparisons of one tier.
- `length_accuracy`: the same of the rule "the longer text wins", equal lengths 1/2; needs `lengths`.
- `margin`: weighted mean of winner score - loser score.
- `ece`: calibration, see `calibration_error`.
- `min_score`, `mean_score`, `max_score`, `dynamic_range` = max - min: of the head's column over the distinct texts in
  its comparisons; overall over all these (text, head) entries.
- `auroc`*, `d_prime`*: distinct winner texts against distinct loser texts, see `separation`; a text that is both (a
  tie, the middle of a ranking) is in both sets.
- `cross_correlation`*: Pearson r, over all texts, with the other head for which |r| is largest.
- `cross_leakage`*: the largest accuracy that another head's scores reach on this head's comparisons.

How this differs from the metrics of a pairwise reward trainer, and why:

1. Computed once over the whole evaluation set, in float64: a mean over batches is wrong when the last one is short.
2. Equal scores count 1/2. Counting them as right rewards a model that gives every text the same score.
3. The other heads are beside each head: correlation and leakage show when two heads learnt the same thing.
4. What cannot be computed is absent, never 0.0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit

from alignkit.reward_model.separation import auroc, d_prime

Numbers = npt.ArrayLike | torch.Tensor
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

CALIBRATION_BINS = 10


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """Metrics of one evaluation. One that is undefined on these data has no key; in a matrix it is NaN.

    Attributes:
        overall (`dict`): metrics of all comparisons together.
        heads (`dict`): metrics of each head that has a comparison, by head name.
        correlation (`(K, K)`): Pearson r between the columns of the scores over all texts; NaN for a constant column.
        leakage (`(K, K)`): row k, column j is the accuracy of head j's scores on head k's comparisons. The diagonal is
            each head's own accuracy; a row is NaN where head k has no comparison.
        counts (`dict`): of every head, in their order, also those without a comparison: `comparisons`, `texts`
            (distinct), `winners`, `losers` (distinct texts on that side) and `comparisons_<tier>`.
    """

    overall: dict[str, float]
    heads: dict[str, dict[str, float]]
    correlation: FloatArray
    leakage: FloatArray
    counts: dict[str, dict[str, int]]

    def flat(self, prefix: str) -> dict[str, float]:
        """All metrics under one level of keys: `<prefix>_<metric>` overall and `<prefix>_<head>/<metric>` per head."""
        metrics = {f"{prefix}_{metric}": value for metric, value in self.overall.items()}
        for head, values in self.heads.items():
            metrics |= {f"{prefix}_{head}/{metric}": value for metric, value in values.items()}
        return metrics


def calibration_error(gap: FloatArray, weight: FloatArray, n_bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error of sigmoid(|gap|), the probability that the side which scores higher is the winner.

        ECE = sum over bins of W_bin / W * |accuracy_bin - mean confidence_bin|

    Bins have equal width over [0.5, 1]. A comparison is right when its gap is positive and half right at 0.

    Args:
        gap (`(C,)`): score of the winner minus score of the loser; C >= 1.
        weight (`(C,)`): positive weights.
        n_bins (`int`): number of bins.
    """
    confidence = expit(np.abs(gap))
    bins = np.minimum(((confidence - 0.5) * 2 * n_bins).astype(np.int64), n_bins - 1)
    surplus = np.bincount(bins, weights=weight * (_correct(gap) - confidence), minlength=n_bins)
    return float(np.abs(surplus).sum() / weight.sum())


def evaluation_report(
    scores: Numbers,
    winner: Numbers,
    loser: Numbers,
    head: Numbers,
    weight: Numbers,
    *,
    head_names: Sequence[str],
    lengths: Numbers | None = None,
    tiers: Sequence[str | None] | None = None,
) -> EvaluationReport:
    """Every metric of the evaluation set, per head and overall; the top of this module defines them.

    The order of texts and comparisons is irrelevant, and a permutation of the heads permutes the report.

    Args:
        scores (`(M, K)`): raw scores of the distinct texts.
        winner (`(C,)`), loser (`(C,)`): text indices.
        head (`(C,)`): head index of each comparison.
        weight (`(C,)`): weights >= 0; a comparison of weight 0 is as if it were not there.
        head_names (`Sequence[str]`): K distinct names.
        lengths (`(M,)`, *optional*): length of each text in tokens.
        tiers (`Sequence[str | None]`, *optional*): tier of each comparison, None for one outside the tiers.

    Raises:
        ValueError: a score that is NaN or infinite (names head and text), a shape that does not fit, an index out of
            range, a weight that is negative or not finite, or duplicate head names.
    """
    values = _checked_scores(scores, head_names)
    parts = _checked_comparisons(values.shape, winner, loser, head, weight, lengths, tiers)
    correlation = _correlation(values)
    leakage = np.full(correlation.shape, np.nan)
    report = EvaluationReport({}, {}, correlation, leakage, {})
    own_gap = np.empty(len(parts.weight))
    entries = []
    for k, name in enumerate(head_names):
        rows = np.flatnonzero(parts.head == k)
        part = parts.take(rows)
        winners, losers, texts = _distinct_texts(part, len(values))
        sizes = {"comparisons": len(rows), "texts": len(texts), "winners": len(winners), "losers": len(losers)}
        report.counts[name] = sizes | part.tier_counts()
        if not len(rows):
            continue
        gaps = values[part.winner] - values[part.loser]  # (C_k, K)
        leakage[k] = part.weight @ _correct(gaps) / part.weight.sum()
        own_gap[rows] = gaps[:, k]
        entries.append(values[texts, k])
        report.heads[name] = (
            _comparison_metrics(gaps[:, k], part)
            | _range_metrics(entries[-1])
            | _separation_metrics(values[winners, k], values[losers, k])
            | _cross_metrics(np.delete(correlation[k], k), np.delete(leakage[k], k))
        )
    if entries:
        report.overall.update(_comparison_metrics(own_gap, parts) | _range_metrics(np.concatenate(entries)))
    return report


@dataclass(frozen=True, eq=False)
class _Rows:
    """Comparisons as arrays of one length; `tier` indexes `tier_names`, -1 for none."""

    winner: IntArray
    loser: IntArray
    head: IntArray
    weight: FloatArray
    length_gap: FloatArray | None
    tier: IntArray
    tier_names: tuple[str, ...]

    def take(self, rows: IntArray) -> "_Rows":
        length_gap = None if self.length_gap is None else self.length_gap[rows]
        columns = (self.winner[rows], self.loser[rows], self.head[rows], self.weight[rows])
        return _Rows(*columns, length_gap, self.tier[rows], self.tier_names)

    def tier_counts(self) -> dict[str, int]:
        sizes = np.bincount(self.tier[self.tier >= 0], minlength=len(self.tier_names))
        return {f"comparisons_{name}": int(size) for name, size in zip(self.tier_names, sizes, strict=True) if size}


def _float64(values: Numbers) -> FloatArray:
    return torch.as_tensor(values).detach().to("cpu", torch.float64).numpy()


def _index(name: str, values: Numbers, n_comparisons: int, limit: int) -> IntArray:
    """`values` as int64, each in [0, limit)."""
    index = torch.as_tensor(values).detach().to("cpu", torch.int64).numpy()
    if index.shape != (n_comparisons,):
        raise ValueError(
            f"{name} has shape {index.shape}, weight has ({n_comparisons},): one entry per comparison is needed"
        )
    outside = np.flatnonzero((index < 0) | (index >= limit))
    if len(outside):
        row = outside[0]
        raise ValueError(f"{name} of comparison {row} is {index[row]}: it must be in [0, {limit})")
    return index


def _checked_scores(scores: Numbers, head_names: Sequence[str]) -> FloatArray:
    values = _float64(scores)
    if values.ndim != 2 or values.shape[1] != len(head_names):
        raise ValueError(f"scores have shape {values.shape}; {len(head_names)} head names need (M, {len(head_names)})")
    if len(set(head_names)) < len(head_names):
        raise ValueError(f"head names must be distinct, got {list(head_names)}")
    broken = np.argwhere(~np.isfinite(values))
    if len(broken):
        text, k = broken[0]
        raise ValueError(
            f"the score of head {head_names[k]!r} for text {text} is {values[text, k]} and {len(broken)} scores in "
            "all are not finite: metrics of such a model mean nothing; find the step at which it diverged"
        )
    return values


def _checked_comparisons(
    shape: tuple[int, ...],
    winner: Numbers,
    loser: Numbers,
    head: Numbers,
    weight: Numbers,
    lengths: Numbers | None,
    tiers: Sequence[str | None] | None,
) -> _Rows:
    n_texts, n_heads = shape
    weights = _float64(weight)
    if weights.ndim != 1 or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(
            f"weight must be one-dimensional, finite and >= 0, got shape {weights.shape}, values {weights}"
        )
    winners = _index("winner", winner, len(weights), n_texts)
    losers = _index("loser", loser, len(weights), n_texts)
    length_gap = None
    if lengths is not None:
        length = _float64(lengths)
        if length.shape != (n_texts,):
            raise ValueError(
                f"lengths have shape {length.shape}, scores have {n_texts} texts: one length per text is needed"
            )
        length_gap = length[winners] - length[losers]
    tier_of = [None] * len(weights) if tiers is None else list(tiers)
    if len(tier_of) != len(weights):
        raise ValueError(
            f"tiers have {len(tier_of)} entries, weight has {len(weights)}: one tier or None per comparison is needed"
        )
    names = sorted({name for name in tier_of if name is not None})
    codes: dict[str | None, int] = {None: -1} | {name: code for code, name in enumerate(names)}
    tier = np.fromiter((codes[name] for name in tier_of), np.int64, len(tier_of))
    rows = _Rows(winners, losers, _index("head", head, len(weights), n_heads), weights, length_gap, tier, tuple(names))
    return rows.take(np.flatnonzero(weights))


def _distinct_texts(part: _Rows, n_texts: int) -> tuple[IntArray, IntArray, IntArray]:
    """Sorted distinct winner texts, loser texts, and texts on either side."""
    sides = np.zeros((2, n_texts), dtype=bool)
    sides[0, part.winner] = True
    sides[1, part.loser] = True
    return np.flatnonzero(sides[0]), np.flatnonzero(sides[1]), np.flatnonzero(sides.any(axis=0))


def _correct(gap: FloatArray) -> FloatArray:
    """1 for a positive gap, 1/2 for 0, 0 for a negative one."""
    return (1 + np.sign(gap)) / 2


def _comparison_metrics(gap: FloatArray, part: _Rows) -> dict[str, float]:
    correct, total = _correct(gap), part.weight.sum()
    metrics = {
        "accuracy": float(part.weight @ correct / total),
        "margin": float(part.weight @ gap / total),
        "ece": calibration_error(gap, part.weight),
    }
    if part.length_gap is not None:
        metrics["length_accuracy"] = float(part.weight @ _correct(part.length_gap) / total)
    for code, name in enumerate(part.tier_names):
        weight = part.weight[part.tier == code]
        if len(weight):
            metrics[f"accuracy_{name}"] = float(weight @ correct[part.tier == code] / weight.sum())
    return metrics


def _range_metrics(values: FloatArray) -> dict[str, float]:
    low, high = float(values.min()), float(values.max())
    return {"min_score": low, "mean_score": float(values.mean()), "max_score": high, "dynamic_range": high - low}


def _separation_metrics(winner_scores: FloatArray, loser_scores: FloatArray) -> dict[str, float]:
    metrics = {"auroc": auroc(winner_scores, loser_scores), "d_prime": d_prime(winner_scores, loser_scores)}
    return {name: float(value) for name, value in metrics.items() if not np.isnan(value)}


def _correlation(values: FloatArray) -> FloatArray:
    """Pearson r between the columns of `values` (M, K); NaN where a column is constant or there is no text."""
    n_heads = values.shape[1]
    if not len(values):
        return np.full((n_heads, n_heads), np.nan)
    centred = values - values.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    norm[np.ptp(values, axis=0) == 0] = np.nan
    return np.clip(centred.T @ centred / np.outer(norm, norm), -1, 1)


def _cross_metrics(correlations: FloatArray, accuracies: FloatArray) -> dict[str, float]:
    """The strongest relation to another head, of the K - 1 others."""
    defined = correlations[~np.isnan(correlations)]
    metrics = {}
    if len(defined):
        metrics["cross_correlation"] = float(defined[np.abs(defined).argmax()])
    if len(accuracies):
        metrics["cross_leakage"] = float(accuracies.max())
    return metrics
