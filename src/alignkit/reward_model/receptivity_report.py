"""How receptive is a backbone to a set of heads? Score ranges and separations of labelled groups of texts, per model.

How this differs from reading the range of a few probed texts, and why:

1. The models score the same texts, and a range is never given without the separation from the positives: scores can
   be scaled at will, AUROC and d' cannot.
2. Every mean and separation has a bootstrap interval over texts. The resamples are those of the seed and of the group
   sizes alone, so the same texts are drawn for every model, and adding a model or a group changes no other row.
3. Each head is compared on its own texts, where the groups hold texts per head.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from scipy.stats import DegenerateDataWarning, bootstrap

from alignkit.reward_model.separation import FloatArray, auroc, d_prime

if TYPE_CHECKING:
    from rich.table import Table

Group = Sequence[str] | Mapping[str, Sequence[str]]
ALL_GROUPS = "all groups"
CONFIDENCE = 0.95
COLUMNS = ["model", "head", "group", "n", "min", "max", "range", "mean", "AUROC", "d'"]
VALUES_PER_BATCH = 2_000_000  # of resampled scores held at once, 16 MB


class ScoringModel(Protocol):
    """What `receptivity` needs of a model; `RewardModel` has it."""

    @property
    def head_names(self) -> Sequence[str]: ...

    def score(self, texts: list[str], *, batch_size: int) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class ReceptivityReport:
    """Result of `receptivity`. What is undefined is None.

    Undefined are d' and every interval of one text, d' of constant scores, and the interval of d' when a resample (of
    a handful of texts) is constant.

    Attributes:
        rows (`list[dict]`): one per model, head and group, with the keys `model`, `head`, `group`, `n`, `min`, `max`,
            `range` = max - min, `mean`, `mean_low`, `mean_high`, and against the positives of the head `auroc`,
            `d_prime`, each with `_low` and `_high` (None for the positives themselves).
        overall (`list[dict]`): one per model and head over the distinct texts of all its groups, with the keys up to
            `range`.
        positives (`str`): name of the group of positives.
        n_resamples (`int`), seed (`int`): of the bootstrap.
    """

    rows: list[dict[str, Any]]
    overall: list[dict[str, Any]]
    positives: str
    n_resamples: int
    seed: int

    def table(self) -> "Table":
        """One line per row, each head closed by the line of all its groups; `[low, high]` is the 95 % interval."""
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for number, column in enumerate(COLUMNS):
            # In a narrow terminal names and intervals are folded; single numbers, which would be cut off, are not.
            single = 3 <= number < 7
            table.add_column(column, justify="left" if number < 3 else "right", no_wrap=single, overflow="fold")
        for row in self._in_order():
            table.add_row(*map(Text, _cells(row)), end_section=row["group"] == ALL_GROUPS)
        return table

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [COLUMNS, ["---"] * 3 + ["---:"] * (len(COLUMNS) - 3)]
        lines += [[cell.replace("|", "\\|") for cell in _cells(row)] for row in self._in_order()]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    def to_json(self) -> dict[str, Any]:
        """Everything in the report, as dicts, lists, strings, numbers and None."""
        return {**vars(self), "confidence": CONFIDENCE}

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw means, intervals and ranges, and below them the AUROC, models side by side."""
        from alignkit.reward_model.plots import save_receptivity

        save_receptivity(path, self.rows)

    def _in_order(self) -> Iterable[dict[str, Any]]:
        for total in self.overall:
            same = ("model", "head")
            yield from (row for row in self.rows if all(row[key] == total[key] for key in same))
            yield total


def receptivity(
    models: Mapping[str, ScoringModel],
    groups: Mapping[str, Group],
    *,
    positives: str = "positive",
    n_resamples: int = 2000,
    seed: int = 0,
    batch_size: int = 16,
) -> ReceptivityReport:
    """Compare models by the scores that they give to the same labelled groups of texts.

    Args:
        models (`Mapping`): models by name, such as [`RewardModel`]. Each reports the heads that it has; a head without
            a text in any group is left out.
        groups (`Mapping`): texts by name of the group. A list holds for every head; a mapping holds texts per head,
            such as each head's own positives. Each model scores each distinct text once.
        positives (`str`): the group from which the others are to be separated.
        n_resamples (`int`): bootstrap resamples of each 95 % percentile interval.
        seed (`int`): seed of the bootstrap.
        batch_size (`int`): texts per forward.

    Raises:
        ValueError: no model, no group of positives or none for a head that has other texts, an empty group, a group
            that is a string, a text that is no string, a head that no model has, a model without a head that has
            texts, or a score that is NaN or infinite.
    """
    _check_groups(models, groups, positives)
    rows: list[dict[str, Any]] = []
    overall: list[dict[str, Any]] = []
    for model_name, model in models.items():
        of_head = _texts_of_heads(model_name, model.head_names, groups, positives)
        score_of = _score_once(model_name, model, of_head, batch_size)
        for head, texts in of_head.items():
            column = list(model.head_names).index(head)
            scores = {group: np.array([score_of[text][column] for text in texts[group]]) for group in texts}
            for group, values in scores.items():
                against = None if group == positives else scores[positives]
                where = {"model": model_name, "head": head, "group": group}
                rows.append(where | _spread(values) | _intervals(values, against, n_resamples, seed))
            distinct = {text: score_of[text][column] for members in texts.values() for text in members}
            where = {"model": model_name, "head": head, "group": ALL_GROUPS}
            overall.append(where | _spread(np.array(list(distinct.values()))))
    return ReceptivityReport(rows, overall, positives, n_resamples, seed)


