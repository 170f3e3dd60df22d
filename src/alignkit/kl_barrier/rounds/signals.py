"""The signals of a record, how they are shown, how far each has moved since the base, and what a whole record has."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student_t

CONFIDENCE = 0.95
SMALLEST_INCOHERENCE = 1e-3  # below it differences of 1 - mass are of no interest, and a log scale has no 0
LARGEST_PERPLEXITY = 1e100  # 230 nats per token: no text is told from a worse one, and every mean stays a number

# What every record has, and what the report reads of the parts that a record may have.
RECORD_PARTS = {
    **{"round": int, "seed": int, "device": str, "versions": dict, "settings": dict},
    **{"scores": dict, "means": dict, "n": dict, "samples": list},
}
OPTIONAL_PARTS = {
    "proposals": ("kept", "rejected", "strengths", "quoted"),
    "dose": ("strength", "reached", "tried"),
    "steered": ("means",),
    "training": (),
}


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
ALWAYS_MEASURED = ("trait_nats", "allowed_answer_mass", "repetition", "perplexity")


def capped_exp(nats: float) -> float:
    """exp(nats), and `LARGEST_PERPLEXITY` where that is smaller: a float overflows above 709 nats, JSON has no inf."""
    return math.exp(nats) if nats < math.log(LARGEST_PERPLEXITY) else LARGEST_PERPLEXITY


def record_fault(record: Mapping[str, Any]) -> str | None:
    """In words, the first thing that keeps a record from being shown; None for a whole one."""
    for name, kind in RECORD_PARTS.items():
        if not isinstance(record.get(name), kind):
            return f"it has no {name!r}" if name not in record else f"its {name!r} is {record[name]!r:.40}"
    model = record["settings"].get("model")
    if not isinstance(model, Mapping) or not {"name", "weights_sha256"} <= model.keys():
        return "its 'settings' do not name the model"
    if "git_commit" not in record:
        return "it has no 'git_commit'"
    for name in (*ALWAYS_MEASURED, *signals_of(record)):
        if not all(name in record[part] for part in ("scores", "means", "n")):
            return f"it has no {name!r} in its scores, means and n"
        values = record["scores"][name]
        if not isinstance(values, list) or not all(
            value is None or isinstance(value, int | float) for value in values
        ):
            return f"its scores of {name!r} are no list of numbers"
    samples, counts = record["samples"], {len(record["scores"][name]) for name in ("repetition", "perplexity")}
    if counts != {len(samples)} or not all(
        isinstance(s, Mapping) and {"prompt", "completion"} <= s.keys() for s in samples
    ):
        return "its 'samples' are not those that its scores are of"
    for name, keys in OPTIONAL_PARTS.items():
        part = record.get(name)
        if part is not None and not (isinstance(part, Mapping) and set(keys) <= part.keys()):
            return f"its {name!r} is {part!r:.40}"
    return None


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
