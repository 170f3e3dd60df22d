"""Does one model score higher than another, of which only means and counts are known? So intervals are wide."""

import math
from dataclasses import dataclass

from scipy import stats

from alignkit.evaluation.statistics import CONFIDENCE, Interval, SeedSpread, at_least_two, wilson_interval


@dataclass(frozen=True)
class Summary:
    """A mean over n items; `std` is their sample standard deviation, None for a proportion."""

    mean: float
    n: int
    std: float | None = None


@dataclass(frozen=True)
class UnpairedComparison:
    """Difference of two means of which only a summary is known, with its 95 % interval and two-sided p."""

    mean_difference: float
    interval: Interval
    p: float


def unpaired_comparison(before: Summary, after: Summary) -> UnpairedComparison:
    """Compare two means whose items cannot be paired.

    With both standard deviations: Welch's t. Else both are proportions, or means of scores from 0 to 1, whose variance
    is at most that of a proportion: Newcombe's interval from the two Wilson intervals (Newcombe 1998, method 10), and
    the z-test with pooled variance.

    Raises:
        ValueError: n < 1, n < 2 with standard deviations, or no standard deviation of a mean outside 0 to 1.
    """
    difference = after.mean - before.mean
    if before.std is not None and after.std is not None:
        return UnpairedComparison(difference, *_welch(before, before.std, after, after.std))
    for side in (before, after):
        if not 0 <= side.mean <= 1:
            raise ValueError(f"a mean of {side.mean} is no proportion; its interval needs the standard deviation, too")
    (low_1, high_1), (low_2, high_2) = (wilson_interval(side.mean * side.n, side.n) for side in (before, after))
    low = difference - math.hypot(after.mean - low_2, high_1 - before.mean)
    high = difference + math.hypot(high_2 - after.mean, before.mean - low_1)
    pooled = (before.mean * before.n + after.mean * after.n) / (before.n + after.n)
    variance = pooled * (1 - pooled) * (1 / before.n + 1 / after.n)
    # Without variance both are 0, or both 1.
    p = 1.0 if variance == 0 else float(2 * stats.norm.sf(abs(difference) / math.sqrt(variance)))
    return UnpairedComparison(difference, (low, high), p)


def _welch(before: Summary, before_std: float, after: Summary, after_std: float) -> tuple[Interval, float]:
    for side in (before, after):
        at_least_two(side.n, "items")
    difference = after.mean - before.mean
    squares = (before_std**2 / before.n, after_std**2 / after.n)
    if sum(squares) == 0:
        raise ValueError("both standard deviations are 0; an interval needs scores that vary")
    test = stats.ttest_ind_from_stats(
        after.mean, after_std, after.n, before.mean, before_std, before.n, equal_var=False
    )
    freedom = sum(squares) ** 2 / sum(
        square**2 / (side.n - 1) for square, side in zip(squares, (before, after), strict=True)
    )
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(sum(squares))
    return (difference - reach, difference + reach), float(test.pvalue)


def widen_by_seeds(found: UnpairedComparison, spread: SeedSpread, n_seeds: int) -> UnpairedComparison:
    """Add the spread of a mean over seeds to a comparison that knows the noise of the items alone.

    The two parts of each half of the interval add as √(r₁² + r₂²); p is that of a normal distribution with that sum.
    """
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, spread.freedom)) * spread.std / math.sqrt(n_seeds)
    difference, (low, high) = found.mean_difference, found.interval
    below, above = math.hypot(difference - low, reach), math.hypot(high - difference, reach)
    towards_zero = below if difference > 0 else above
    z = abs(difference) / towards_zero * float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    p = max(found.p, float(2 * stats.norm.sf(z)))
    return UnpairedComparison(difference, (difference - below, difference + above), p)
