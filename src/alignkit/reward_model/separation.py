"""How far apart two sets of scores are. Both measures work on many pairs of sets at once, along one axis."""

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

FloatArray = npt.NDArray[np.float64]


def auroc(positives: FloatArray, negatives: FloatArray, axis: int = -1) -> FloatArray:
    """P(positive > negative) + P(positive = negative) / 2 over all pairs: the Mann-Whitney U divided by n_pos * n_neg.

    Args:
        positives (`(..., n_pos)`), negatives (`(..., n_neg)`): scores of the two sets along `axis`, not empty.

    Returns:
        `(...)` values in [0, 1].
    """
    n_positives, n_negatives = positives.shape[axis], negatives.shape[axis]
    ranks = rankdata(np.concatenate([positives, negatives], axis=axis), axis=axis)
    rank_sum = np.take(ranks, np.arange(n_positives), axis=axis).sum(axis=axis)
    return np.asarray((rank_sum - n_positives * (n_positives + 1) / 2) / (n_positives * n_negatives))


def d_prime(positives: FloatArray, negatives: FloatArray, axis: int = -1) -> FloatArray:
    """(mean_pos - mean_neg) / sqrt((var_pos + var_neg) / 2), with sample variances (n - 1).

    Args:
        positives (`(..., n_pos)`), negatives (`(..., n_neg)`): scores of the two sets along `axis`.

    Returns:
        `(...)` values; NaN where a set has fewer than two scores or both sets are constant.
    """
    gap = np.asarray(positives.mean(axis=axis) - negatives.mean(axis=axis))
    if min(positives.shape[axis], negatives.shape[axis]) < 2:
        return np.full(gap.shape, np.nan)
    # The range decides what is constant: rounding in the mean leaves a constant set with a variance near 1e-34.
    varies = (np.ptp(positives, axis=axis) > 0) | (np.ptp(negatives, axis=axis) > 0)
    variance = (positives.var(axis=axis, ddof=1) + negatives.var(axis=axis, ddof=1)) / 2
    return np.divide(gap, np.sqrt(variance), out=np.full(gap.shape, np.nan), where=varies & (variance > 0))
