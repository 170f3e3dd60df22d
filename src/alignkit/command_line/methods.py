"""What the four training commands train, and with what."""

import ast
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.command_line.data import only_split
from alignkit.model_folder import check_config
from alignkit.named_objects import load_named
from alignkit.spec_files import construct


@dataclass(frozen=True)
class Method:
    """One training command.

    Args:
        config, trainer: `module:name` of the classes, imported when the command runs.
        data, model: names of the classes of `alignkit.command_line.config` that hold its arguments.
        more: arguments of the trainer that only this method has, made of the data's arguments.
        epilog: what `--help` says beside the flags.
    """

    config: str
    trainer: str
    data: str = "DataArguments"
    model: str = "ModelArguments"
    more: Callable[[Any], dict[str, Any]] = lambda data: {}
    epilog: str = ""


def negatives(data: Any) -> dict[str, Any]:
    """The sets that positives are compared with."""
    named = {"negatives": data.negatives, "eval_negatives": data.eval_negatives}
    return {name: only_split(of_name) for name, of_name in named.items() if of_name is not None}


def reward_functions(data: Any) -> dict[str, Any]:
    """The rewards that `reward_funcs` names; a class is called with the values in brackets behind its name.

    Raises:
        ValueError: none, a name behind which there is nothing, or values that the class does not take.
    """
    if not data.reward_funcs:
        raise ValueError("reward_funcs is missing; give file.py:name, package.module:name or a heuristic's name")
    return {"reward_funcs": [_reward_function(name) for name in data.reward_funcs]}


def _reward_function(text: str) -> Any:
    name, bracket, values = text.partition("(")
    found = load_named(name if ":" in name else f"alignkit.rewards.heuristics:{name}", "reward_funcs")
    if isinstance(found, type):
        return construct(found, f"reward_funcs: {text}", _keywords(text, f"_({values}" if bracket else "_()"))
    if bracket:
        raise ValueError(f"reward_funcs has {text}, but {name} is no class; leave the brackets out")
    return found


def _keywords(text: str, call: str) -> dict[str, Any]:
    """The values of a call such as `_(shortest=5, longest=60)`, all by name and all written out."""
    try:
        parsed = ast.parse(call, mode="eval").body
        if isinstance(parsed, ast.Call) and not parsed.args:
            return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in parsed.keywords}
    except (SyntaxError, ValueError):  # the latter from a value that is no literal
        pass
    raise ValueError(f"reward_funcs has {text}; write values by name, such as LengthReward(shortest=5, longest=60)")


METHODS = {
    "reward": Method(
        config="alignkit.reward_model.config:MultiHeadRewardConfig",
        trainer="alignkit.reward_model.trainer:MultiHeadRewardTrainer",
        data="RewardDataArguments",
        model="RewardModelArguments",
        more=negatives,
    ),
    "barrier": Method(
        config="alignkit.kl_barrier.config:KLBarrierConfig",
        trainer="alignkit.kl_barrier.trainer:KLBarrierTrainer",
        epilog="`alignkit barrier rounds SPEC.yaml` and `alignkit barrier report DIR` are commands of their own.\n\n",
    ),
    "es": Method(
        config="alignkit.es_lora.config:ESLoRAConfig",
        trainer="alignkit.es_lora.trainer:ESLoRATrainer",
        data="PromptArguments",
        model="ESModelArguments",
        more=reward_functions,
    ),
    "dpo": Method(
        config="alignkit.dpo.config:ScheduledDPOConfig",
        trainer="alignkit.dpo.trainer:ScheduledDPOTrainer",
    ),
}


def parser_of(name: str) -> Any:
    """The parser of a training command."""
    from alignkit.command_line import config
    from alignkit.command_line.parser import TrainingParser

    method = METHODS[name]
    data, model = getattr(config, method.data), getattr(config, method.model)
    return TrainingParser(f"alignkit {name}", _class(method.config), data, model, method.epilog)


def build_trainer(name: str, parsed: Any, train: Any, test: Any) -> Any:
    """The trainer of a command with its model, loaded from `model_name_or_path`.

    Raises:
        ValueError: what the trainer refuses.
        OSError: no such model.
    """
    method, model, args = METHODS[name], parsed.model, parsed.training
    args.model_init_kwargs = {**model.init_kwargs(), **(args.model_init_kwargs or {})}
    more = method.more(parsed.data)
    quantization = model.quantization_config()
    if quantization is not None:
        if name == "es":
            args.model_init_kwargs["quantization_config"] = quantization
        else:
            more["quantization_config"] = quantization
    name_or_path = model.model_name_or_path
    check_config(name_or_path)
    try:
        return _class(method.trainer)(
            model=name_or_path,
            args=args,
            train_dataset=train,
            eval_dataset=test,
            peft_config=model.peft_config(),
            **more,
        )
    except OSError as error:
        if Path(name_or_path).is_dir() or name_or_path in str(error):
            raise
        raise OSError(f"{error}; model_name_or_path is {name_or_path}, and there is no such folder here") from error


def _class(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
