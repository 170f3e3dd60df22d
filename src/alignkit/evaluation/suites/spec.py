"""What `alignkit evaluate` is asked for: flags over a YAML file, every key checked before a model is loaded."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.evaluation.suites.suite import Suite
from alignkit.evaluation.suites.table import SUITES, build_suite, fitted_options, suite_class
from alignkit.spec_files import field_names, fitted, known_mapping, of_file_or_flag, read_spec_file, required

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja")


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """A model, suites, and how the model is asked.

    Args:
        model: a folder or a name on the hub; with `url`, the name under which the endpoint serves it.
        suite: names of suites.
        output: folder for the results.
        adapter: folder of a PEFT adapter to put on the model.
        url: of an OpenAI-compatible endpoint, such as `http://localhost:8000/v1`.
        api_key_variable: environment variable that holds the endpoint's key.
        name: of the model in reports, by default `model` and `adapter`; the same for models that differ by their
            training seed alone.
        seed: of the training, where `name` says so, and of sampled answers.
        data: folder of data, in place of `$ALIGNKIT_DATA`.
        limit: that many items of every suite.
        dtype, device: of the weights; as in the file, and the accelerator if there is one.
        batch_size: prompts at a time; at an endpoint: requests.
        chat: use the chat template; by default if there is one.
        chat_template_kwargs: for the chat template.
        max_prompt_tokens: cut longer prompts to their last tokens.
        do_sample, temperature, top_p: draw the answers; greedy by default.
        general: suites of what training should leave as it is.
        options: fields of suites, by suite.
    """

    model: str
    suite: list[str]
    output: str
    adapter: str | None = None
    url: str | None = None
    api_key_variable: str | None = None
    name: str | None = None
    seed: int = 0
    data: str | None = None
    limit: int | None = None
    dtype: str = "auto"
    device: str | None = None
    batch_size: int = 8
    chat: bool | None = None
    chat_template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    max_prompt_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    general: list[str] = dataclasses.field(default_factory=list)
    options: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.suite:
            raise ValueError(f"suite is empty; name at least one of {', '.join(SUITES)}")
        double = next((name for name in self.suite if self.suite.count(name) > 1), None)
        if double is not None:
            raise ValueError(f"the suite {double!r} is named twice; name it once")
        for name in [*self.suite, *self.general]:
            suite_class(name)
        unused = next((name for name in [*self.options, *self.general] if name not in self.suite), None)
        if unused is not None:
            raise ValueError(f"there are options of {unused!r}, which is not run; add it to suite, or remove them")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1; leave it out for all items")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be a whole number from 0 on")
        if self.url is not None:
            from alignkit.evaluation.judge.client import check_url  # here, because it loads requests

            check_url(self.url)
            local: dict[str, Any] = dict.fromkeys(("adapter", "device", "max_prompt_tokens", "chat"))
            defaults = {**local, "dtype": "auto", "chat_template_kwargs": {}}
            given = next((name for name, default in defaults.items() if getattr(self, name) != default), None)
            if given is not None:
                raise ValueError(f"{given} is for a model in this process, and url names an endpoint; leave one out")

    @property
    def run(self) -> str:
        """Name of the run: that of the model, and the seed."""
        return f"{self.config['model']}-seed{self.seed}"

    @property
    def config(self) -> dict[str, Any]:
        """The model as results describe it. `model_path` and `model_files` are no settings of a report."""
        path = self.model if self.adapter is None else f"{self.model} + {self.adapter}"
        how = {"dtype": self.dtype, "chat": self.chat, "chat_template_kwargs": self.chat_template_kwargs}
        where = {"url": self.url} if self.url is not None else how
        files = [one for one in (self.model, self.adapter) if one is not None and self.url is None]
        return {
            "model": self.name or path,
            **where,
            "max_prompt_tokens": self.max_prompt_tokens,
            "model_path": path,
            "model_files": fingerprint(files),
        }

    @property
    def decoding(self) -> dict[str, Any]:
        """How answers are drawn, without the seed."""
        if not self.do_sample:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}

    def suites(self) -> list[Suite]:
        """The suites, with `limit` where their own options have none.

        Raises:
            ValueError: names the suite, the field, and the nearest that exists.
        """
        limit = {} if self.limit is None else {"limit": self.limit}
        return [build_suite(name, {**limit, **self.options.get(name, {})}) for name in self.suite]


def read_spec(path: Path | None, given: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]]) -> EvaluationSpec:
    """A specification from a YAML file, a flag counting more than a key.

    In the file a suite's options stand under its name: `gsm8k: {max_new_tokens: 256}`. Those of suites that are not
    run are checked and left out, so that one file may serve several evaluations.

    Args:
        given: flags that were given, by field.
        options: flags of suites.

    Raises:
        ValueError: an unknown key (with the nearest), a missing one, or a value of the wrong type; names the file.
        OSError: the file cannot be read.
    """
    content = read_spec_file(path, _checked) if path is not None else {}
    values = {key: value for key, value in content.items() if key not in SUITES}
    values = {**values, **given}
    with of_file_or_flag(path):
        required(values, ("model", "suite", "output"), "an evaluation")
        merged = {name: dict(content[name] or {}) for name in values["suite"] if name in SUITES and name in content}
        for name, of_suite in options.items():
            merged[name] = {**merged.get(name, {}), **of_suite}
        return EvaluationSpec(**values, options=merged)


def _checked(content: Any) -> dict[str, Any]:
    keys = field_names(EvaluationSpec, left_out=("options",))
    top = known_mapping(content, "", [*keys, *SUITES])
    own = {key: value for key, value in top.items() if key in keys}
    if isinstance(own.get("suite"), str):
        own["suite"] = [own["suite"]]
    for name in SUITES:
        if name in top:
            fitted_options(name, top[name])
    return {**top, **{key: _as_list(value) for key, value in fitted(EvaluationSpec, own, "").items()}}


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def fingerprint(paths: list[str]) -> str | None:
    """A digest of names, sizes and times of the files of local models; None for models on the hub."""
    found = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for path in paths
        if Path(path).is_dir()
        for pattern in WEIGHT_FILES
        for file in sorted(Path(path).glob(pattern))
    ]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] if found else None
