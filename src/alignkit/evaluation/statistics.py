"""Does one model score higher than another on the same items? Where they are not the same, see `unpaired`.

Differs from the textbook:
1. Seeds are drawn from Student's t, their spread pooled over settings, and only items are resampled, where a
   hierarchical bootstrap resamples both: a 95 % interval of that kind over three seeds covers 75 % (simulated).
2. Nothing is NaN. Without variance the interval is a point, t and d are 0 or None, and p is that of the sign test.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
CHUNK = 2**18  # scores per chunk of resamples: 2 MiB
NAMED = 3  # ids that an error names

Scores = Mapping[str, float] | Sequence[float] | npt.NDArray[np.float64]
Array = npt.NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedComparison:
    """What pairs of scores say of the mean difference d̄ of d_i = b_i − a_i, in the unit of the scores.

    Attributes:
        mean_difference: d̄.
        interval: 95 % of it, by bootstrap over items.
        t: d̄ / (s / √n) with the sample standard deviation s of d; None if all d_i are the same and not 0.
        p: two-sided, of the paired t-test; without variance of the sign test.
        cohens_d: d̄ / s; None where t is.
        n: pairs.
    """

    mean_difference: float
    interval: Interval
    t: float | None
    p: float
    cohens_d: float | None
    n: int


@dataclass(frozen=True)
class SeededComparison:
    """As [`PairedComparison`], over several seeds and the n items that all of them share.

    Attributes:
        p: two-sided, from the draws of the interval; at least 2 / (n_resamples + 1).
        cohens_d: of the items' differences averaged over seeds; None if they are all the same and not 0.
        per_seed: mean difference of each seed.
    """

    mean_difference: float
    interval: Interval
    p: float
    cohens_d: float | None
    per_seed: tuple[float, ...]
    n: int


@dataclass(frozen=True)
class SeedSpread:
    """Standard deviation over seeds of a mean, and the degrees of freedom that it was estimated with."""

    std: float
    freedom: int


def paired_differences(a: Scores, b: Scores) -> Array:
    """b − a item by item `(n,)`, by id where both are mappings (in the order of a), else by place.

    Raises:
        ValueError: ids that only one side has (it names some), two lengths, or a score that is no finite number.
    """
    if isinstance(a, Mapping) != isinstance(b, Mapping):
        raise ValueError("one side has item ids and the other has none; give two mappings or two sequences")
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for here, there, side in ((a, b, "first"), (b, a, "second")):
            alone = [item for item in here if item not in there]
            if alone:
                some = ", ".join(map(repr, alone[:NAMED])) + (", …" if len(alone) > NAMED else "")
                raise ValueError(f"{len(alone)} ids are only on the {side} side ({some}); pairs need the same items")
        first, second = [*a.values()], [b[item] for item in a]
    else:
        first, second = [*a], [*b]
        if len(first) != len(second):
            raise ValueError(f"{len(first)} scores cannot be paired with {len(second)}")
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    if not np.isfinite(differences).all():
        place = int(np.flatnonzero(~np.isfinite(differences))[0])
        raise ValueError(f"pair {place} is {first[place]} and {second[place]}; scores must be finite numbers")
    return differences


def paired_comparison(a: Scores, b: Scores, *, n_resamples: int = 10_000, seed: int = 0) -> PairedComparison:
    """Compare b with a on the same items: paired bootstrap interval, paired t-test, Cohen's d for pairs.

    `a` and `b` are scores by item id, or two sequences of one length; the same `seed` gives the same interval.

    Raises:
        ValueError: fewer than two pairs, or as `paired_differences` says.
    """
    differences = paired_differences(a, b)
    interval = bootstrap_interval(differences, n_resamples=n_resamples, seed=seed)
    n, mean, effect = len(differences), float(differences.mean()), cohens_d(differences)
    if _all_same(differences):
        return PairedComparison(mean, interval, effect, sign_test(differences), effect, n)
    test = stats.ttest_1samp(differences, 0.0)
    return PairedComparison(mean, interval, float(test.statistic), float(test.pvalue), effect, n)


def cohens_d(differences: Array) -> float | None:
    """Effect size of pairs: mean over sample standard deviation of the differences `(n,)`.

    0 if there is no difference at all, None if all are the same and not 0.

    Raises:
        ValueError: fewer than two differences.
    """
    at_least_two(len(differences), "pairs")
    if _all_same(differences):
        return 0.0 if differences[0] == 0 else None
    return float(differences.mean() / differences.std(ddof=1))


def _all_same(differences: Array) -> bool:
    """But for rounding: 0.3 − 0.2 and 0.2 − 0.1 are the same."""
    return bool(np.ptp(differences) <= 1e-12 * np.abs(differences).max())


def bootstrap_interval(values: Array, *, n_resamples: int = 10_000, seed: int = 0) -> Interval:
    """95 % percentile interval of the mean of `values` `(n,)`, by resampling them.

    Raises:
        ValueError: fewer than two values, or fewer than 100 resamples.
    """
    return _percentiles(_resampled_means(np.asarray(values, np.float64), n_resamples, np.random.default_rng(seed)))


def _resampled_means(values: Array, n_resamples: int, generator: np.random.Generator) -> Array:
    """Means of `n_resamples` samples drawn from `values` with replacement."""
    at_least_two(len(values), "items")
    if n_resamples < 100:
        raise ValueError(f"n_resamples={n_resamples} says nothing of a tail; give at least 100, better 10,000")
    # Resamples stay within the extremes; so must their means, which rounding would else carry beyond.
    low, high = values.min(), values.max()
    rows = max(1, CHUNK // len(values))
    means = []
    for start in range(0, n_resamples, rows):
        drawn = generator.integers(0, len(values), (min(rows, n_resamples - start), len(values)), dtype=np.int32)
        means.append(values[drawn].mean(axis=1))
    return np.clip(np.concatenate(means), low, high)


def _percentiles(draws: Array) -> Interval:
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def seed_spread(groups: Sequence[Sequence[float]]) -> SeedSpread | None:
    """The spread over seeds within groups of equal settings, pooled: s² = Σ_g Σ_i (x_gi − x̄_g)² / Σ_g (S_g − 1).

    `groups` holds the means of the S_g seeds of each group. None where no group has two seeds.
    """
    freedom = sum(len(group) - 1 for group in groups if group)
    if freedom < 1:
        return None
    squares = sum(float(np.var(group)) * len(group) for group in groups if group)
    return SeedSpread(math.sqrt(squares / freedom), freedom)


def compare_over_seeds(
    pairs: Sequence[tuple[Scores, Scores]],
    *,
    spread: SeedSpread | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> SeededComparison:
    """Compare over S seeds and n items at once: x = mean_j d̄_j* + T·s / √S.

    d̄_j is the mean difference of item j over seeds, * a resample of items, which all seeds share as they share the
    items, s the standard deviation of the seeds' mean differences, and T a draw of Student's t with its freedom.

    Args:
        pairs: (a, b) of each seed, with the same items.
        spread: s, where it is better known than from these seeds, of which one is then enough.

    Raises:
        ValueError: fewer than two seeds and no spread, seeds with other items, or as `paired_differences` says.
    """
    if spread is None or not pairs:
        at_least_two(len(pairs), "seeds")
    first, rows = pairs[0][0], []
    for a, b in pairs:
        differences = paired_differences(a, b)
        paired_differences(first, a)  # raises where the seeds have other items
        if isinstance(first, Mapping) and isinstance(a, Mapping):
            place = dict(zip(a, differences, strict=True))
            differences = np.array([place[item] for item in first])
        rows.append(differences)
    matrix = np.stack(rows)  # (S, n)
    per_item, per_seed = matrix.mean(axis=0), matrix.mean(axis=1)
    spread = spread or SeedSpread(float(per_seed.std(ddof=1)), len(pairs) - 1)
    generator = np.random.default_rng(seed)
    means = _resampled_means(per_item, n_resamples, generator)
    draws = means + generator.standard_t(spread.freedom, n_resamples) * spread.std / math.sqrt(len(pairs))
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return SeededComparison(
        mean_difference=float(matrix.mean()),
        interval=_percentiles(draws),
        p=min(1.0, 2 * (tail + 1) / (n_resamples + 1)),
        cohens_d=cohens_d(per_item),
        per_seed=tuple(float(mean) for mean in per_seed),
        n=matrix.shape[1],
    )


def wilson_interval(successes: float, n: int) -> Interval:
    """95 % interval of a proportion (Wilson 1927). `successes` may be the sum of n scores from 0 to 1.

    Raises:
        ValueError: n < 1, or successes outside 0 to n.
    """
    if n < 1 or not -1e-9 <= successes <= n + 1e-9:
        raise ValueError(f"{successes} of {n} is no proportion")
    z2 = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) ** 2
    share = min(max(successes / n, 0.0), 1.0)
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    # Of none and of all, rounding would leave the share itself outside.
    return max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach))


def mcnemar_test(a: Scores, b: Scores) -> float:
    """Exact two-sided p of McNemar's test: are there as many items that only a has right as that only b has?

    Raises:
        ValueError: a score that is neither 0 nor 1, or as `paired_differences` says.
    """
    scores = [*(a.values() if isinstance(a, Mapping) else a), *(b.values() if isinstance(b, Mapping) else b)]
    wrong = next((score for score in scores if score not in (0, 1)), None)
    if wrong is not None:
        raise ValueError(f"McNemar's test counts right and wrong answers, and {wrong} is neither 1 nor 0")
    return sign_test(paired_differences(a, b))


def sign_test(differences: Array) -> float:
    """Exact two-sided p of the sign test: is a difference above 0 as likely as one below? Zeros count for neither.

    Raises:
        ValueError: no difference at all.
    """
    if len(differences) == 0:
        raise ValueError("the sign test needs at least one pair")
    above, below = int((differences > 0).sum()), int((differences < 0).sum())
    return float(stats.binomtest(above, above + below).pvalue) if above + below else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in their order.

    The i-th smallest of m becomes (m − i + 1)·p, or what the one before it became if that is more, and at most 1.

    Raises:
        ValueError: a p outside 0 to 1.
    """
    wrong = next((p for p in p_values if not 0 <= p <= 1), None)
    if wrong is not None:
        raise ValueError(f"p={wrong} is no probability")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def noise_band(baselines: Sequence[float]) -> float:
    """How far two results of one model may lie apart by chance alone: t(k − 1, 0.975)·s·√2 of k repeated baselines.

    s is their sample standard deviation; the difference of two draws has √2 times that of one.

    Raises:
        ValueError: fewer than three, from which no spread can be told.
    """
    if len(baselines) < 3:
        raise ValueError(f"{len(baselines)} baselines tell no spread; repeat the baseline with at least 3 seeds")
    spread = float(np.std(np.asarray(baselines, dtype=np.float64), ddof=1))
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, len(baselines) - 1)) * spread * math.sqrt(2)


def at_least_two(number: int, what: str) -> None:
    """Raises a ValueError for fewer than two of `what`."""
    if number < 2:
        raise ValueError(f"an interval needs at least two {what}, not {number}")
