"""Table, verdicts and picture of a comparison of methods over seeds; see es_comparison.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student_t

Records = Sequence[dict[str, Any]]
LABELS = {
    "B": "ES, B",
    "both": "ES, A and B",
    "random": "random search",
    "prior": "prior update",
    "grpo": "GRPO",
}
COLOURS = dict(zip(LABELS, ("#0072B2", "#56B4E9", "#E69F00", "0.35", "#D55E00"), strict=True))
MARKERS = dict(zip(LABELS, "os^Dv", strict=True))
_AGAINST = {"B": ("both", "random", "prior", "grpo"), "both": ("random", "prior", "grpo")}
SHOWN = {"greedy": "greedy", "sampled": "sampled (T = 1)"}


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % t-interval of a mean over seeds; NaN for one seed."""
    n = len(values)
    return float(student_t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


def interval(values: Sequence[float], *, sign: str = "") -> str:
    """Mean ± half width."""
    mean = f"{np.mean(values):{sign}.3f}"
    return f"{mean} ± {half_width(values):.3f}" if len(values) > 1 else mean


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, "", ""])


def report(records: Records) -> str:
    """Held-out rewards before and after, each method against ES, what a completion costs, and what is written."""
    runs = _by_arm(records)
    rows = []
    for arm, of_seeds in runs.items():
        ends = [record["rows"][-1] for record in of_seeds]
        starts = [record["rows"][0] for record in of_seeds]
        gains = [end["greedy"] - start["greedy"] for start, end in zip(starts, ends, strict=True)]
        costs = [
            f"{1000 * np.mean([end[name] / end['completions'] for end in ends]):.1f}"
            for name in ("cpu_seconds", "seconds")
        ]
        cells = [interval([end[name] for end in ends]) for name in SHOWN]
        seeds = str(len(of_seeds))
        rows.append([LABELS[arm], seeds, str(ends[0]["completions"]), *cells, interval(gains, sign="+"), *costs])
    start = next(iter(runs.values()))[0]["rows"][0]
    text = f"Untrained: greedy {start['greedy']:.3f}, sampled {start['sampled']:.3f}. "
    text += "Mean ± 95 % t-interval over seeds.\n\n"
    gain, cost = "gain, greedy", ("CPU ms / completion", "wall ms / completion")
    text += table(["method", "seeds", "completions", *SHOWN.values(), gain, *cost], rows)
    text += _verdicts(runs)
    samples = [[LABELS[arm], f"“{' '.join(of_seeds[0]['texts'][0].split())}”"] for arm, of_seeds in runs.items()]
    return text + "Greedy, on the first held-out prompt, first seed:\n\n" + table(["method", "goes on"], samples)


def _verdicts(runs: dict[str, Records]) -> str:
    """Each form of ES against the other methods, paired by seed."""
    lines = []
    for ours, others in _AGAINST.items():
        for other in (arm for arm in others if {ours, arm} <= runs.keys()):
            ends = [{record["seed"]: record["rows"][-1] for record in runs[arm]} for arm in (ours, other)]
            common = sorted(ends[0].keys() & ends[1].keys())
            for name in SHOWN:
                differences = [ends[0][seed][name] - ends[1][seed][name] for seed in common]
                mean, half = np.mean(differences), half_width(differences)
                verdict = "no clear difference" if not abs(mean) > half else "better" if mean > 0 else "worse"
                cells = [LABELS[ours], LABELS[other], str(len(common)), SHOWN[name], interval(differences, sign="+")]
                lines.append([*cells, f"**{verdict}**"])
    if not lines:
        return ""
    header = ["method", "against", "seeds", "decoding", "difference", "the method is"]
    return "Differences at the end, paired by seed:\n\n" + table(header, lines)


def tuning_table(records: Records) -> str:
    """Every setting of every method, the best greedy reward of a method first."""
    rows = sorted(records, key=lambda record: (list(LABELS).index(record["arm"]), -record["rows"][-1]["greedy"]))
    cells = [
        [
            LABELS[record["arm"]],
            ", ".join(f"{key} {value}" for key, value in record["settings"].items()),
            *(f"{record['rows'][-1][name]:.3f}" for name in SHOWN),
        ]
        for record in rows
    ]
    return table(["method", "settings", *SHOWN.values()], cells)


def picture(path: Path, records: Records) -> None:
    """Held-out reward by completions: mean and 95 % t-interval over seeds."""
    figure = Figure(figsize=(11, 4.5), dpi=130, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (name, label) in zip(panels, SHOWN.items(), strict=True):
        for arm, of_seeds in _by_arm(records).items():
            values = np.array([[row[name] for row in record["rows"]] for record in of_seeds])
            at = [row["completions"] for row in of_seeds[0]["rows"]]
            mean, half = values.mean(0), np.array([half_width(column) for column in values.T])
            panel.plot(at, mean, color=COLOURS[arm], marker=MARKERS[arm], markersize=5, label=LABELS[arm])
            panel.fill_between(at, mean - half, mean + half, color=COLOURS[arm], alpha=0.15, linewidth=0)
        panel.set(xlabel="completions in training", title=f"held-out prompts, {label}")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("reward")
    panels[0].legend(frameon=False)
    figure.savefig(path)


def _by_arm(records: Records) -> dict[str, Records]:
    """In the order of seeds."""
    arms = dict.fromkeys(record["arm"] for record in records)
    return {arm: sorted((r for r in records if r["arm"] == arm), key=lambda r: r["seed"]) for arm in arms}
