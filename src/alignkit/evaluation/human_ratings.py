"""Filled rating sheets: what raters gave, how far they agree, and results that `alignkit report` compares."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from alignkit.evaluation.agreement import Alpha, krippendorff_alpha
from alignkit.evaluation.human_sheets import PREFIX, ROW, Scale
from alignkit.evaluation.results import Result
from alignkit.provenance import git_commit, package_versions
from alignkit.storage import read_json

DELIMITERS = (",", ";", "\t")
ITEM_SET = "human_ratings"


@dataclass(frozen=True)
class Ratings:
    """What raters gave.

    Attributes:
        raters: names, from the names of the sheets.
        units: (item, system) of each rated answer.
        scales: what they were asked.
        values: by scale, (raters, units), NaN where a cell is empty.
        seed: of the sheets.
    """

    raters: tuple[str, ...]
    units: tuple[tuple[str, str], ...]
    scales: tuple[Scale, ...]
    values: dict[str, npt.NDArray[np.float64]]
    seed: int

    @property
    def n_items(self) -> int:
        return len({item for item, _ in self.units})

    @property
    def n_empty(self) -> int:
        """Empty cells."""
        return sum(int(np.isnan(values).sum()) for values in self.values.values())


def read_ratings(sheets: Sequence[Path], key: Path) -> Ratings:
    """Filled sheets, CSV as spreadsheets save it: separated by commas, semicolons or tabs, columns in any order.

    Raises:
        ValueError: a sheet without a column or a row, with a row that the key does not have or has twice, or a cell
            that is no whole number of its scale; names file, row and column. A key that is none.
        OSError: a file that cannot be read.
    """
    scales, rows, seed = _read_key(key)
    raters = [sheet.stem.removeprefix(PREFIX) for sheet in sheets]
    if not sheets or len(set(raters)) < len(raters):
        raise ValueError(f"the sheets are of {raters}; give at least one, of each rater one")
    by_rater = [_read_sheet(sheet, [*rows], scales) for sheet in sheets]
    return Ratings(
        tuple(raters),
        tuple(rows.values()),
        scales,
        {scale.name: np.array([[given[row][scale.name] for row in rows] for given in by_rater]) for scale in scales},
        seed,
    )


def agreement(ratings: Ratings, scale: str, *, n_resamples: int = 1_000, seed: int = 0) -> Alpha:
    """Krippendorff's alpha on one scale, by its level; the interval draws items, with the answers of all systems.

    Raises:
        ValueError: no such scale, or ratings without an alpha, see
            [`alignkit.evaluation.agreement.krippendorff_alpha`].
        ImportError: names the extra that brings krippendorff.
    """
    level = _scale(ratings, scale).level
    clusters = [item for item, _ in ratings.units]
    return krippendorff_alpha(ratings.values[scale], level, clusters=clusters, n_resamples=n_resamples, seed=seed)


def rating_results(ratings: Ratings, *, baseline: str | None = None) -> list[Result]:
    """One result for each system and scale, whose items are the means over raters.

    A scale of level `"nominal"` has no mean and gives none.

    Args:
        baseline: the system that the others are compared with.

    Raises:
        ValueError: a baseline that was not rated, or an answer that nobody rated.
    """
    systems = list(dict.fromkeys(system for _, system in sorted(ratings.units)))
    if baseline is not None and baseline not in systems:
        raise ValueError(f"baseline is {baseline!r}, which was not rated; choose one of {', '.join(systems)}")
    origin: dict[str, Any] = {"commit": git_commit(), "versions": package_versions()}
    results = []
    for scale in ratings.scales:
        if scale.level == "nominal":
            continue
        means, counts = _means(ratings, scale.name)
        for system in systems:
            of_system = {item: means[item, system] for item, one in ratings.units if one == system}
            results.append(
                Result(
                    run=system,
                    kind="baseline" if system == baseline else "run",
                    item_set=ITEM_SET,
                    metric=scale.name,
                    role="task",
                    higher_is_better=True,
                    unit="points",
                    items=dict(sorted(of_system.items())),
                    config={} if system == baseline else {"system": system},
                    seed=ratings.seed,
                    raters=min(counts[item, system] for item in of_system),
                    device="people",
                    wall_time_s=0.0,  # people's time is not measured
                    **origin,
                )
            )
    return results


def _means(ratings: Ratings, scale: str) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], int]]:
    """Mean and number of the ratings of each unit."""
    means, counts = {}, {}
    for place, unit in enumerate(ratings.units):
        given = [value for value in ratings.values[scale][:, place].tolist() if not math.isnan(value)]
        if not given:
            raise ValueError(f"nobody rated {scale} of the answer of {unit[1]!r} to {unit[0]!r}; have it rated")
        means[unit], counts[unit] = fmean(given), len(given)
    return means, counts


def _scale(ratings: Ratings, name: str) -> Scale:
    found = next((scale for scale in ratings.scales if scale.name == name), None)
    if found is None:
        raise ValueError(f"there is no scale {name!r}; there are {', '.join(scale.name for scale in ratings.scales)}")
    return found


def _read_key(path: Path) -> tuple[tuple[Scale, ...], dict[str, tuple[str, str]], int]:
    value = read_json(path)
    try:
        rows = {row: (unit["item"], unit["system"]) for row, unit in value["rows"].items()}
        return tuple(Scale(**scale) for scale in value["scales"]), rows, value["seed"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is no key of rating sheets ({error!r}); give the one that was written with them"
        ) from error


def _read_sheet(path: Path, rows: Sequence[str], scales: Sequence[Scale]) -> dict[str, dict[str, float]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 at byte {error.start}; save the sheet as CSV UTF-8") from error
    header = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=header.count)
    # read_text made every line break a \n, also those within cells.
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    longest = csv.field_size_limit(len(text) + 1)  # an answer may be longer than what csv takes by itself
    try:
        columns = [*(reader.fieldnames or [])]
        numbered = [(reader.line_num, cells) for cells in reader]
    finally:
        csv.field_size_limit(longest)
    for name in (ROW, *(scale.name for scale in scales)):
        if columns.count(name) != 1:
            raise ValueError(f"{path} has {columns.count(name)} columns {name!r}; it must have one")
    found: dict[str, dict[str, float]] = {}
    for line, cells in numbered:
        row = (cells[ROW] or "").strip()
        if row not in rows or row in found:
            what = "is there twice" if row in found else "is not in the key"
            raise ValueError(f"{path}, line {line}: the row {row!r} {what}; correct the column {ROW!r}")
        found[row] = {scale.name: _rating(cells, scale, f"{path}, row {row}, column {scale.name}") for scale in scales}
    missing = [row for row in rows if row not in found]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} rows such as {missing[0]}; leave cells empty, but keep the rows"
        )
    return found


def _rating(cells: Mapping[str, str | None], scale: Scale, where: str) -> float:
    text = (cells[scale.name] or "").strip()
    if not text:
        return math.nan
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = math.nan
    if not value.is_integer() or not scale.lowest <= value <= scale.highest:
        raise ValueError(f"{where}: {text!r} is no whole number from {scale.lowest} to {scale.highest}")
    return value
