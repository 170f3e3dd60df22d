"""What a comparison could have found: the smallest difference for a number of pairs, and the number for a difference.

The test is the two-sided paired t-test. With the standard deviation s of the differences of n pairs, a true difference
δ and t* = t(n − 1, 1 − α/2),

    power(δ) = P(|T| > t*),  T ~ noncentral t with n − 1 degrees of freedom and noncentrality δ √n / s

How this differs from power calculations after the fact: the observed difference does not enter, only the spread of the
differences. A power computed for the observed difference says nothing that p does not say (Hoenig and Heisey 2001).
"""

import math
from collections.abc import Sequence

from scipy import optimize, stats

LEVEL = 0.05
POWER = 0.8
MOST_PAIRS = 10**9


def smallest_detectable(standard_error: float, freedom: float, *, power: float = POWER, level: float = LEVEL) -> float:
    """The smallest true mean that a t-test finds with this power, from the standard error of the mean.

    Args:
        standard_error: s / √n for n pairs, where `freedom` is n − 1. Errors of items and of seeds add as squares; see
            [`combined_freedom`].

    Raises:
        ValueError: as [`detectable_difference`] says.
    """
    _check(standard_error, level)
    _check_power(power, level)
    largest = 1.0
    while _power(largest, freedom, level) < power:
        largest *= 2
    found = optimize.brentq(lambda noncentrality: _power(noncentrality, freedom, level) - power, 0.0, largest)
    return float(found) * standard_error


def combined_freedom(variances: Sequence[float], freedoms: Sequence[float]) -> float:
    """Degrees of freedom of a sum of estimated variances (Satterthwaite 1946): (Σ v)² / Σ (v² / f).

    Raises:
        ValueError: no variance above 0.
    """
    if not sum(variances) > 0:
        raise ValueError(f"variances={list(variances)} have no sum above 0; what does not vary has no freedom")
    return sum(variances) ** 2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True) if v > 0)


def power_of(difference: float, std: float, n: int, *, level: float = LEVEL) -> float:
    """How often the test finds a true mean difference with n pairs whose differences have the standard deviation.

    `power_of(0.5, 1.0, 34)` is 0.81.

    Raises:
        ValueError: fewer than two pairs, a standard deviation that is not above 0, or a level outside 0 to 1.
    """
    _check(std, level)
    if n < 2:
        raise ValueError(f"n={n} pairs have no spread; give at least 2")
    return _power(abs(difference) * math.sqrt(n) / std, n - 1, level)


def detectable_difference(std: float, n: int, *, power: float = POWER, level: float = LEVEL) -> float:
    """The smallest true mean difference that n pairs show with this power, in the unit of the scores.

    For large n it is (z(1 − α/2) + z(power)) s / √n, with 80 % at 0.05: 2.80 s / √n. The pairs may be the items
    of one seed, or the mean differences of n seeds.

    Raises:
        ValueError: as [`power_of`] says, or a power that is not above the level and below 1.
    """
    if n < 2:
        raise ValueError(f"n={n} pairs have no spread; give at least 2")
    return smallest_detectable(std / math.sqrt(n), n - 1, power=power, level=level)


def pairs_needed(difference: float, std: float, *, power: float = POWER, level: float = LEVEL) -> int:
    """The fewest pairs, items or seeds, with which a true mean difference is found with this power; at least 2.

    `pairs_needed(0.5, 1.0)` is 34.

    Raises:
        ValueError: a difference of 0, more than a billion pairs, or as [`detectable_difference`] says.
    """
    _check(std, level)
    _check_power(power, level)
    if difference == 0 or not math.isfinite(difference):
        raise ValueError(f"difference={difference} cannot be looked for; give the smallest one that matters")
    low, high = 1, 2
    while power_of(difference, std, high, level=level) < power:
        if high == MOST_PAIRS:
            raise ValueError(
                f"a difference of {difference} with a standard deviation of {std} needs more than {MOST_PAIRS} pairs; "
                "give a larger one"
            )
        low, high = high, min(2 * high, MOST_PAIRS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(difference, std, middle, level=level) >= power else (middle, high)
    return high


def _power(noncentrality: float, freedom: float, level: float) -> float:
    reach = float(stats.t.ppf(1 - level / 2, freedom))
    # A tail of a noncentral t that is out of reach of its formula is NaN: the upper one is then 1, the lower one 0.
    above, below = (
        float(stats.nct.sf(reach, freedom, noncentrality)),
        float(stats.nct.cdf(-reach, freedom, noncentrality)),
    )
    return min(1.0, (1.0 if math.isnan(above) else above) + (0.0 if math.isnan(below) else below))


def _check(std: float, level: float) -> None:
    if not (std > 0 and math.isfinite(std)):
        raise ValueError(f"std={std} must be a finite number above 0; differences that do not vary need no test")
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1")


def _check_power(power: float, level: float) -> None:
    if not level < power < 1:
        raise ValueError(f"power={power} must lie between level={level} and 1")
