"""Flags and YAML files of a training command.

Differences from TRL's parser, which it is built on:

1. A file is read by `alignkit.spec_files`: `5e-5` is a number; a key that is given twice, unknown, or of another type
   is an error that names file, key and the nearest known key. TRL's parser takes the last of two keys and any type.
2. Fields that hold a mapping take their keys as flags: `--lora.r 32`, `--model_init_kwargs.dtype bfloat16`.
3. `--help` is in sections, with what TRL does not have first, and an unknown flag is answered with the nearest one.
4. No abbreviated flags, no `.args` files beside the program, no `env` in the file: a run says all that it is.
"""

import argparse
import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from trl import TrlParser

from alignkit.command_line.config import DataArguments, ModelArguments, RunArguments
from alignkit.command_line.one_line import OneLineParser
from alignkit.spec_files import (
    check_known,
    fitted_value,
    known_mapping,
    of_file_or_flag,
    read_spec_file,
    read_value,
    to_yaml,
)

# What says how the command is carried out, or where it takes up again, and so is no part of what a run is.
NOT_OF_THE_RUN = {"config", "resume_from_checkpoint", *(field.name for field in fields(RunArguments))}
OURS, DATA, MODEL, LORA = "of this method", "data", "model", "LoRA and quantisation"
TRL, TRANSFORMERS = "from TRL", "from transformers"
SECTIONS = (OURS, DATA, MODEL, LORA, TRL, TRANSFORMERS)  # in the order of the help
LORA_BEGINNINGS = ("lora", "use_peft", "use_rslora", "use_dora", "load_in", "bnb", "use_bnb")

EPILOG = """\
Every field is a flag and a key of the YAML file that --config names; a flag wins. A field that holds a mapping takes
its keys as flags, with a value as in YAML: --lora.r 32, --model_init_kwargs.dtype bfloat16. What is on by default is
switched off with --no_FIELD or --FIELD false. output_dir gets the trained model with its card, config.yaml, which
--config takes again, environment.txt and log.txt.
"""


@dataclass(frozen=True)
class Parsed:
    """What a training command was told.

    Args:
        run, data, model, training: its arguments; `training` is the configuration of the trainer.
        changed: fields that are not at their default, as they were given.
    """

    run: RunArguments
    data: Any
    model: Any
    training: Any
    changed: dict[str, Any]

    def to_yaml(self) -> str:
        """A file that `--config` takes for the same run."""
        return to_yaml(self.changed) if self.changed else ""


