"""Pictures of a run. The one file here that loads matplotlib; the callers import it when they draw.

Figures are made without pyplot, so that no window system and no global state is involved.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from alignkit.es_lora.timing import ONE_TIME, Phase

DPI = 150
ONCE, PER_STEP, CENTRE = "#b35806", "#542788", "#1b7837"


def save_evolution(path: str | PathLike[str], history: Sequence[Mapping[str, Any]]) -> None:
    """Reward over steps: centre, mean and best member, the band from the 20th to the 80th percentile of members, and
    the evaluations of the centre.

    Args:
        history: records of `results.jsonl`.
    """
    steps = [record for record in history if "fitness" in record]
    evaluations = [record for record in history if "evaluation" in record]
    figure = Figure(figsize=(8, 4.5), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    at = [record["step"] for record in steps]

    def values(name: str) -> list[float]:
        return [_number(record[name]) for record in steps]

    low, high = ([_number(record["percentiles"][level]) for record in steps] for level in ("20", "80"))
    axes.fill_between(at, low, high, color=PER_STEP, alpha=0.2, linewidth=0, label="members, 20 to 80 %")
    axes.plot(at, values("mean"), color=PER_STEP, label="members, mean")
    axes.plot(at, values("best"), color=PER_STEP, linestyle=":", label="best member")
    axes.plot(at, values("centre"), color=CENTRE, label="centre, same prompts")
    for name in dict.fromkeys(record["evaluation"] for record in evaluations):
        chosen = [record for record in evaluations if record["evaluation"] == name]
        rewards = [_number(record["reward"]) for record in chosen]
        axes.plot(
            [record["step"] for record in chosen],
            rewards,
            color=CENTRE,
            marker="o",
            linestyle="--",
            label=f"centre, {name}",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("reward")
    axes.legend(fontsize=8)
    figure.savefig(path)


def save_time_breakdown(path: str | PathLike[str], seconds: Mapping[Phase, float]) -> None:
    """Seconds of each phase as bars, longest on top: two colours for what is done once and in each step."""
    phases = sorted((phase for phase in seconds if seconds[phase]), key=lambda phase: seconds[phase])
    figure = Figure(figsize=(7, 0.6 + 0.4 * max(len(phases), 3)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    colours = [ONCE if phase in ONE_TIME else PER_STEP for phase in phases]
    bars = axes.barh(phases, [seconds[phase] for phase in phases], color=colours)
    axes.bar_label(bars, [f"{seconds[phase]:.3g} s" for phase in phases], padding=3, fontsize=8)
    axes.margins(x=0.15)
    axes.set_xlabel("seconds")
    kinds = [Patch(color=ONCE, label="once"), Patch(color=PER_STEP, label="in each step")]
    axes.legend(handles=kinds, fontsize=8, loc="lower right")
    figure.savefig(path)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
