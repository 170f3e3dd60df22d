"""A YAML file that describes a run of rounds, checked key by key before any model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig

from alignkit.kl_barrier.config import KLBarrierConfig
from alignkit.kl_barrier.rounds.coherence import AnswerProbe
from alignkit.kl_barrier.rounds.filters import FilterSettings
from alignkit.kl_barrier.rounds.settings import RoundProbes, TraitProbe
from alignkit.kl_barrier.rounds.steering import ActivationSteering
from alignkit.spec_files import (
    check_number,
    construct,
    field_names,
    fitted,
    fitted_value,
    known_mapping,
    read_spec_file,
    required,
)

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
    return read_spec_file(path, lambda spec: _build(spec, path.parent, output_dir, rounds, on_cpu))


def _build(spec: Any, folder: Path, output_dir: str | None, rounds: int | None, on_cpu: bool) -> RoundsSpec:
    given = {"output_dir": output_dir, "rounds": rounds}
    top = {**known_mapping(spec, "", (*REQUIRED, *OPTIONAL)), **{k: v for k, v in given.items() if v is not None}}
    required(top, REQUIRED, "a run of rounds")
    for key in ("model", "output_dir"):
        fitted_value(top[key], str, key)
    options: dict[str, Any] = {key: top[key] for key in ("seed", "rounds", "coherence_floor") if key in top}
    for key, value in options.items():
        check_number(key, value, whole=key != "coherence_floor")
    filters = _settings(FilterSettings, top.get("filters"), "filters")
    personas = known_mapping(top["personas"], "personas", ("positive", "negative"))
    proposer = _settings(
        ActivationSteering,
        top.get("steering"),
        "steering",
        filters=filters,
        contexts=_texts(top["contexts"], "contexts", folder),
        prompts=_texts(top["prompts"], "prompts", folder),
        **{side: _persona(personas.get(side), side) for side in ("positive", "negative")},
    )
    lora = fitted(LoraConfig, known_mapping(top.get("lora"), "lora", LORA_KEYS), "lora")
    # transformers would load the weights in the type that they were saved in.
    cpu = {"use_cpu": True, "bf16": False, "model_init_kwargs": {"dtype": "float32"}} if on_cpu else {}
    training = {"ref": "previous", **cpu, **known_mapping(top.get("training"), "training", _names(KLBarrierConfig))}
    if on_cpu:
        training["use_cpu"] = True
    return RoundsSpec(
        model=top["model"],
        output_dir=top["output_dir"],
        training=_settings(KLBarrierConfig, training, "training", output_dir=top["output_dir"]),
        peft_config=construct(LoraConfig, "lora", {"task_type": "CAUSAL_LM", **lora}),
        proposer=proposer,
        filters=filters,
        probes=_probes(top["probes"], folder),
        options=options,
    )


def _probes(value: Any, folder: Path) -> RoundProbes:
    probes = known_mapping(value, "probes", field_names(RoundProbes))
    for key in ("coherence", "trait", "sample_prompts"):
        if key not in probes:
            raise ValueError(f"probes.{key} is missing")
    coherence = known_mapping(probes["coherence"], "probes.coherence", ("prefixes", "answers", "conjunction"))
    trait = known_mapping(probes["trait"], "probes.trait", ("prefixes", "positive", "negative"))
    if "conjunction" in coherence:
        fitted_value(coherence["conjunction"], str, "probes.coherence.conjunction")
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
        coherence=construct(AnswerProbe, "probes.coherence", {**coherence, "prefixes": prefixes, "answers": lists}),
        trait=construct(
            TraitProbe,
            "probes.trait",
            {
                key: _texts(trait.get(key), f"probes.trait.{key}", folder)
                for key in ("prefixes", "positive", "negative")
            },
        ),
        **more,
    )


def _settings(kind: type, value: Any, where: str, **more: Any) -> Any:
    """A dataclass from the keys under `where` and from `more`, which are not to be given there."""
    values = known_mapping(value, where, [name for name in _names(kind) if name not in more])
    return construct(kind, where, {**fitted(kind, values, where), **more})


def _names(kind: type) -> list[str]:
    return field_names(kind, SET_ELSEWHERE.get(kind, set()))


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
