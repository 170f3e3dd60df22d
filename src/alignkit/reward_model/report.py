"""What happened to the data: rows, comparisons and positives per head, what was dropped or shortened, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.reward_model.negatives import NegativePool

COUNTED_PER_HEAD = ("comparisons", "positives", "weight", "dropped", "trimmed")


def new_report(head_names: list[str]) -> dict[str, Any]:
    """An empty report of a split: `rows`, and per head the counts of `COUNTED_PER_HEAD`; plain data for JSON."""
    return {"rows": 0, **{name: dict.fromkeys(head_names, 0) for name in COUNTED_PER_HEAD}}


def count_row(
    report: dict[str, Any], row: Mapping[str, Any], head_names: list[str], member_weights: Sequence[float]
) -> None:
    """Count an encoded row. A pair or a tie is one comparison; a dropped or trimmed row counts once for each head.

    `weight` is what a row weighs in the loss: its comparisons' weights, and for a positive of a corpus that of its
    head in `member_weights (K,)`, the weights of the tiers it meets.
    """
    report["rows"] += 1
    heads = {*row["head"], *row["member_head"]}
    for head in heads:
        report["dropped"][head_names[head]] += int(row["dropped"])
        report["trimmed"][head_names[head]] += int(row["trimmed_tokens"] > 0)
    if row["dropped"]:
        return
    for head, unit, weight in zip(row["head"], row["unit"], row["weight"], strict=True):
        report["comparisons"][head_names[head]] += unit
        report["weight"][head_names[head]] += weight
    for head in row["member_head"]:
        report["positives"][head_names[head]] += 1
        report["weight"][head_names[head]] += member_weights[head]


def count_negatives(report: dict[str, Any], pool: NegativePool) -> None:
    """Count a pool of negatives per tier: used, dropped for length, and uses dropped because of a conflict."""
    report["negatives"] = {tier: len(rows) for tier, rows in pool.rows_of_tier.items()}
    report["negatives_dropped"] = dict(pool.dropped)
    report["negatives_in_conflict"] = dict(pool.conflicts)


def loss_summary(report: Mapping[str, Any]) -> str | None:
    """One line on what was lost or changed, or None when nothing was."""
    parts = []
    for name in ("dropped", "trimmed", "negatives_dropped", "negatives_in_conflict"):
        counts = {key: count for key, count in report.get(name, {}).items() if count}
        if counts:
            parts.append(f"{name.replace('_', ' ')}: " + ", ".join(f"{key} {count}" for key, count in counts.items()))
    return "; ".join(parts) or None
