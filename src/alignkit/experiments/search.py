"""A search in place of a grid: Optuna proposes settings, the mean of an objective over the seeds judges them.

Trials live in the study's storage, those that were begun included: started again, an experiment carries out what it
had begun before it asks for more. The sampler of a trial is seeded by its number, so that with one trial at a time a
search that was interrupted proposes what it would have proposed.
"""

import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, get_args

from alignkit.evaluation.results import Result
from alignkit.experiments.settings import Settings, check_setting, fitted_setting
from alignkit.spec_files import check_known, fitted_value, known_mapping, required

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "random")
Direction = Literal["maximize", "minimize"]
KEYS = ("n_trials", "sampler", "storage", "seed", "parameters", "objective")
WHERE = "where"  # user attribute of a trial: which experiment began it


@dataclass(frozen=True)
class Objective:
    """What a search looks at: the mean of a metric over the items of one set."""

    item_set: str
    metric: str
    direction: Direction

    def value(self, runs: Sequence[Sequence[Result]]) -> float | None:
        """Mean over runs, each given by its results; None if one of them lacks the objective."""
        values = [result.mean for results in runs for result in results if self.is_in(result)]
        known = [value for value in values if value is not None]
        return fmean(known) if len(known) == len(runs) else None

    def is_in(self, result: Result) -> bool:
        return (result.item_set, result.metric) == (self.item_set, self.metric)


@dataclass(frozen=True)
class SearchSettings:
    """The `search` of a specification; `ranges` hold `low`, `high`, `log`, `step`, or `choices`, by field."""

    n_trials: int
    sampler: str
    storage: str | None
    seed: int
    ranges: dict[str, dict[str, Any]]
    objective: Objective


def read_search(value: Any, base: Settings) -> SearchSettings | None:
    """Check the `search` of a specification. Both ends of every range are tried on the base settings.

    Raises:
        ValueError: names the key.
    """
    if value is None:
        return None
    given = known_mapping(value, "search", KEYS)
    required(given, ("n_trials", "parameters", "objective"), "search")
    n_trials = fitted_value(given["n_trials"], int, "search.n_trials")
    if n_trials < 1:
        raise ValueError(f"search.n_trials is {n_trials}; ask for at least 1")
    sampler = given.get("sampler", "tpe")
    if sampler not in SAMPLERS:
        raise ValueError(f"search.sampler is {sampler!r}; choose one of {', '.join(SAMPLERS)}")
    parameters = fitted_value(given["parameters"], dict, "search.parameters")
    if not parameters:
        raise ValueError("search.parameters is empty; give a field with a range")
    ranges = {key: _range(key, of_key, base) for key, of_key in parameters.items()}
    storage = given.get("storage")
    return SearchSettings(
        n_trials=n_trials,
        sampler=sampler,
        storage=None if storage is None else fitted_value(storage, str, "search.storage"),
        seed=fitted_value(given.get("seed", 0), int, "search.seed"),
        ranges=ranges,
        objective=_objective(given["objective"]),
    )


def _objective(value: Any) -> Objective:
    given = known_mapping(value, "search.objective", ("item_set", "metric", "direction"))
    required(given, ("item_set", "metric", "direction"), "search.objective")
    if given["direction"] not in get_args(Direction):
        raise ValueError(
            f"search.objective.direction is {given['direction']!r}; choose one of {', '.join(get_args(Direction))}"
        )
    return Objective(**{key: fitted_value(of_key, str, f"search.objective.{key}") for key, of_key in given.items()})


def _range(key: Any, value: Any, base: Settings) -> dict[str, Any]:
    name = f"search.parameters.{key}"
    check_setting(key, "search.parameters")
    given = known_mapping(value, name, ("low", "high", "log", "step", "choices"))
    if "choices" in given:
        for other in given:
            check_known(other, f"{name}.{other}", ["choices"])
        choices = given["choices"]
        if not isinstance(choices, list) or not choices or any(isinstance(item, list | dict) for item in choices):
            raise ValueError(f"{name}.choices is {choices!r}; give a list of plain values, at least one")
        tried = choices
    else:
        required(given, ("low", "high"), name)
        tried = [given["low"], given["high"]]
        for end, of_end in zip(("low", "high"), tried, strict=True):
            fitted_value(of_end, float, f"{name}.{end}")
        if not given["low"] < given["high"]:
            raise ValueError(f"{name} goes from {given['low']} to {given['high']}; low must be below high")
        if fitted_value(given.get("log", False), bool, f"{name}.log") and given["low"] <= 0:
            raise ValueError(f"{name}.low is {given['low']}; with log it must be above 0")
    for tried_value in tried:
        base.changed({key: tried_value}, "search.parameters").check(f"{name}={tried_value}")
    return given


