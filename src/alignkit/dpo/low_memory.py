"""Preset for DPO of a model of some billion parameters on one small GPU.

4-bit weights with bf16 arithmetic, LoRA with dropout, paged AdamW, checkpointed activations, one pair at a time and 32
of them per step, prompts of 384 of 768 tokens, a cosine schedule with 5 % warm-up.

On a CPU all of it runs but the optimiser's pages, which need CUDA: `optim` then stays as it is, and the log says so.
`use_cpu=True` must be set there, which bf16 on a CPU asks for.
"""

import logging
from dataclasses import fields
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import BitsAndBytesConfig

logger = logging.getLogger(__name__)


def low_memory_settings() -> dict[str, Any]:
    """The fields of `ScheduledDPOConfig` that the preset sets."""
    return {
        "optim": "paged_adamw_32bit",
        "gradient_checkpointing": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 32,
        "max_length": 768,
        "max_prompt_length": 384,
        "bf16": True,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,  # a share of the steps
        "disable_dropout": False,  # TRL's default would switch LoRA's off as well
    }


def low_memory_quantization() -> BitsAndBytesConfig:
    """Weights in nf4, arithmetic in bf16."""
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def low_memory_lora() -> LoraConfig:
    """Rank 16, alpha 32, dropout 0.05, on every linear layer but the output head."""
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")


def apply_low_memory(config: Any) -> None:
    """Set the preset's fields of a configuration that are at their default, before its `__post_init__` reads them.

    A field that was given its default on purpose is set too. `bf16` stays where `fp16` is asked for, and of a
    `max_length` below 768 the prompt gets half.

    Args:
        config: a `ScheduledDPOConfig`.
    """
    defaults = {field.name: field.default for field in fields(config)}
    settings = low_memory_settings()
    if config.fp16:
        del settings["bf16"]
    if config.max_length not in (defaults["max_length"], None):
        settings["max_prompt_length"] = min(settings["max_prompt_length"], max(1, config.max_length // 2))
    changed = {name: value for name, value in settings.items() if getattr(config, name) == defaults[name]}
    if "optim" in changed and (config.use_cpu or not torch.cuda.is_available()):
        del changed["optim"]
        logger.warning(
            "low_memory: %s keeps its state in pages of CUDA memory, which is not used here; optim stays %s",
            *(settings["optim"], config.optim),
        )
    for name, value in changed.items():
        setattr(config, name, value)


def add_low_memory_arguments(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Add to a trainer's arguments what the preset says of the model, where they say nothing.

    Args:
        model: as it was given. One that is loaded already stays as it is, but for a LoRA where it has no adapter.
        args: the `ScheduledDPOConfig`, whose `model_init_kwargs` get a dtype.
        kwargs: of the trainer, for `quantization_config` and `peft_config`.
    """
    if kwargs.get("peft_config") is None and not isinstance(model, PeftModel):
        kwargs["peft_config"] = low_memory_lora()
    if isinstance(model, str):
        init = args.model_init_kwargs or {}
        # What is not quantised, the embeddings first of all, would be loaded in float32.
        args.model_init_kwargs = {"dtype": "bfloat16", **init}
        if "quantization_config" not in init and kwargs.get("quantization_config") is None:
            kwargs["quantization_config"] = low_memory_quantization()
