"""A YAML file that describes a run of rounds, checked key by key before any model is loaded."""

import dataclasses
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from peft import LoraConfig

from alignkit.kl_barrier.config import KLBarrierConfig
from alignkit.kl_barrier.rounds.coherence import AnswerProbe
from alignkit.kl_barrier.rounds.filters import FilterSettings
from alignkit.kl_barrier.rounds.settings import RoundProbes, TraitProbe
from alignkit.kl_barrier.rounds.steering import ActivationSteering

REQUIRED = ("model", "output_dir", "personas", "contexts", "prompts", "probes")
OPTIONAL = ("seed", "rounds", "coherence_floor", "steering", "filters", "lora", "training")
SET_ELSEWHERE = {
    ActivationSteering: {"positive", "negative", "contexts", "prompts", "filters", "original"},
    FilterSettings: {"predicates"},
    KLBarrierConfig: {"output_dir", "seed", "data_seed", "ref_cache_dir"},
}
LORA_KEYS = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 5e-5 as a string; this loader reads it as the number that is meant."""


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


@dataclass(frozen=True)
class RoundsSpec:
    """The arguments of `run_rounds` but for the tokenizer, which is the model's own."""

    model: str
    output_dir: str
    training: KLBarrierConfig
    peft_config: LoraConfig
    proposer: ActivationSteering
    filters: FilterSettings
    probes: RoundProbes
    options: dict[str, Any]  # those of rounds, coherence_floor and seed that were given


def read_spec(
    path: Path, *, output_dir: str | None = None, rounds: int | None = None, on_cpu: bool = False
) -> RoundsSpec:
    """Read and check a specification; the arguments replace what the file says.

    Args:
        path: a YAML file with the keys of `REQUIRED` and `OPTIONAL`. Lists of texts may be the name of a text file
            beside it, with one text a line.
        on_cpu: train on the CPU, in float32 unless the file says otherwise.

    Raises:
        ValueError: no YAML mapping, an unknown key (with the nearest valid one), a missing one, or a value that does
            not fit; the message names the file and the key.
        OSError: a file cannot be read.
    """
    try:
        spec = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    try:
        return _build(spec, path.parent, output_dir, rounds, on_cpu)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _build(spec: Any, folder: Path, output_dir: str | None, rounds: int | None, on_cpu: bool) -> RoundsSpec:
    given = {"output_dir": output_dir, "rounds": rounds}
    top = {**_mapping(spec, "", (*REQUIRED, *OPTIONAL)), **{k: v for k, v in given.items() if v is not None}}
    missing = [key for key in REQUIRED if top.get(key) is None]
    if missing:
        raise ValueError(f"{missing[0]} is missing; a run of rounds needs {', '.join(REQUIRED)}")
    for key in ("model", "output_dir"):
        if not isinstance(top[key], str):
            raise ValueError(f"{key} is {top[key]!r}; it must be a text")
    options: dict[str, Any] = {key: top[key] for key in ("seed", "rounds", "coherence_floor") if key in top}
    for key, value in options.items():
        _check_number(key, value, whole=key != "coherence_floor")
    filters = _settings(FilterSettings, top.get("filters"), "filters")
    personas = _mapping(top["personas"], "personas", ("positive", "negative"))
    proposer = _settings(
        ActivationSteering,
        top.get("steering"),
        "steering",
        filters=filters,
        contexts=_texts(top["contexts"], "contexts", folder),
        prompts=_texts(top["prompts"], "prompts", folder),
        **{side: _persona(personas.get(side), side) for side in ("positive", "negative")},
    )
    lora = _mapping(top.get("lora"), "lora", LORA_KEYS)
    _check_kinds(LoraConfig, lora, "lora")
    # transformers would load the weights in the type that they were saved in.
    cpu = {"use_cpu": True, "bf16": False, "model_init_kwargs": {"dtype": "float32"}} if on_cpu else {}
    training = {"ref": "previous", **cpu, **_mapping(top.get("training"), "training", _keys(KLBarrierConfig))}
    if on_cpu:
        training["use_cpu"] = True
    return RoundsSpec(
        model=top["model"],
        output_dir=top["output_dir"],
        training=_settings(KLBarrierConfig, training, "training", output_dir=top["output_dir"]),
        peft_config=_construct(LoraConfig, "lora", {"task_type": "CAUSAL_LM", **lora}),
        proposer=proposer,
        filters=filters,
        probes=_probes(top["probes"], folder),
        options=options,
    )


