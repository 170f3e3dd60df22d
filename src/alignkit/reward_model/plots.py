"""Pictures of a reward model. The one file here that loads matplotlib; the callers import it when they draw.

Figures are made without pyplot, so that no window system and no global state is involved.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D

DPI = 150
FONT = "DejaVu Sans"  # ships with matplotlib
DIVERGING = "PuOr"  # told apart in every common form of colour blindness
TOKENS_PER_LINE = 50
LONGEST_LABEL = 14  # characters
# Inches.
CELL, LEFT, RIGHT, TOP, COLOUR_BAR, TITLE, TOKEN_LABELS = 0.2, 1.3, 0.3, 0.7, 2.4, 0.3, 0.9


def save_heatmap(
    path: str | PathLike[str], tokens: Sequence[str], head_names: Sequence[str], scores: npt.NDArray[np.float64]
) -> None:
    """Scores `(T, K)` as colours: heads down, tokens across, in lines of `TOKENS_PER_LINE` as text is read.

    Colours are centred on 0 and reach to the 99th percentile of |score|; what lies beyond has the end colour, which
    the pointed ends of the colour bar say.
    """
    n_tokens, n_heads = scores.shape
    starts = range(0, n_tokens, TOKENS_PER_LINE)
    line_height = TITLE + CELL * n_heads + TOKEN_LABELS
    width = LEFT + max(CELL * min(n_tokens, TOKENS_PER_LINE), COLOUR_BAR) + RIGHT
    height = TOP + len(starts) * line_height
    limit = float(np.percentile(np.abs(scores), 99)) or 1.0
    colours = ScalarMappable(Normalize(-limit, limit), DIVERGING)
    figure = Figure(figsize=(width, height), dpi=DPI)

    def add_axes(x: float, y: float, wide: float, high: float) -> Axes:
        """Axes placed in inches from the left and from the top: cells keep their size however long the text is."""
        return figure.add_axes((x / width, 1 - (y + high) / height, wide / width, high / height))

    beyond = "both" if np.abs(scores).max() > limit else "neither"
    bar = add_axes(LEFT, 0.32, COLOUR_BAR, 0.12)
    figure.colorbar(colours, cax=bar, orientation="horizontal", extend=beyond).ax.tick_params(labelsize=7)
    bar.set_title("score", loc="left", fontsize=8)
    for number, start in enumerate(starts):
        line = slice(start, start + TOKENS_PER_LINE)
        top = TOP + number * line_height + TITLE
        panel = add_axes(LEFT, top, CELL * len(tokens[line]), CELL * n_heads)
        panel.imshow(colours.to_rgba(scores[line].T), aspect="auto", interpolation="nearest")
        _label_heatmap(panel, start, [drawable(token) for token in tokens[line]], head_names)
    figure.savefig(path)


def _label_heatmap(panel: Axes, start: int, tokens: list[str], head_names: Sequence[str]) -> None:
    panel.set_title(f"tokens {start} to {start + len(tokens) - 1}", loc="left", fontsize=8, color="0.35")
    panel.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7, parse_math=False)
    panel.set_yticks(range(len(head_names)), [drawable(name, 20) for name in head_names], fontsize=8, parse_math=False)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def drawable(text: str, longest: int = LONGEST_LABEL) -> str:
    """`text` cut to `longest` characters, with a box for every character that the font of the figures lacks."""
    shapes = get_font(findfont(FONT)).get_charmap()
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(c if ord(c) in shapes else "□" for c in cut)


def save_receptivity(path: str | PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Points with 95 % intervals from the `rows` of a `ReceptivityReport`: models across, heads down, groups dodged.

    Above: mean score, its interval (thick) and the range (thin), on one scale for all models. Below, where a group can
    be compared with the positives: AUROC.
    """
    models, heads, groups = (list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "head", "group"))
    charts = [("mean", "score: mean, 95 % interval (thick), range (thin)")]
    if any(row["auroc"] is not None for row in rows):
        charts.append(("auroc", "AUROC of positives against group, 95 % interval"))
    head_height = 0.25 + 0.15 * len(groups)
    size = (1.2 + 3.6 * len(models), 0.6 + len(charts) * (0.9 + head_height * len(heads)))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(len(charts), len(models), squeeze=False, sharex="row", sharey=True)
    for (value, label), line in zip(charts, panels, strict=True):
        for model, panel in zip(models, line, strict=True):
            panel.set_title(drawable(model, 40), fontsize=9, parse_math=False)
            panel.set_xlabel(label, fontsize=8)
            panel.set_yticks(range(len(heads)), [drawable(head, 20) for head in heads], parse_math=False)
            panel.set_ylim(len(heads) - 0.5, -0.5)
            panel.tick_params(labelsize=8)
            panel.grid(axis="x", color="0.9")
            for row in rows:
                if row["model"] == model and row[value] is not None:
                    _draw_interval(panel, row, value, heads.index(row["head"]), groups)
    if len(charts) == 2:
        for panel in panels[1]:
            panel.axvline(0.5, color="0.5", linewidth=0.8, linestyle=":")
    handles = [
        Line2D([], [], color=_colour(n), marker=_marker(n), linestyle="", label=drawable(group, 40))
        for n, group in enumerate(groups)
    ]
    legend = figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path)


def _draw_interval(panel: Axes, row: Mapping[str, Any], value: str, line: int, groups: list[str]) -> None:
    number = groups.index(row["group"])
    y = line + 0.8 * ((number + 0.5) / len(groups) - 0.5)
    colour = _colour(number)
    bars = [] if value != "mean" else [(row["min"], row["max"], 0.8)]
    if row[f"{value}_low"] is not None:
        bars.append((row[f"{value}_low"], row[f"{value}_high"], 2.5))
    for low, high, width in bars:
        panel.plot([low, high], [y, y], color=colour, linewidth=width, solid_capstyle="butt")
    marker = _marker(number)
    panel.plot(row[value], y, color=colour, marker=marker, markersize=6, markeredgecolor="white", markeredgewidth=0.6)


def _colour(number: int) -> str:
    """Colours of Okabe and Ito, told apart in every common form of colour blindness."""
    return ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"][number % 7]


def _marker(number: int) -> str:
    return "osD^vPX*"[number % 8]
