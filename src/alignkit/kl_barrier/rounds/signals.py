"""The signals of a record, how they are shown, and how far each has moved since the base."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student_t

CONFIDENCE = 0.95
SMALLEST_INCOHERENCE = 1e-3  # below it differences of 1 - mass are of no interest, and a log scale has no 0


@dataclass(frozen=True)
class Signal:
    """One thing that is measured per item.

    Args:
        label: with its unit, for axes and tables.
        is_log: whether it is compared by ratio: changes are then of its logarithm.
        bounds: between which its values lie.
    """

    label: str
    is_log: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)


SIGNALS = {
    "trait_nats": Signal("trait: log-probability margin (nats)"),
    "allowed_answer_mass": Signal("coherence: mass on allowed answers (probability)", bounds=(0.0, 1.0)),
    "repetition": Signal("repetition of samples (share of n-grams)", bounds=(0.0, 1.0)),
    "perplexity": Signal("perplexity of samples under the original (per token)", is_log=True),
    "held_out_nll_nats": Signal("held-out NLL (nats per token)"),
}


def signals_of(record: Mapping[str, Any]) -> list[str]:
    """Names of the signals that a record has, in the order in which they are shown."""
    return [name for name in SIGNALS if name in record["scores"]]


def interval_of_mean(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % t-interval of the mean over items; None for fewer than two."""
    if len(values) < 2:
        return None
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def changes_since(base: Mapping[str, Any], record: Mapping[str, Any], name: str) -> list[float]:
    """Change of each item that both records have a value of; for a log signal that of its natural logarithm."""
    pairs = zip(base["scores"][name], record["scores"][name], strict=True)
    known = [(before, after) for before, after in pairs if before is not None and after is not None]
    if SIGNALS[name].is_log:
        return [math.log(after / before) for before, after in known]
    return [after - before for before, after in known]


def movement(records: Sequence[Mapping[str, Any]], name: str) -> float:
    """Largest effect size of a signal over the rounds: max over rounds of |mean change| / s.

    s is the standard deviation over all items and rounds, base included, so that signals in different units compare;
    0 for one that never moved.
    """
    base, rounds = records[0], records[1:]
    means = [abs(fmean(changes)) for record in rounds if (changes := changes_since(base, record, name))]
    known = [value for record in records for value in record["scores"][name] if value is not None]
    values = [math.log(value) for value in known] if SIGNALS[name].is_log else known
    spread = stdev(values) if len(values) > 1 else 0.0
    return max(means, default=0.0) / spread if spread > 0 else 0.0


def most_moved(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The two signals with the largest `movement`, in the order in which they are shown."""
    names = signals_of(records[0])
    largest = sorted(names, key=lambda name: -movement(records, name))[:2]
    first, second = sorted(largest, key=names.index)
    return first, second