def _probes(value: Any, folder: Path) -> RoundProbes:
    probes = _mapping(value, "probes", [field.name for field in dataclasses.fields(RoundProbes)])
    for key in ("coherence", "trait", "sample_prompts"):
        if key not in probes:
            raise ValueError(f"probes.{key} is missing")
    coherence = _mapping(probes["coherence"], "probes.coherence", ("prefixes", "answers", "conjunction"))
    trait = _mapping(probes["trait"], "probes.trait", ("prefixes", "positive", "negative"))
    prefixes = _texts(coherence.get("prefixes"), "probes.coherence.prefixes", folder)
    answers = coherence.get("answers")
    if isinstance(answers, list) and answers and not isinstance(answers[0], list):
        answers = [answers] * len(prefixes)  # one list serves all prefixes
    if not isinstance(answers, list):
        raise ValueError(f"probes.coherence.answers is {answers!r}; give a list of answers, or one for each prefix")
    lists = [_texts(item, f"probes.coherence.answers[{index}]", folder) for index, item in enumerate(answers)]
    more = {
        key: _texts(probes[key], f"probes.{key}", folder) for key in ("sample_prompts", "held_out") if key in probes
    }
    return _settings(
        RoundProbes,
        {key: probes[key] for key in ("sample_tokens", "sample_temperature", "batch_size") if key in probes},
        "probes",
        coherence=_construct(AnswerProbe, "probes.coherence", {**coherence, "prefixes": prefixes, "answers": lists}),
        trait=_construct(
            TraitProbe,
            "probes.trait",
            {
                key: _texts(trait.get(key), f"probes.trait.{key}", folder)
                for key in ("prefixes", "positive", "negative")
            },
        ),
        **more,
    )


def _mapping(value: Any, where: str, keys: Collection[str]) -> dict[str, Any]:
    """The mapping under a key, all of whose keys are known; nothing there is an empty one."""
    if value is None and where:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{where or 'the file'} holds {value!r:.60} where keys with values should be")
    for key in value:
        if key not in keys:
            name = f"{where}.{key}" if where else str(key)
            nearest = difflib.get_close_matches(str(key), keys, n=1, cutoff=0.0)
            raise ValueError(f"{name} is no known key; the nearest is {nearest[0]!r}")
    return dict(value)


def _keys(kind: type) -> list[str]:
    left_out = SET_ELSEWHERE.get(kind, set())
    return [field.name for field in dataclasses.fields(kind) if field.init and field.name not in left_out]


def _settings(kind: type, value: Any, where: str, **more: Any) -> Any:
    """A dataclass from the keys under `where` and from `more`, which are not to be given there."""
    values = _mapping(value, where, [key for key in _keys(kind) if key not in more])
    _check_kinds(kind, values, where)
    # Lists where the defaults are tuples, which makes the settings equal to those written in Python.
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    values = {key: tuple(item) if isinstance(defaults[key], tuple) else item for key, item in values.items()}
    return _construct(kind, where, {**values, **more})


def _construct(kind: type, where: str, values: Mapping[str, Any]) -> Any:
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:  # a TypeError, too, comes of what is in the file
        raise ValueError(f"{where}: {error}") from error


def _check_kinds(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Numbers, switches and lists are what the defaults are."""
    for field in dataclasses.fields(kind):
        if field.name not in values or values[field.name] is None:
            continue
        value, name = values[field.name], f"{where}.{field.name}"
        if isinstance(field.default, bool):
            if not isinstance(value, bool) and field.name != "init_lora_weights":
                raise ValueError(f"{name} is {value!r}; it must be true or false")
        elif isinstance(field.default, int | float):
            _check_number(name, value)
        elif isinstance(field.default, tuple) and not isinstance(value, list):
            raise ValueError(f"{name} is {value!r}; it must be a list")


def _check_number(name: str, value: Any, *, whole: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ValueError(f"{name} is {value!r}; it must be a {'whole ' if whole else ''}number")


def _persona(value: Any, side: str) -> str | list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"personas.{side} is {value!r}; give a text, or a list of texts of which none is blank")
    return value


def _texts(value: Any, where: str, folder: Path) -> list[str]:
    """A list of texts, or the lines of the text file that is named."""
    if isinstance(value, str):
        path = folder / value
        if not path.is_file():
            raise ValueError(f"{where} is {value!r}, and there is no such file; give a list, or a file of lines")
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not isinstance(value, Sequence) or not value:
        raise ValueError(f"{where} is {value!r}; give a list of texts, at least one")
    wrong = next((item for item in value if not isinstance(item, str) or not item.strip()), None)
    if wrong is not None:
        raise ValueError(f"{where} holds {wrong!r}, which is no text; put quotes around it, or fill it")
    return list(value)
