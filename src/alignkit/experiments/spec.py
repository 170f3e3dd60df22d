"""A YAML file that describes an experiment, checked key by key before anything runs."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import GenerationConfig

from alignkit.experiments.launch import PLACES, LaunchSettings, read_launch
from alignkit.experiments.search import SearchSettings, read_search
from alignkit.experiments.settings import (
    LORA_KEYS,
    TRAINING_KEYS,
    Settings,
    check_setting,
    grid_points,
    identity,
    not_default,
)
from alignkit.spec_files import fitted, fitted_value, known_mapping, read_spec_file, required

REQUIRED = ("name", "output_dir", "method", "task", "model")
OPTIONAL = (
    *("training", "lora", "seeds", "grid", "arms", "search", "decoding", "baselines", "processes", "keep_models"),
    "launch",
)
METHODS = ("dpo",)


@dataclass(frozen=True)
class Job:
    """One process: a training with its evaluation, or the evaluation of the start model.

    Args:
        run: the id, which follows from everything below and from the experiment's model and task.
        kind: `"run"` or `"baseline"`.
    """

    run: str
    kind: str
    settings: Settings
    seed: int
    decoding: dict[str, Any]


@dataclass(frozen=True)
class ExperimentSpec:
    """A specification that was read. `settings` are those of the grid and the arms; a search makes its own."""

    name: str
    output_dir: Path
    method: str
    task: str
    model: str
    base: Settings
    settings: list[Settings]
    seeds: list[int]
    decoding: dict[str, Any]
    baseline_decodings: list[dict[str, Any]]
    baseline_seeds: list[int]
    search: SearchSettings | None = None
    launch: LaunchSettings | None = None
    processes: int = 1
    keep_models: bool = False
    started_with: dict[str, Any] = field(default_factory=dict)  # by `started_by`

    def started_by(self, *, launch: bool) -> "ExperimentSpec":
        """The same for one of the two commands: several processes for one run give other numbers, and other ids."""
        accelerate = self.launch.accelerate if launch and self.launch is not None else {}
        counts = {key: value for key, value in accelerate.items() if key not in PLACES}
        return replace(self, started_with={"accelerate": counts} if counts else {})

    def job(self, settings: Settings, seed: int) -> Job:
        """A training with these settings."""
        parts = {"training": settings.training, "lora": settings.lora, "decoding": self.decoding, **self.started_with}
        return Job(f"{self._identity(parts)}-seed{seed}", "run", settings, seed, self.decoding)

    def jobs_of(self, settings: Settings) -> list[Job]:
        """One for each seed."""
        return [self.job(settings, seed) for seed in self.seeds]

    def baselines(self) -> list[Job]:
        """One evaluation of the start model for each seed and decoding."""
        # Of the settings only what changes how the model is loaded.
        parts = {key: self.base.training.get(key) for key in ("model_init_kwargs", "low_memory")}
        return [
            Job(
                f"baseline-{self._identity({**parts, 'decoding': decoding})}-seed{seed}",
                *("baseline", self.base, seed, decoding),
            )
            for decoding in self.baseline_decodings
            for seed in self.baseline_seeds
        ]

    def _identity(self, parts: dict[str, Any]) -> str:
        return identity({"method": self.method, "task": self.task, "model": self.model, **parts})


def read_experiment(path: Path) -> ExperimentSpec:
    """Read and check a specification.

    Raises:
        ValueError: no YAML mapping, an unknown key (with the nearest valid one), a missing or repeated one, settings
            that are asked for twice, or a value that does not fit; the message names the file and the key.
        OSError: the file cannot be read.
    """
    return read_spec_file(path, _build)


def _build(content: Any) -> ExperimentSpec:
    top = known_mapping(content, "", (*REQUIRED, *OPTIONAL))
    required(top, REQUIRED, "an experiment")
    for key in REQUIRED:
        fitted_value(top[key], str, key)
    if top["method"] not in METHODS:
        raise ValueError(f"method is {top['method']!r}; choose one of {', '.join(METHODS)}")
    training = known_mapping(top.get("training"), "training", TRAINING_KEYS)
    base = Settings({}).changed(training, "training")
    if top.get("lora") is not None:
        lora = fitted(LoraConfig, known_mapping(top["lora"], "lora", LORA_KEYS), "lora")
        base = Settings(base.training, not_default(LoraConfig, lora))
    decoding = _decoding(top.get("decoding", {"do_sample": False}), "decoding")
    seeds = _seeds(top.get("seeds", [0]), "seeds")
    baselines = known_mapping(top.get("baselines"), "baselines", ("decodings", "seeds"))
    sampled = decoding.get("do_sample", False)
    processes = fitted_value(top.get("processes", 1), int, "processes")
    if processes < 1:
        raise ValueError(f"processes is {processes}; give at least 1")
    return ExperimentSpec(
        **{key: top[key] for key in ("name", "method", "task", "model")},
        output_dir=Path(top["output_dir"]),
        base=base,
        settings=_all_settings(top, base),
        seeds=seeds,
        decoding=decoding,
        baseline_decodings=_decodings(baselines.get("decodings", [decoding])),
        # Greedy answers are the same for every seed.
        baseline_seeds=_seeds(baselines.get("seeds", seeds if sampled else seeds[:1]), "baselines.seeds"),
        search=read_search(top.get("search"), base),
        launch=read_launch(top.get("launch")),
        processes=processes,
        keep_models=fitted_value(top.get("keep_models", False), bool, "keep_models"),
    )


def _all_settings(top: dict[str, Any], base: Settings) -> list[Settings]:
    """Those of the grid, then those of the arms, each checked; the base alone where there is neither."""
    if top.get("search") is not None:
        both = next((key for key in ("grid", "arms") if key in top), None)
        if both is not None:
            raise ValueError(f"search and {both} are both given; a search chooses the settings: remove one of them")
        return []
    points = grid_points(_grid(top["grid"])) if "grid" in top else []
    named = {f"grid point {point}": base.changed(point, "grid") for point in points}
    arms = fitted_value(top.get("arms", []), list, "arms")
    if "arms" in top and not arms:
        raise ValueError("arms is empty; list settings, or leave it out")
    for number, arm in enumerate(arms):
        where = f"arms[{number}]"
        named[f"{where} {arm}"] = base.changed(known_mapping(arm, where, _checked_keys(arm, where)), where)
    named = named or {"training": base}
    seen: dict[str, str] = {}
    for name, settings in named.items():
        settings.check(name)
        key = identity({"training": settings.training, "lora": settings.lora})
        if key in seen:
            raise ValueError(f"{name} gives the same settings as {seen[key]}; remove one of them")
        seen[key] = name
    return list(named.values())


def _grid(value: Any) -> dict[str, list[Any]]:
    grid = known_mapping(value, "grid", _checked_keys(value, "grid"))
    if not grid:
        raise ValueError("grid is empty; give a field with a list of values, or leave it out")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid.{key} is {values!r}; give a list of values, at least one")
        double = [value for place, value in enumerate(values) if value in values[:place]]
        if double:
            raise ValueError(f"grid.{key} lists {double[0]!r} twice; remove one of them")
    return grid


def _checked_keys(value: Any, where: str) -> Collection[str]:
    """All keys of a mapping of settings, after each was found to be one."""
    if not isinstance(value, dict):
        return ()
    for key in value:
        check_setting(key, where)
    return value.keys()


def _seeds(value: Any, name: str) -> list[int]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is {value!r}; give a list of whole numbers, at least one")
    for seed in value:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"{name} holds {seed!r}; seeds are whole numbers from 0 on")
        if value.count(seed) > 1:
            raise ValueError(f"{name} holds {seed} twice; remove one of them")
    return value


def _decodings(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"baselines.decodings is {value!r}; give a list of decodings, at least one")
    decodings = [_decoding(item, f"baselines.decodings[{number}]") for number, item in enumerate(value)]
    double = next((item for place, item in enumerate(decodings) if item in decodings[:place]), None)
    if double is not None:
        raise ValueError(f"baselines.decodings lists {double} twice; remove one of them")
    return decodings


def _decoding(value: Any, name: str) -> dict[str, Any]:
    known = [key for key in vars(GenerationConfig()) if not key.startswith("_")]
    decoding = known_mapping(value, name, known)
    fitted_value(decoding.get("do_sample", False), bool, f"{name}.do_sample")
    identity(decoding)
    return decoding
