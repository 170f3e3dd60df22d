r"""Earlier rounds as concatenated LoRA ranks: A = [A₁; A₂], B = [s₁B₁, s₂B₂], so that B A = s₁B₁A₁ + s₂B₂A₂.

The scaling s = lora_alpha / r (rslora: lora_alpha / √r) is folded into B, and the result has lora_alpha = r, that is a
scaling of exactly 1. How this differs from adding finished rounds to the base weights, and why:

1. Nothing is merged. A 4-bit weight cannot take a small addition, and in bfloat16 every addition is rounded; ranks
   side by side give the sum of the rounds exactly, for a rank that grows by r per round.
2. The result is one ordinary PEFT adapter of the original base model, whatever the number of rounds.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignkit.storage import read_json, whole_folder, write_json

HISTORY = "history"  # name, in the model, of the frozen adapter of all earlier rounds
NEW = "default"  # of the adapter that is trained; TRL and PEFT call it so
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"

# What a sum of ranks can express. Every other field of LoraConfig must be at its default.
ADDITIVE_FIELDS = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    *("task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config"),
}
# Others start away from zero, so that the first step would not be that of the earlier rounds, or rewrite the base.
ZERO_INITIALIZATIONS = (True, "gaussian")
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?:embedding_)?(?P<factor>[AB])(?:\.weight)?")


@dataclass(frozen=True)
class LoraAdapter:
    """An adapter outside of any model.

    Attributes:
        config: its PEFT configuration.
        weights: tensors under the names of PEFT's files, `base_model.model.<module>.lora_A.weight (r, in)` and
            `….lora_B.weight (out, r)`; of an embedding `….lora_embedding_A (r, V)` and `….lora_embedding_B (H, r)`.
    """

    config: LoraConfig
    weights: dict[str, Tensor]


def concatenate_adapters(*adapters: LoraAdapter) -> LoraAdapter:
    """One adapter that adds what all of them add together, in float32.

    For every module, over the adapters that have it: A `(Σ r_i, in)` = [A₁; A₂; …] and B `(out, Σ r_i)` =
    [s₁B₁, s₂B₂, …]. Modules may differ between adapters; `rank_pattern` says where a rank is not the commonest.
    Dropout, which is a matter of training, is 0 in the result.

    Raises:
        ValueError: an adapter that is more than a sum of low ranks (see `check_additive`), a tensor that is no
            two-dimensional LoRA factor, or adapters of different base models.
    """
    for adapter in adapters:
        check_additive(adapter.config)
    for name in ("base_model_name_or_path", "fan_in_fan_out"):
        values = {getattr(adapter.config, name) for adapter in adapters}
        if len(values) > 1:
            raise ValueError(f"the adapters differ in {name}: {sorted(map(str, values))}; they must fit the same base")
    parts: dict[str, list[Tensor]] = {}
    ranks: Counter[str] = Counter()
    for adapter in adapters:
        for key, tensor in adapter.weights.items():
            module, factor = _parse(key, tensor)
            if factor == "A":
                ranks[module] += tensor.shape[0]
                parts.setdefault(key, []).append(tensor.float())
            else:
                parts.setdefault(key, []).append(tensor.float() * _scaling(adapter.config, module, tensor.shape[1]))
    weights = {key: torch.cat(tensors, dim=_rank_dimension(key)) for key, tensors in parts.items()}
    return LoraAdapter(_cumulative_config(adapters[0].config, dict(ranks)), weights)


def check_additive(config: LoraConfig) -> None:
    """Refuse an adapter whose effect is not Δ = s B A alone, or which is not zero at its start.

    Raises:
        ValueError: names the field (DoRA, biases, `modules_to_save`, trainable tokens, …) and its value.
    """
    if not isinstance(config, LoraConfig):
        raise ValueError(f"rounds need LoRA, whose ranks can be put side by side; got {type(config).__name__}")
    default = LoraConfig()
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in ADDITIVE_FIELDS and value != getattr(default, field.name):
            raise ValueError(
                f"{field.name}={value!r} makes an adapter that is more than a sum of low ranks, so that rounds cannot "
                f"be put side by side; leave {field.name} at {getattr(default, field.name)!r}"
            )
    if config.init_lora_weights not in ZERO_INITIALIZATIONS:
        raise ValueError(
            f"init_lora_weights={config.init_lora_weights!r} rewrites the base or does not start at zero; a round "
            f"must start as the model of the rounds before it: choose one of {list(ZERO_INITIALIZATIONS)}"
        )


def _parse(key: str, tensor: Tensor) -> tuple[str, str]:
    match = KEY.fullmatch(key)
    if match is None or tensor.dim() != 2:
        raise ValueError(
            f"{key} of shape {tuple(tensor.shape)} is no two-dimensional LoRA factor; rounds take LoRA on linear and "
            "embedding layers only"
        )
    return match["module"], match["factor"]


def _rank_dimension(key: str) -> int:
    return 0 if ".lora_A." in key or key.endswith(".lora_embedding_A") else 1


def _scaling(config: LoraConfig, module: str, rank: int) -> float:
    alphas = config.alpha_pattern or {}
    alpha = alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)
    return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def _cumulative_config(config: LoraConfig, ranks: dict[str, int]) -> LoraConfig:
    commonest = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {module: rank for module, rank in sorted(ranks.items()) if rank != commonest}
    return LoraConfig(
        r=commonest,
        lora_alpha=commonest,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules=sorted(ranks),
        fan_in_fan_out=config.fan_in_fan_out,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )


def save_adapter(adapter: LoraAdapter, folder: Path) -> None:
    """Write a folder that `PeftModel.from_pretrained` reads; it is there whole or not at all."""
    config = replace(adapter.config, inference_mode=True)
    with whole_folder(folder) as partial:
        config.save_pretrained(str(partial))
        # PEFT keeps the modules in a set, whose order differs from process to process.
        saved = read_json(partial / CONFIG_FILE)
        if isinstance(saved["target_modules"], list):
            saved["target_modules"].sort()
        write_json(partial / CONFIG_FILE, saved)
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in adapter.weights.items()}
        save_file(tensors, partial / WEIGHTS_FILE, metadata={"format": "pt"})


def load_adapter(folder: Path) -> LoraAdapter:
    """Read a folder that `save_adapter` or PEFT wrote.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged; the message names it.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing")
    read_json(folder / CONFIG_FILE)
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} is damaged: {error}") from error
    return LoraAdapter(LoraConfig.from_pretrained(str(folder)), weights)