def _check_groups(models: Mapping[str, ScoringModel], groups: Mapping[str, Group], positives: str) -> None:
    if not models:
        raise ValueError("models is empty; give at least one model")
    if positives not in groups:
        raise ValueError(f"there is no group {positives!r} among {list(groups)}; name the positives with positives=")
    known = sorted({head for model in models.values() for head in model.head_names})
    for group, members in groups.items():
        per_head = members if isinstance(members, Mapping) else {None: members}
        for head, texts in per_head.items():
            where = f"group {group!r}" if head is None else f"group {group!r}, head {head!r}"
            if head is not None and head not in known:
                raise ValueError(f"{where}: no model has this head; the models have {known}")
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{where}: give a list of strings, got {texts!r:.80}")
        if not all(per_head.values()) or not per_head:
            raise ValueError(f"group {group!r} is empty, or empty for a head; give it texts or leave it out")


def _texts_of_heads(
    model_name: str, head_names: Sequence[str], groups: Mapping[str, Group], positives: str
) -> dict[str, dict[str, Sequence[str]]]:
    """Texts of each group of each head of one model; heads without any text are left out."""
    of_head: dict[str, dict[str, Sequence[str]]] = {}
    for head in head_names:
        for group, members in groups.items():
            texts = members.get(head) if isinstance(members, Mapping) else members
            if texts is not None:
                of_head.setdefault(head, {})[group] = texts
    if not of_head:
        raise ValueError(f"no group holds texts for a head of model {model_name!r}, which has {list(head_names)}")
    for head, texts_of in of_head.items():
        if positives not in texts_of:
            raise ValueError(
                f"group {positives!r} has no texts for head {head!r}, but {list(texts_of)} have; add some"
            )
    return of_head


def _score_once(
    model_name: str, model: ScoringModel, of_head: Mapping[str, Mapping[str, Sequence[str]]], batch_size: int
) -> dict[str, FloatArray]:
    """Scores `(K,)` of every distinct text, in one call of the model."""
    texts = list(dict.fromkeys(text for groups in of_head.values() for texts in groups.values() for text in texts))
    scores = model.score(texts, batch_size=batch_size).to("cpu", torch.float64).numpy()  # (n, K)
    broken = np.argwhere(~np.isfinite(scores))
    if len(broken):
        row, column = broken[0]
        raise ValueError(
            f"model {model_name!r}, head {model.head_names[column]!r} gives {scores[row, column]} to the text "
            f"{texts[row]!r:.60}; the model diverged, or its dtype is too narrow: load it in float32 or bfloat16"
        )
    return dict(zip(texts, scores, strict=True))


def _spread(values: FloatArray) -> dict[str, float]:
    low, high = float(values.min()), float(values.max())
    return {"n": len(values), "min": low, "max": high, "range": high - low}


def _intervals(
    values: FloatArray, positives: FloatArray | None, n_resamples: int, seed: int
) -> dict[str, float | None]:
    """Mean of a group, and AUROC and d' of the positives against it, each with its interval."""

    def mean(sample: FloatArray, axis: int = -1) -> FloatArray:
        return np.stack([sample.mean(axis=axis)])

    def separation(sample: FloatArray, other: FloatArray, axis: int = -1) -> FloatArray:
        return np.stack([auroc(sample, other, axis), d_prime(sample, other, axis)])

    found = _with_intervals(["mean"], mean, (values,), n_resamples, seed)
    if positives is None:
        return found | dict.fromkeys(f"{name}{end}" for name in ("auroc", "d_prime") for end in ("", "_low", "_high"))
    return found | _with_intervals(["auroc", "d_prime"], separation, (positives, values), n_resamples, seed)


def _with_intervals(
    names: list[str],
    statistic: Callable[..., FloatArray],
    samples: tuple[FloatArray, ...],
    n_resamples: int,
    seed: int,
) -> dict[str, float | None]:
    """Values of a statistic that returns `(len(names), ...)`, with percentile bootstrap intervals over the samples."""
    values = statistic(*samples)
    lows = highs = np.full(len(names), np.nan)
    if min(map(len, samples)) > 1:
        with warnings.catch_warnings():
            # Raised when a resample leaves the statistic undefined; such an interval is None.
            warnings.simplefilter("ignore", DegenerateDataWarning)
            interval = bootstrap(
                samples,
                statistic,
                n_resamples=n_resamples,
                batch=max(1, VALUES_PER_BATCH // sum(map(len, samples))),
                vectorized=True,
                confidence_level=CONFIDENCE,
                method="percentile",
                rng=np.random.default_rng(seed),
            ).confidence_interval
        lows, highs = interval.low, interval.high
    found: dict[str, float | None] = {}
    for name, *numbers in zip(names, values, lows, highs, strict=True):
        for end, number in zip(("", "_low", "_high"), numbers, strict=True):
            found[name + end] = None if np.isnan(number) else float(number)
    return found


def _cells(row: Mapping[str, Any]) -> list[str]:
    """Texts of `COLUMNS`."""
    cells = [row["model"], row["head"], row["group"], str(row["n"])]
    cells += [f"{row[name]:.3f}" for name in ("min", "max", "range")]
    for name in ("mean", "auroc", "d_prime"):
        value, low, high = (row.get(name + end) for end in ("", "_low", "_high"))
        cells.append("" if value is None else f"{value:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]"))
    return cells
