"""A model in 4 bits beside one that holds the dequantised weights in float32."""

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import dequantize_4bit
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from tests.callbacks import KeepGradients

NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
N_LAYERS = 14
BETWEEN_EVALUATIONS = {
    "max_steps": 3,
    "save_strategy": "no",
    "optim": "sgd",
    "eval_strategy": "steps",
    "eval_steps": 1,
}


def saved_and_loaded(model: PreTrainedModel, folder: Path, **settings: Any) -> PreTrainedModel:
    """A model that went over the disk; `quantization_config=NF4` makes it one of 4 bits."""
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.float32, **settings)


def quantised_layers(model: nn.Module) -> dict[str, Any]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    assert len(found) == N_LAYERS  # of two Llama layers
    return found


def give_same_weights(quantised: nn.Module, whole: nn.Module) -> None:
    """Make two models under PEFT equal: the weights of the first, dequantised, and what it trains, in float32.

    TRL makes what a quantised model trains bfloat16, whose rounding would hide what is looked for.
    """
    for name, parameter in quantised.named_parameters():
        if "lora_" in name or parameter.requires_grad:
            parameter.data = parameter.data.float()
    for name, layer in quantised_layers(quantised).items():
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        whole.get_submodule(name).weight.data = weight.float()
    named = dict(quantised.named_parameters())
    for name, parameter in whole.named_parameters():
        if named[name].is_floating_point():
            parameter.data = named[name].data.clone()


def gradients_of(trainer: Any) -> dict[int, dict[str, torch.Tensor]]:
    """The gradients of every step of a training, by step and name."""
    keep = KeepGradients()
    trainer.add_callback(keep)
    trainer.train()
    return keep.steps