class TrainingParser(OneLineParser, TrlParser):
    """The parser of one training command.

    Args:
        prog: the command, such as `alignkit dpo`.
        config: the trainer's configuration class.
        data, model: classes of the data's and the model's arguments.
    """

    def __init__(
        self, prog: str, config: type, data: type = DataArguments, model: type = ModelArguments, epilog: str = ""
    ):
        self._sections: dict[str, Any] = {}
        kinds = [RunArguments, data, model, config]  # in the order of the file that says what a run is
        super().__init__(
            dataclass_types=kinds,  # type: ignore[arg-type]  # TRL's name for a class that is a dataclass
            prog=prog,
            usage=f"{prog} [--config FILE.yaml] [--FIELD VALUE ...]",
            epilog=epilog + EPILOG,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--config", metavar="FILE.yaml", help="Fields in a file; flags win over it.")
        self.hints = {
            of_kind.name: get_type_hints(kind)[of_kind.name]
            for kind in kinds
            for of_kind in fields(kind)
            if of_kind.init
        }
        for action in self._actions:
            if isinstance(action, argparse._StoreFalseAction):
                action.help = argparse.SUPPRESS  # the epilog says it once for all of them
        if not torch.accelerator.is_available():
            self.set_defaults(use_cpu=True, bf16=False)

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        """As the parent does it, but each field in its section of the help."""
        self._sections = self._sections or {title: self.add_argument_group(title) for title in SECTIONS}
        hints = get_type_hints(dtype)
        for of_class in sorted(fields(dtype), key=lambda field: is_changed_only(dtype, field.name)):
            if of_class.init:
                of_class.type = hints[of_class.name]
                title = section_of(dtype, of_class.name)
                self._parse_dataclass_field(self._sections[title] if title else self, of_class)

    def parse(self, arguments: Sequence[str]) -> Parsed:
        """What the arguments, and the file among them, say.

        Raises:
            ValueError: an unknown key or a value that does not fit; names the file and the key.
            OSError: the file cannot be read.
            SystemExit: after --help, and with code 2 after an unknown flag or a value that does not fit.
        """
        flags, dotted = split_dotted(arguments)
        defaults = vars(self.parse_args([]))
        path = self.parse_args(flags).config
        if path is not None:
            self.set_defaults_with_config(**read_spec_file(Path(path), self._checked))
        values = vars(self.parse_args(flags))
        for name in filter(self._is_mapping, values):
            if isinstance(values[name], str) and values[name].startswith("{"):
                values[name] = read_value(values[name])
        for key, value in dotted:
            self._set_dotted(values, key, value)
        changed = {
            name: value for name, value in values.items() if name not in NOT_OF_THE_RUN and value != defaults[name]
        }
        del values["config"]
        with of_file_or_flag(path):
            run, data, model, training = self.parse_dict(copy.deepcopy(values))
        return Parsed(run, data, model, training, changed)

    def _checked(self, content: Any) -> dict[str, Any]:
        """The keys of a file, each of the type that its field has."""
        choices = {action.dest: action.choices for action in self._actions}
        checked = {}
        for name, value in known_mapping(content, "", self.hints).items():
            allowed = choices[name]
            if value is False and allowed and "no" in allowed:
                value = "no"  # as which YAML 1.1 reads `save_strategy: no`
            if not isinstance(value, list) and _is_list(self.hints[name]):
                value = value if value is None else [value]  # as on the command line
            checked[name] = fitted_value(value, self.hints[name], name)
            if allowed and value not in (None, *allowed):
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(str, allowed))}")
        return checked

    def _set_dotted(self, values: dict[str, Any], key: str, value: Any) -> None:
        name, *path = key.split(".")
        check_known(name, f"--{key}", [name for name in self.hints if self._is_mapping(name)])
        values[name] = place = copy.deepcopy(values[name]) or {}
        for step in path[:-1]:
            place = place.setdefault(step, {}) if isinstance(place, dict) else place
        if not isinstance(place, dict):
            raise ValueError(f"--{key} sets a key of {place!r}, which has none")
        place[path[-1]] = value

    def _is_mapping(self, name: str) -> bool:
        return any((get_origin(option) or option) is dict for option in get_args(self.hints.get(name)))


def section_of(kind: type, name: str) -> str | None:
    """The title under which the help shows a field; None: among the options of the command."""
    if issubclass(kind, RunArguments):
        return None
    if issubclass(kind, DataArguments):
        return DATA
    if issubclass(kind, ModelArguments):
        return LORA if name.startswith(LORA_BEGINNINGS) else MODEL
    owner = next(of_class for of_class in kind.__mro__ if name in inspect.get_annotations(of_class))
    return {"alignkit": OURS, "trl": TRL, "transformers": TRANSFORMERS}[owner.__module__.partition(".")[0]]


def is_changed_only(kind: type, name: str) -> bool:
    """Whether a parent has the field too, with another default or meaning."""
    return sum(name in inspect.get_annotations(of_class) for of_class in kind.__mro__) > 1


def split_dotted(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, Any]]]:
    """Flags of fields, and `--field.key value` apart from them with the value read.

    Raises:
        ValueError: a flag with a dot without a value; names it.
    """
    flags, dotted, waiting = [], [], iter(arguments)
    for word in waiting:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or "." not in name:
            flags.append(word)
            continue
        text = value if equals else next(waiting, None)
        if text is None:
            raise ValueError(f"{name} has no value; write {name} VALUE")
        dotted.append((name.removeprefix("--"), read_value(text)))
    return flags, dotted


def _is_list(hint: Any) -> bool:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return str not in options and any((get_origin(option) or option) is list for option in options)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One spelling of each flag, and its default where it has one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return ", ".join(action.option_strings)
        return f"{action.option_strings[0]} {self._format_args(action, self._value_of(action))}"

    def _value_of(self, action: argparse.Action) -> str:
        if action.choices:
            return "{" + ",".join(map(str, action.choices)) + "}"
        return str(action.metavar or "VALUE")

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_none = action.default in (None, argparse.SUPPRESS, "", [])
        return text if has_none else f"{text} (default: %(default)s)"
