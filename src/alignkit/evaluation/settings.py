"""Runs and settings: results are gathered into runs, and runs that differ by their seed alone are one setting."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignkit.evaluation.results import Result

# Fields of a config that differ from run to run and change nothing of what is learned, and the seeds.
NOT_SETTINGS = {
    "data_seed",
    "hub_model_id",
    "logging_dir",
    "model_files",
    "model_path",
    "output_dir",
    "run_name",
    "seed",
    "trackio_space_id",
}
ABSENT = "–"


@dataclass(frozen=True)
class Run:
    """All that is known of one training.

    Attributes:
        results: its finished ones, at least one; losses, times and history are those of the first that has them.
    """

    name: str
    seed: int
    config: dict[str, Any]
    results: tuple[Result, ...]

    def first(self, field: str) -> Any:
        """The first value of a field that is not None, or None."""
        return next((value for result in self.results if (value := getattr(result, field)) is not None), None)


@dataclass(frozen=True)
class Setting:
    """Runs with one configuration but for the seed.

    Attributes:
        number: from 1, in the order of the report.
        label: its values as far as they are not the usual ones; the name of its first run if it is the only setting.
        values: its values of the fields that vary between settings.
        runs: one per seed, sorted by it.
    """

    number: int
    label: str
    values: dict[str, Any]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Experiment:
    """Results in order.

    Attributes:
        varying: fields of the config in which settings differ.
        common: those in which all are alike.
        usual: values of varying fields that more than half of the settings have, which labels leave out.
        failed: runs that crashed and did not finish later.
        replaced: `(run, item set)` of results that came more than once; the last one counts.
    """

    settings: tuple[Setting, ...]
    baselines: tuple[Result, ...]
    varying: tuple[str, ...]
    common: dict[str, Any]
    usual: dict[str, Any]
    failed: tuple[Result, ...]
    replaced: tuple[tuple[str, str], ...]


def gather(results: Iterable[Result]) -> Experiment:
    """Results to runs, runs to settings.

    Raises:
        ValueError: one run with two configurations or seeds, or two runs of one setting with the same seed.
    """
    last: dict[tuple[str, ...], Result] = {}
    failed: dict[str, Result] = {}
    replaced = []
    for result in results:
        if result.status == "failed":
            failed[result.run] = result
            continue
        failed.pop(result.run, None)
        key = (result.kind, result.run, result.item_set, result.metric, canonical(result.decoding))
        if key in last:
            replaced.append((result.run, result.item_set))
        last[key] = result
    baselines = tuple(result for result in last.values() if result.kind == "baseline")
    runs = _runs([result for result in last.values() if result.kind == "run"])
    names = dict.fromkeys(name for run in runs for name in run.config if name not in NOT_SETTINGS)
    varying = tuple(name for name in names if len({canonical(run.config.get(name)) for run in runs}) > 1)
    common = {name: runs[0].config.get(name) for name in names if name not in varying}
    groups = _groups(runs, varying)
    usual = {name: value for name in varying for value in _usual([group[0].config.get(name) for group in groups])}
    settings = tuple(_setting(number, group, varying, usual) for number, group in enumerate(groups, 1))
    crashed, twice = tuple(failed.values()), tuple(dict.fromkeys(replaced))
    return Experiment(settings, baselines, varying, common, usual, crashed, twice)


def with_baseline(results: Iterable[Result], name: str) -> list[Result]:
    """The results with those of one model as baselines: of a run of that name, or whose config has it as `model`.

    Raises:
        ValueError: there is no such run; names the nearest.
    """
    results = list(results)
    names = {result.run: {result.run, result.config.get("model")} for result in results}
    if not any(name in known for known in names.values()):
        known = sorted({str(one) for of_run in names.values() for one in of_run if one})
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ValueError(f"no run or model is called {name!r}; the nearest is {nearest[0]!r}")
    return [
        replace(result, kind="baseline") if name in names[result.run] and result.status == "finished" else result
        for result in results
    ]


def _runs(results: Sequence[Result]) -> list[Run]:
    runs = []
    for name in dict.fromkeys(result.run for result in results):
        own = [result for result in results if result.run == name]
        first = own[0]
        for other in own[1:]:
            if (canonical(other.config), other.seed) != (canonical(first.config), first.seed):
                names = differing(first.config, other.config) or ["seed"]
                raise ValueError(
                    f"the run {name!r} has two configurations, which differ in {', '.join(names)}; every run "
                    "needs a name of its own"
                )
        runs.append(Run(name, first.seed, first.config, tuple(own)))
    return runs


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names under which the two hold different values; what one lacks is None."""
    return sorted(name for name in a.keys() | b.keys() if canonical(a.get(name)) != canonical(b.get(name)))


def _groups(runs: Sequence[Run], varying: Sequence[str]) -> list[list[Run]]:
    """Runs of one setting each, in the order of the settings."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(canonical([run.config.get(name) for name in varying]), []).append(run)
    return sorted(groups.values(), key=lambda group: [sort_key(group[0].config.get(name)) for name in varying])


def _usual(values: Sequence[Any]) -> list[Any]:
    """The value that more than half of the settings have, if there is one."""
    texts = [canonical(value) for value in values]
    return [values[place] for place, text in enumerate(texts) if 2 * texts.count(text) > len(texts)][:1]


def _setting(number: int, group: Sequence[Run], varying: Sequence[str], usual: Mapping[str, Any]) -> Setting:
    by_seed = {run.seed: run for run in group}
    if len(by_seed) < len(group):
        names = ", ".join(repr(run.name) for run in group)
        raise ValueError(f"the runs {names} share a setting, and some a seed; give each its own, or remove one")
    values = {name: group[0].config.get(name) for name in varying}
    runs = tuple(by_seed[seed] for seed in sorted(by_seed))
    label = describe(values, usual) if varying else runs[0].name
    return Setting(number, label, values, runs)


def canonical(value: Any) -> str:
    """One text for equal values; 1 and 1.0 are equal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)


def sort_key(value: Any) -> tuple[int, float, str]:
    """Orders what a field may hold: nothing, numbers, then everything else by its text."""
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, int | float):
        return 1, float(value), ""
    return 2, 0.0, canonical(value)


def show(value: Any) -> str:
    """A value of a config as a reader wants it: `5e-06`, `q_proj v_proj`, `–` for None."""
    if value is None:
        return ABSENT
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return " ".join(map(show, value)) or "none"
    return str(value)


def describe(values: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """`beta 0.02, lora_r 16`, without the fields that hold nothing or what is usual."""
    unusual = {
        name: value
        for name, value in values.items()
        if value is not None and not (name in usual and canonical(usual[name]) == canonical(value))
    }
    return ", ".join(f"{name} {show(value)}" for name, value in unusual.items()) or "usual values"
