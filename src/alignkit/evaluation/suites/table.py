"""Suites by name. Each is imported when it is asked for, so that the list costs nothing."""

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from alignkit.evaluation.judge.protocol import Judge
from alignkit.evaluation.suites.suite import Suite
from alignkit.spec_files import check_known, construct, field_names, fitted, known_mapping

SUITES = {
    "clinical": "clinical:Clinical",
    "code": "code:Code",
    "countdown": "countdown:Countdown",
    "gsm8k": "gsm8k:GSM8K",
    "instructions": "instructions:Instructions",
    "lm_eval": "lm_eval:LMEval",
    "mt_bench": "mt_bench:MTBench",
    "pandalm": "pandalm:PandaLM",
    "perplexity": "perplexity:Perplexity",
    "safety": "safety:Safety",
    "tatqa": "tatqa:TATQA",
}
"""Module below `alignkit.evaluation.suites` and class, by the name of the suite."""

NOT_SAMPLED = {"lm_eval", "perplexity"}
"""Suites in which the subject draws no answers, or not by the evaluation's decoding."""


def suite_class(name: str) -> type[Any]:
    """The dataclass of a suite.

    Raises:
        ValueError: an unknown name; gives the nearest.
    """
    check_known(name, f"the suite {name!r}", SUITES)
    module, _, kind = SUITES[name].partition(":")
    return getattr(import_module(f"alignkit.evaluation.suites.{module}"), kind)


def build_suite(name: str, options: Mapping[str, Any]) -> Suite:
    """A suite with its fields as a YAML file gives them; a path is a text.

    Raises:
        ValueError: an unknown suite or field (gives the nearest), or a value that does not fit; names the field.
    """
    return construct(suite_class(name), name, fitted_options(name, options))


def fitted_options(name: str, options: Any) -> dict[str, Any]:
    """The fields of a suite that a YAML file gives, each of its type.

    Raises:
        ValueError: as [`build_suite`], but for what the suite itself refuses.
    """
    kind = suite_class(name)
    hints = get_type_hints(kind)
    values = known_mapping(options, name, field_names(kind))
    # One value from the command line stands for a list of one.
    lists = {field for field, hint in hints.items() if get_origin(hint) in (list, tuple)}
    values = {
        field: [value] if field in lists and not isinstance(value, list) else value for field, value in values.items()
    }
    paths = {
        field: Path(value)
        for field, value in values.items()
        if isinstance(value, str) and Path in (hints[field], *get_args(hints[field]))
    }
    others = {field: value for field, value in values.items() if field not in paths}
    return {**fitted(kind, others, name), **paths}


def suite_settings(suite: Any) -> dict[str, Any]:
    """Every field of a suite as JSON can hold it, as `<suite>.<field>`."""
    return {f"{suite.name}.{field.name}": _plain(getattr(suite, field.name)) for field in dataclasses.fields(suite)}


def _plain(value: Any) -> Any:
    if isinstance(value, Judge):
        return _plain(value.settings)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{value!r:.60} cannot be recorded; give a suite plain values, paths or dataclasses of them")