def read_adapter(model: PeftModel, name: str = NEW) -> LoraAdapter:
    """An adapter of a model, its tensors shared with the model's."""
    config = model.peft_config[name]
    assert isinstance(config, LoraConfig)
    return LoraAdapter(config, get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))


@contextmanager
def student(model: PreTrainedModel, history: Path | None) -> Iterator[nn.Module]:
    """The model after the rounds whose cumulative adapter is the folder `history`, in evaluation mode.

    None is the model itself. On exit the model is as it was: no adapter, no hook, no changed setting is left.
    """
    with as_it_was(model):
        if history is None:
            yield model.eval()
            return
        load_adapter(history)  # says in words what is wrong with the files
        yield PeftModel.from_pretrained(model, str(history)).eval()


@contextmanager
def trainee(model: PreTrainedModel, history: Path | None, config: LoraConfig) -> Iterator[PeftModel]:
    """The model with the frozen adapter `history` and a fresh trainable one, both active, drawn from torch's state.

    On exit the model is as it was.
    """
    check_additive(config)
    with as_it_was(model):
        peft_model = get_peft_model(model, replace(config), adapter_name=NEW)
        if history is not None:
            load_adapter(history)
            peft_model.load_adapter(str(history), adapter_name=HISTORY)
            lora_model: Any = peft_model.base_model
            lora_model.set_adapter([HISTORY, NEW])
            for name, parameter in peft_model.named_parameters():
                if f".{HISTORY}." in f"{name}.":
                    parameter.requires_grad_(False)
        yield peft_model


@contextmanager
def as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """Undo on exit whatever the block does to the modules of `model`, except to values in its own tensors.

    PEFT swaps layers, trainers set hooks, a `forward` and checkpointing, and align token ids in the configs: all of
    it lives in the attributes of modules and configs.
    """
    states = [(module, _copy_of(vars(module))) for module in model.modules()]
    configs = [(owner, _copy_of(vars(owner))) for owner in (model.config, model.generation_config)]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for owner, before in [*states, *configs]:
            vars(owner).clear()
            vars(owner).update(before)
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None


def _copy_of(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value.copy() if isinstance(value, dict) else value for name, value in attributes.items()}


def join_rounds(history: Path | None, delta: Path) -> LoraAdapter:
    """The cumulative adapter after a round, from those before it and the round's own."""
    folders = [delta] if history is None else [history, delta]
    return concatenate_adapters(*map(load_adapter, folders))
