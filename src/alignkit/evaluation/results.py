"""Results on disk: one JSON line per run and item set, with the score of every item and all that led to it."""

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal

from alignkit.evaluation.whole_lines import append_line, finished_lines
from alignkit.provenance import device_name, git_commit, package_versions

if TYPE_CHECKING:
    import torch

START = '{"run": '  # of every line written here
CHOICES = {"kind": ("run", "baseline"), "role": ("task", "general"), "status": ("finished", "failed")}
TYPES: dict[type | tuple[type, ...], tuple[str, ...]] = {
    str: ("run", "item_set", "metric", "unit", "device", "time"),
    bool: ("higher_is_better",),
    int: ("seed",),
    dict: ("config", "decoding", "versions"),
    (dict, NoneType): ("items",),
    (list, NoneType): ("history",),
    (int, NoneType): ("n", "raters"),
    (str, NoneType): ("commit", "error"),
}
PROPORTION = "proportion"
LARGEST = 1e300  # of a score, so that the sum of any items is finite


@dataclass(frozen=True)
class ItemScores:
    """What one item set says of a model.

    Args:
        item_set, metric (`str`): such as `"tatqa_dev"` and `"exact_match"`.
        role (`str`): `"task"` for what the training is for, `"general"` for what it should leave as it is.
        higher_is_better (`bool`): False for a loss.
        items (`dict[str, float]`): score of each item by its id; the same ids for every model.
        unit (`str`): `"proportion"` for scores from 0 to 1, else the unit to show, such as `"nats"`.
    """

    item_set: str
    metric: str
    role: Literal["task", "general"]
    higher_is_better: bool
    items: dict[str, float]
    unit: str = "proportion"


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one run did on one item set.

    Args:
        run (`str`): id of the run, unique within an experiment; `baseline-seed3` for a baseline.
        kind (`str`): `"run"`, or `"baseline"` for the start model before training, once per seed and decoding.
        item_set, metric (`str`): what was measured, such as `tatqa_dev` and `exact_match`; empty for a failed run.
        role (`str`): `"task"` for what the training is for, `"general"` for what it should leave as it is.
        higher_is_better (`bool`): False for a loss.
        unit (`str`): `"proportion"` for scores from 0 to 1, which are shown in percent; else the unit to show, such as
            `"nats"`, `"points"` or the empty string.
        items (`dict[str, float]`, *optional*): score of each item by its id. Without it the record is a summary.
        mean (`float`, *optional*), n (`int`, *optional*): of the items, which need not be given where there are items.
        raters (`int`, *optional*): how many people rated each item, at least; None for scores that no person gave.
        std (`float`, *optional*): sample standard deviation over items, for a summary whose unit is no proportion.
        config (`dict`): every field of the training config, LoRA included (`"lora_r"`, ...); empty for a baseline.
        seed (`int`): of the training; of the decoding for a baseline.
        decoding (`dict`): `{"do_sample": False}` for greedy, `{"do_sample": True, "temperature": 0.2, "seed": 3}` for
            sampled answers; empty where nothing is generated.
        commit, versions, device: from [`origin`].
        wall_time_s (`float`), peak_memory_gib (`float`, *optional*): of the whole run.
        train_loss, eval_loss (`float`, *optional*): at the end of the training.
        history (`list[dict]`, *optional*): rows of `log_history` for the curves. A value that is NaN or infinite
            becomes None, which the report counts as "not a number".
        status (`str`), error (`str`, *optional*): `"failed"`, with what went wrong, for a run that crashed.
        time (`str`): UTC, ISO 8601; now by default.

    Raises:
        ValueError: names the field, its value and what it must be.
    """

    run: str
    kind: Literal["run", "baseline"] = "run"
    item_set: str
    metric: str
    role: Literal["task", "general"]
    higher_is_better: bool
    unit: str
    items: dict[str, float] | None = None
    mean: float | None = None
    n: int | None = None
    std: float | None = None
    raters: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    seed: int
    decoding: dict[str, Any] = field(default_factory=dict)
    commit: str | None
    versions: dict[str, str]
    device: str
    wall_time_s: float
    peak_memory_gib: float | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    history: list[dict[str, Any]] | None = None
    status: Literal["finished", "failed"] = "finished"
    error: str | None = None
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        for types, names in TYPES.items():
            for name in names:
                if not isinstance(getattr(self, name), types):
                    raise ValueError(f"{name} is {getattr(self, name)!r:.60}; it must be {_in_words(types)}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        for name in ("mean", "std", "wall_time_s", "peak_memory_gib", "train_loss", "eval_loss"):
            if getattr(self, name) is not None:
                _finite(name, getattr(self, name))
        for row in self.history or ():
            if not isinstance(row, Mapping):
                raise ValueError(f"history holds {row!r:.60}; it must be a list of rows of the log")
        if self.history is not None:
            object.__setattr__(self, "history", [_without_nan(row) for row in self.history])
        if self.status == "failed":
            self._check_failed()
            return
        if self.error is not None:
            raise ValueError(f"error is {self.error!r} in a run that finished; give status='failed', or no error")
        for name in ("run", "item_set", "metric"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty in a result of {self.run or 'a run'!r}; name it")
        if self.items is not None:
            self._take_items(self.items)
        elif self.mean is None or self.n is None:
            raise ValueError(f"{self.item_set} of {self.run} has neither items nor mean and n; give one of them")
        assert self.mean is not None and self.n is not None
        if self.raters is not None and self.raters < 1:
            raise ValueError(f"raters is {self.raters} in {self.item_set} of {self.run}; give None for no rater")
        if self.n < 1:
            raise ValueError(f"n is {self.n} in {self.item_set} of {self.run}; a mean is over at least one item")
        if self.unit == PROPORTION:
            scores = {"mean": self.mean} if self.items is None else self.items
            outside = next((item for item, score in scores.items() if not 0 <= score <= 1), None)
            if outside is not None:
                raise ValueError(
                    f"{outside} of {self.item_set} is {scores[outside]}, and a proportion lies from 0 to 1; divide "
                    "percent by 100, or give another unit"
                )

    def _check_failed(self) -> None:
        if not self.error:
            raise ValueError(f"{self.run} failed without an error; say in `error` what went wrong")
        if self.items is not None or self.mean is not None:
            raise ValueError(f"{self.run} failed and yet has scores; leave out items and mean")
        object.__setattr__(self, "n", 0)

    def _take_items(self, items: Mapping[str, float]) -> None:
        if not items:
            raise ValueError(f"{self.item_set} of {self.run} has no items; give at least one, or mean and n")
        for item, score in items.items():
            if not isinstance(item, str):
                raise ValueError(f"the item id {item!r} in {self.item_set} of {self.run} is no string")
            _finite(f"the score of {item!r} in {self.item_set} of {self.run}", score)
        scores = {item: float(score) for item, score in items.items()}
        mean = fmean(scores.values())
        if self.mean is not None and not math.isclose(self.mean, mean, rel_tol=1e-9, abs_tol=1e-12):
            raise ValueError(f"mean is {self.mean}, but that of the items is {mean}; leave it out")
        if self.n not in (None, len(scores)):
            raise ValueError(f"n is {self.n}, but there are {len(scores)} items; leave it out")
        for name, value in {"items": scores, "mean": mean, "n": len(scores)}.items():
            object.__setattr__(self, name, value)

    @property
    def summary(self) -> bool:
        """Whether there are no scores of items, so that the result cannot be paired."""
        return self.items is None


def failed_result(*, run: str, error: str, config: Mapping[str, Any], seed: int, **others: Any) -> Result:
    """The line of a run that crashed. `others` are fields of [`Result`]: those of [`origin`], wall_time_s, history."""
    empty: dict[str, Any] = {"item_set": "", "metric": "", "role": "task", "higher_is_better": True, "unit": ""}
    return Result(run=run, status="failed", error=error, config=dict(config), seed=seed, **empty, **others)


def origin(device: "torch.device") -> dict[str, Any]:
    """`commit`, `versions` and `device` of a [`Result`] that is measured here and now."""
    return {"commit": git_commit(), "versions": package_versions(), "device": device_name(device)}


def append_result(path: str | Path, result: Result) -> None:
    """Append one line, whole or not at all; it is on the disk when this returns. Several processes may do so at once.

    Raises:
        OSError: names the file; after a full disk the file is as it was before.
        ValueError: a config or decoding that JSON cannot hold, or a file that holds something else than results.
    """
    # Not asdict, which copies every item.
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    for name in ("config", "decoding", "versions", "history"):
        try:
            json.dumps(values[name], allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} of {result.run} is no JSON: {error}; give plain values") from error
    append_line(Path(path), json.dumps(values, ensure_ascii=False, allow_nan=False), start=START)


def read_results(paths: str | Path | Iterable[str | Path]) -> list[Result]:
    """All results of a file or of several, in the order of the lines.

    A last line without a line break that is no whole JSON is left out with a warning: its writer was killed, or is
    still writing.

    Raises:
        OSError, ValueError: a file that cannot be read, or a line that is no result; names the file, the line and
            what is wrong with it.
    """
    files = [paths] if isinstance(paths, str | Path) else [*paths]
    return [result for path in files for result in _read_file(Path(path))]


def _read_file(path: Path) -> list[Result]:
    results = []
    for number, line in enumerate(finished_lines(path), 1):
        try:
            results.append(_parse(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; correct the line or remove it") from error
    if not results:
        raise ValueError(f"{path} holds no results; give the results.jsonl of an experiment")
    return results


def _parse(line: bytes) -> Result:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is damaged ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"it holds {values!r:.40} where a JSON object should be")
    fields = {field.name: field for field in dataclasses.fields(Result)}
    for name in values:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            raise ValueError(f"unknown field {name!r}{f', did you mean {close[0]!r}?' if close else ''}")
    missing = [name for name, spec in fields.items() if name not in values and not _has_default(spec)]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return Result(**values)


def _has_default(spec: "dataclasses.Field[Any]") -> bool:
    return spec.default is not dataclasses.MISSING or spec.default_factory is not dataclasses.MISSING


def _in_words(types: type | tuple[type, ...]) -> str:
    every = types if isinstance(types, tuple) else (types,)
    return " or ".join("None" if one is NoneType else f"of type {one.__name__}" for one in every)


def _finite(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ValueError(f"{name} is {value!r:.60}; it must be a finite number, at most {LARGEST:g}")


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
