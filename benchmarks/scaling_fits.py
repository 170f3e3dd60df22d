"""What a curve says: the exponent of its cost, and the first size at which a limit is passed."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

MEMORY_LIMIT_BYTES = 24 << 30
TIME_LIMIT_S = 600.0
# Doublings beyond the largest size that was taken; what a curve says of more would be a guess.
DOUBLINGS = 10


def power_law(sizes: Sequence[float], costs: Sequence[float]) -> dict[str, float] | None:
    """The line through log cost against log size: cost ~ factor · size^exponent, least squares.

    Returns:
        `dict`: `exponent`, its `standard_error`, and `factor`; None where sizes differ by less than 2, so that an
        exponent would be one of noise.
    """
    if max(sizes) < 2 * min(sizes):
        return None
    (exponent, log_factor), covariance = np.polyfit(np.log(sizes), np.log(costs), 1, cov=True)
    return {
        "exponent": float(exponent),
        "standard_error": float(np.sqrt(covariance[0, 0])),
        "factor": float(np.exp(log_factor)),
    }


def memory_model(sizes: Sequence[float], peak_bytes: Sequence[float]) -> dict[str, Any]:
    """bytes = c0 + c1 · size + c2 · size², no c below 0, least squares of the relative error.

    What stays, such as weights, what a token, a member or an entry of the vocabulary takes, and what each pair of them
    takes, such as a mask: memory has no other terms.

    Returns:
        `dict`: `coefficients`, and `largest_relative_error` at the sizes that were taken.
    """
    given = np.asarray(sizes, dtype=float)
    measured = np.asarray(peak_bytes, dtype=float)
    # In units of the largest size, so that the columns are of one magnitude.
    unit = given.max()
    terms = np.stack([np.ones_like(given), given / unit, (given / unit) ** 2], axis=1)
    scaled, _ = nnls(terms / measured[:, None], np.ones_like(given))
    return {
        "coefficients": [float(scaled[power] / unit**power) for power in range(3)],
        "largest_relative_error": float(np.abs(terms @ scaled / measured - 1).max()),
    }


def memory_break(sizes: Sequence[int], peak_bytes: Sequence[int], model: dict[str, Any], how: str) -> dict[str, Any]:
    """The first of the smallest size and its doublings whose peak is above [`MEMORY_LIMIT_BYTES`].

    Args:
        how (`str`): how the bytes of the sizes taken came about, `"counted"` or `"simulated"`.
    """

    def predicted(size: int) -> float:
        return sum(float(c) * size**power for power, c in enumerate(model["coefficients"]))

    taken = dict(zip(sizes, peak_bytes, strict=True))
    return _first_over(taken, how, predicted, "by the memory model", MEMORY_LIMIT_BYTES)


def time_break(sizes: Sequence[int], costs: Sequence[float], law: dict[str, float]) -> dict[str, Any]:
    """Likewise, whose time is above [`TIME_LIMIT_S`]."""

    def predicted(size: int) -> float:
        return float(law["factor"] * size ** law["exponent"])

    return _first_over(dict(zip(sizes, costs, strict=True)), "measured", predicted, "by the power law", TIME_LIMIT_S)


def _first_over(
    taken: dict[int, Any], how_taken: str, predicted: Callable[[int], float], how_else: str, limit: float
) -> dict[str, Any]:
    """`size` is None where none is up to `up_to`."""
    size, last = min(taken), max(taken) << DOUBLINGS
    while size <= last:
        if taken.get(size, 0) > limit or (size not in taken and predicted(size) > limit):
            return {"size": size, "how": how_taken if size in taken else how_else, "up_to": size}
        size *= 2
    return {"size": None, "how": how_else, "up_to": size // 2}