@dataclass
class Trial:
    """Settings to try, and how to say what came of them."""

    settings: Settings
    study: "optuna.Study"
    number: int

    def tell(self, value: float | None) -> None:
        """The objective; None where a run failed, which the study notes as failed."""
        import optuna

        self.study.tell(self.number, value, state=optuna.trial.TrialState.FAIL if value is None else None)


class Search:
    """The study of an experiment.

    Args:
        search (`SearchSettings`): from the specification.
        name (`str`): of the study in its storage.
        base (`Settings`): what the parameters change.
        output_dir (`Path`): of the experiment; holds the study where no storage is named.

    Raises:
        ValueError: Optuna is not installed, or the settings of a trial do not fit together.
    """

    def __init__(self, search: SearchSettings, name: str, base: Settings, output_dir: Path):
        try:
            import optuna
        except ImportError as error:
            raise ValueError("search needs Optuna: pip install 'alignkit[experiments]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.search, self.base = search, base
        self.where = f"{socket.gethostname()}:{output_dir.resolve()}"
        self.study = optuna.create_study(
            storage=search.storage or f"sqlite:///{output_dir.resolve() / 'study.db'}",
            study_name=name,
            direction=search.objective.direction,
            load_if_exists=True,
        )
        self.distributions = {key: _distribution(key, given) for key, given in search.ranges.items()}

    def check_objective(self, results: Iterable[Result]) -> None:
        """Look for the objective in what the start model was measured by.

        Raises:
            ValueError: it is not there; names the item sets that are.
        """
        objective = self.search.objective
        baselines = [result for result in results if result.kind == "baseline" and result.status == "finished"]
        if baselines and not any(objective.is_in(result) for result in baselines):
            measured = sorted({f"{result.metric} of {result.item_set}" for result in baselines})
            raise ValueError(
                f"search.objective is {objective.metric} of {objective.item_set}, and the task measures "
                f"{', '.join(measured)}"
            )

    def begun(self) -> Iterator[Trial]:
        """Trials of this experiment that have no outcome yet."""
        import optuna

        for trial in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            if trial.user_attrs.get(WHERE) == self.where:
                yield Trial(self._settings(trial.params), self.study, trial.number)

    def ask(self) -> Trial | None:
        """The next settings to try; None when there are enough trials."""
        import optuna

        counted = [trial for trial in self.study.get_trials() if WHERE in trial.user_attrs]
        if len(counted) >= self.search.n_trials:
            return None
        seed = self.search.seed + len(counted)
        random = self.search.sampler == "random"
        self.study.sampler = (
            optuna.samplers.RandomSampler(seed=seed) if random else optuna.samplers.TPESampler(seed=seed)
        )
        trial = self.study.ask(self.distributions)
        trial.set_user_attr(WHERE, self.where)
        return Trial(self._settings(trial.params), self.study, trial.number)

    def _settings(self, parameters: Mapping[str, Any]) -> Settings:
        settings = self.base.changed(parameters, "search.parameters")
        settings.check(f"search.parameters {dict(parameters)}")
        return settings


def _distribution(key: str, given: dict[str, Any]) -> "optuna.distributions.BaseDistribution":
    import optuna

    if "choices" in given:
        return optuna.distributions.CategoricalDistribution(given["choices"])
    # Whole numbers become floats where the field is one.
    ends = [fitted_setting(key, given[end], "search.parameters") for end in ("low", "high")]
    if all(isinstance(end, int) for end in ends):
        return optuna.distributions.IntDistribution(**given)
    return optuna.distributions.FloatDistribution(**given)
