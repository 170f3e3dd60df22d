"""Pictures of a run of rounds. The one file here that loads matplotlib; the report imports it when it draws.

Figures are made without pyplot, so that no window system and no global state is involved.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from alignkit.kl_barrier.rounds.signals import (
    SIGNALS,
    SMALLEST_INCOHERENCE,
    capped_exp,
    changes_since,
    interval_of_mean,
    most_moved,
)

DPI = 150
# Of Okabe and Ito, told apart in every common form of colour blindness; markers differ as well.
BASE, STEERED, HEALED = "0.35", "#D55E00", "#0072B2"
BASE_MARKER, STEERED_MARKER, HEALED_MARKER = "s", "D", "o"
INCOHERENCE_LABEL = f"incoherence: max(1 − mass on\nallowed answers, {SMALLEST_INCOHERENCE:g})"

Record = Mapping[str, Any]


def save_trajectory(path: str | PathLike[str], records: Sequence[Record]) -> None:
    """Trait above incoherence (log scale) on the left; repetition above perplexity, of the samples, on the right.

    Bars are 95 % t-intervals over items of the change from the base. Diamonds between two rounds are the steered
    student, which writes the completions of the round that follows.
    """
    figure = Figure(figsize=(10, 6.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    _draw(panels[0][0], records, "trait_nats", "trait: log-probability\nmargin (nats)")
    _draw(panels[1][0], records, "allowed_answer_mass", INCOHERENCE_LABEL, shown=_incoherence)
    _draw(panels[0][1], records, "repetition", "repetition of samples\n(share of repeated n-grams)")
    _draw(panels[1][1], records, "perplexity", "perplexity of samples\nunder the original (per token)")
    for panel in (panels[1][0], panels[1][1]):
        if panel.lines and len(panel.lines[0].get_xdata()):  # an axis without points cannot be logarithmic
            panel.set_yscale("log")
            low, high = panel.get_ylim()
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else NullFormatter())
        panel.set_xlabel("round (0: base model)")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [_key(BASE, BASE_MARKER, "base"), _key(HEALED, HEALED_MARKER, "after the round (healed)")]
    if any(record.get("steered") for record in records):
        handles.insert(1, _key(STEERED, STEERED_MARKER, "before healing (steered)"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path)


def _incoherence(mass: float) -> float:
    return max(1 - mass, SMALLEST_INCOHERENCE)


def _as_it_is(value: float) -> float:
    return value


def _draw(
    panel: Axes, records: Sequence[Record], name: str, label: str, shown: Callable[[float], float] = _as_it_is
) -> None:
    panel.set_ylabel(label, fontsize=9)
    panel.tick_params(labelsize=8, which="both")
    panel.grid(axis="y", color="0.9")
    points: list[tuple[float, float, str, str, tuple[float, float] | None]] = []
    for record in records:
        number, steered = record["round"], record.get("steered")
        if steered and name in steered["means"]:
            points.append((number - 0.5, shown(steered["means"][name]), STEERED, STEERED_MARKER, None))
        if record["means"][name] is not None:
            colour, marker = (BASE, BASE_MARKER) if number == 0 else (HEALED, HEALED_MARKER)
            points.append((number, shown(record["means"][name]), colour, marker, _bar(records[0], record, name)))
    panel.plot([x for x, *_ in points], [y for _, y, *_ in points], color="0.6", linestyle=":", linewidth=1, zorder=1)
    for x, y, colour, marker, bar in points:
        if bar is not None:
            panel.plot([x, x], [shown(bar[0]), shown(bar[1])], color=colour, linewidth=1.2, alpha=0.6, zorder=2)
        panel.plot(x, y, color=colour, marker=marker, markersize=6, markeredgecolor="white", zorder=3)


def _bar(base: Record, record: Record, name: str) -> tuple[float, float] | None:
    """The base's mean moved by the ends of the interval of the change; none for the base itself and for one item."""
    interval = interval_of_mean(changes_since(base, record, name))
    if record["round"] == 0 or interval is None:
        return None
    if SIGNALS[name].is_log:
        low, high = (capped_exp(math.log(base["means"][name]) + end) for end in interval)
        return low, high
    low, high = SIGNALS[name].bounds
    return max(base["means"][name] + interval[0], low), min(base["means"][name] + interval[1], high)


def _key(colour: str, marker: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="", label=label)


def save_map(path: str | PathLike[str], records: Sequence[Record]) -> None:
    """The path of the rounds in the plane of the two signals that moved most, points numbered, the base marked."""
    names = most_moved(records)
    figure = Figure(figsize=(6.4, 5.2), dpi=DPI, layout="constrained")
    panel = figure.subplots()
    known = [record for record in records if all(record["means"][name] is not None for name in names)]
    xs, ys = ([record["means"][name] for record in known] for name in names)
    panel.plot(xs, ys, color="0.6", linestyle=":", linewidth=1, zorder=1)
    for record, x, y in zip(known, xs, ys, strict=True):
        is_base = record["round"] == 0
        colour, marker = (BASE, BASE_MARKER) if is_base else (HEALED, HEALED_MARKER)
        panel.plot(x, y, color=colour, marker=marker, markersize=7, markeredgecolor="white", zorder=2)
        panel.annotate(
            "base" if is_base else str(record["round"]),
            (x, y),
            xytext=(6, 5),
            textcoords="offset points",
            fontsize=9,
            color=colour,
        )
    panel.set_xlabel(SIGNALS[names[0]].label, fontsize=9)
    panel.set_ylabel(SIGNALS[names[1]].label, fontsize=9)
    panel.set_title("rounds in the plane of the two signals that moved most", fontsize=10, loc="left")
    panel.tick_params(labelsize=8)
    panel.grid(color="0.92")
    panel.margins(0.12)
    figure.savefig(path)
