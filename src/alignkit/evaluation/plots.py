"""Pictures of an experiment. The one file here that loads matplotlib; the report imports it when it draws.

Figures are made without pyplot, so that no window system and no global state is involved.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from alignkit.evaluation.overfitting import Curve
from alignkit.evaluation.pareto import Point

DPI = 150
# Of Okabe and Ito, told apart in every common form of colour blindness; beyond seven lines, dashes differ as well.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DASHES = ["-", "--", ":", "-."]
LEGEND_COLUMNS = 12
MOST_MARKERS = 10  # points of a curve; beyond, they would hide it
FRONT, BEHIND = "#0072B2", "0.6"
# Where the number of a point may stand, in points from it: the first place that is free.
PLACES = [(7, 4), (-7, 4), (7, -11), (-7, -11), (0, 9), (0, -16), (18, 12), (-18, 12), (18, -20), (-18, -20), (0, 24)]


@dataclass(frozen=True)
class Chart:
    """The curves of one value, by the number of their setting."""

    label: str
    lines: Sequence[tuple[int, Curve]]


def pareto(points: Sequence[Point], general_label: str, task_label: str) -> bytes:
    """PNG of gains in general capability (across) and on the task (up), points numbered as in the report."""
    figure = Figure(figsize=(6.8, 5.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.75", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.75", linewidth=0.8, zorder=0)
    axes.plot(0, 0, marker="s", color="0.25", markersize=7, linestyle="", zorder=3)
    for point in points:
        colour = FRONT if point.on_front else BEHIND
        if point.general_interval:
            axes.plot(point.general_interval, [point.task] * 2, color=colour, linewidth=1, alpha=0.45, zorder=1)
        if point.task_interval:
            axes.plot([point.general] * 2, point.task_interval, color=colour, linewidth=1, alpha=0.45, zorder=1)
        marker = "o" if point.on_front else "X"
        axes.plot(point.general, point.task, marker=marker, color=colour, markersize=8, markeredgecolor="w", zorder=4)
    front = sorted((point.general, point.task) for point in points if point.on_front)
    axes.plot([x for x, _ in front], [y for _, y in front], color=FRONT, linestyle=":", linewidth=1, zorder=2)
    axes.set_xlabel(general_label, fontsize=9, parse_math=False)
    axes.set_ylabel(task_label, fontsize=9, parse_math=False)
    axes.tick_params(labelsize=8)
    axes.margins(0.12)
    handles = [
        _key(FRONT, "o", "none is at least as good in both"),
        _key(BEHIND, "X", "another is at least as good in both"),
        _key("0.25", "s", "baseline"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    figure.draw_without_rendering()  # settles the layout, which the places of the numbers depend on
    _number_points(axes, points)
    return _png(figure)


def _number_points(axes: Axes, points: Sequence[Point]) -> None:
    """Write each number where it covers no other number and no point."""
    per_point = DPI / 72
    spots = axes.transData.transform([(0.0, 0.0), *((point.general, point.task) for point in points)])
    taken = [Bbox.from_bounds(x - 5 * per_point, y - 5 * per_point, 10 * per_point, 10 * per_point) for x, y in spots]
    for point, (x, y) in zip(points, spots[1:], strict=True):
        text = str(point.number)
        width, height = 6 * len(text) * per_point, 9 * per_point
        boxes = [
            Bbox.from_bounds(
                x + dx * per_point - width * (dx < 0) - width / 2 * (dx == 0), y + dy * per_point, width, height
            )
            for dx, dy in PLACES
        ]
        place = next((n for n, box in enumerate(boxes) if not box.count_overlaps(taken)), 0)
        taken.append(boxes[place])
        dx, dy = PLACES[place]
        axes.annotate(
            text,
            (point.general, point.task),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="center" if dx == 0 else "left" if dx > 0 else "right",
            va="bottom",
            fontsize=9,
            color=FRONT if point.on_front else "0.35",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6} if abs(dx) > 10 or dy > 20 else None,
        )


def curves(charts: Sequence[Chart]) -> bytes:
    """PNG of the charts side by side; colours, and beyond seven lines dashes, tell the settings apart."""
    numbers = sorted({number for chart in charts for number, _ in chart.lines})
    legend_rows = -(-len(numbers) // LEGEND_COLUMNS)
    figure = Figure(figsize=(4.3 * len(charts), 3.4 + 0.2 * legend_rows), dpi=DPI, layout="constrained")
    for axes, chart in zip(np.atleast_1d(figure.subplots(1, len(charts))), charts, strict=True):
        for number, curve in chart.lines:
            marker = "o" if len(curve.steps) <= MOST_MARKERS else ""
            style = _style(numbers.index(number))
            axes.plot(curve.steps, curve.values, marker=marker, markersize=3, linewidth=1.2, **style)
        axes.set_xlabel("step", fontsize=9)
        axes.set_ylabel(chart.label, fontsize=9, parse_math=False)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color="0.92")
    handles = [Line2D([], [], label=f"#{number}", **_style(place)) for place, number in enumerate(numbers)]
    columns = min(LEGEND_COLUMNS, len(handles))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=8, frameon=False)
    return _png(figure)


def _style(place: int) -> dict[str, Any]:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": DASHES[place // len(COLOURS) % len(DASHES)],
    }


def _key(colour: str, marker: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="", label=label)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
