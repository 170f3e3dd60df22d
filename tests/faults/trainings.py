"""A tiny training of each of the four methods, in which everything that a checkpoint has to carry is at work.

Dropout, shuffling, two micro-batches in a step, Adam's moments, a decaying learning rate, and what a method adds:
drawn negatives, a dual weight, a moving reference, a beta that follows the divergence, the sigmas and anchor of ES.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback

from alignkit import (
    ESLoRAConfig,
    ESLoRATrainer,
    KLBarrierConfig,
    KLBarrierTrainer,
    MultiHeadRewardConfig,
    MultiHeadRewardTrainer,
    ScheduledDPOConfig,
    ScheduledDPOTrainer,
)
from alignkit.tasks.toy import STYLES, byte_tokenizer, corpus_membership, tiny_sequence_classifier
from tests.dpo.conftest import pairs
from tests.es_lora.conftest import mean_code, prompts
from tests.kl_barrier.conftest import prompts_and_completions
from tests.tiny_models import lively_lm

METHODS = ("reward", "barrier", "es", "dpo")

# 16 rows in micro-batches of 2, two to a step: 4 steps are an epoch.
COMMON: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "max_steps": 8,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "optim": "adamw_torch",
    "lr_scheduler_type": "linear",
}
WITH_GRADIENTS: dict[str, Any] = {"bf16": False, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
LORA = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}
TRAINER_ARGUMENTS = ("model", "train_dataset", "eval_dataset", "ref_model", "negatives", "reward_funcs", "peft_config")


def make_trainer(
    method: str, output: Path, *, full: bool = False, callbacks: Sequence[TrainerCallback] = (), **settings: Any
) -> Trainer:
    """A trainer of 8 steps that saves each; `settings` go to the config unless the trainer takes them itself.

    With `full` the whole model is trained, with dropout on its attention, otherwise a LoRA with dropout.
    """
    arguments = {name: settings.pop(name) for name in TRAINER_ARGUMENTS if name in settings}
    arguments |= {"callbacks": list(callbacks), "processing_class": byte_tokenizer()}
    torch.manual_seed(0)
    return MAKERS[method](str(output), full, arguments, settings)


def _reward(output: str, full: bool, arguments: dict[str, Any], settings: dict[str, Any]) -> Trainer:
    train, negatives, *_ = corpus_membership(n_per_style=4)
    own = {"head_names": list(STYLES), "negatives_per_tier": 1, "regularizer": "log_square", "disable_dropout": False}
    memory = {"activation_checkpointing": False}
    args = MultiHeadRewardConfig(output, **{**COMMON, **WITH_GRADIENTS, **memory, **own, **settings})
    model = tiny_sequence_classifier(list(STYLES), seed=1, hidden_size=16)
    given = {"model": model, "train_dataset": train, "negatives": negatives, **arguments}
    return MultiHeadRewardTrainer(args=args, **_adapted(given, full, task_type="SEQ_CLS"))


def _barrier(output: str, full: bool, arguments: dict[str, Any], settings: dict[str, Any]) -> Trainer:
    own = {"target_kl": 0.05, "ref": "ema", "ema_decay": 0.8, "pressure_steps": 3}
    memory = {"activation_checkpointing": False}
    args = KLBarrierConfig(output, **{**COMMON, **WITH_GRADIENTS, **memory, **own, **settings})
    given = {"model": lively_lm(1, hidden_size=16), "train_dataset": prompts_and_completions(16), **arguments}
    return KLBarrierTrainer(args=args, **_adapted(given, full))


def _dpo(output: str, full: bool, arguments: dict[str, Any], settings: dict[str, Any]) -> Trainer:
    own = {"target_kl": 0.001, "kl_steps": 1, "ref": "ema", "ema_decay": 0.8, "disable_dropout": False}
    memory = {"activation_checkpointing": False}
    args = ScheduledDPOConfig(output, **{**COMMON, **WITH_GRADIENTS, **memory, **own, **settings})
    given = {"model": lively_lm(1, hidden_size=16), "train_dataset": pairs(16), **arguments}
    return ScheduledDPOTrainer(args=args, **_adapted(given, full))


def _es(output: str, full: bool, arguments: dict[str, Any], settings: dict[str, Any]) -> Trainer:
    if full:
        raise ValueError("ES-LoRA trains a LoRA alone")
    own = {
        "population_size": 4,
        "prompts_per_step": 4,
        "max_completion_length": 6,
        "temperature": 1.0,
        "sigma": 0.3,
        "sigma_schedule": "linear",
        "sigma_end": 0.1,
        "anchor_decay": 0.1,
    }
    args = ESLoRAConfig(output, **{**COMMON, **own, **settings})
    model = lively_lm(1, hidden_size=16)
    given = {"model": model, "train_dataset": prompts(16), "reward_funcs": mean_code, **arguments}
    return ESLoRATrainer(args=args, **_adapted(given, full))


MAKERS: dict[str, Callable[[str, bool, dict[str, Any], dict[str, Any]], Trainer]] = {
    "reward": _reward,
    "barrier": _barrier,
    "es": _es,
    "dpo": _dpo,
}


def _adapted(given: dict[str, Any], full: bool, **lora: Any) -> dict[str, Any]:
    if full:
        _drop_attention(given["model"])
        return given
    return {"peft_config": LoraConfig(**LORA, **lora), **given}


def _drop_attention(model: PreTrainedModel) -> None:
    model.config.attention_dropout = 0.1
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1


def state_of(trainer: Any) -> dict[str, Tensor]:
    """Everything that a training has moved: weights, optimiser, schedule, and what the method adds."""
    found = {f"weight.{name}": weight.detach() for name, weight in trainer.model.named_parameters()}
    for number, state in trainer.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
    found["schedule"] = torch.tensor([trainer.lr_scheduler.last_epoch, *trainer.lr_scheduler.get_last_lr()])
    found["progress"] = torch.tensor([trainer.state.global_step, trainer.state.epoch])
    found |= {f"own.{name}": torch.as_tensor(value) for name, value in _own_state(trainer).items()}
    return {name: tensor.clone() for name, tensor in found.items()}


def _own_state(trainer: Any) -> dict[str, Any]:
    if isinstance(trainer, KLBarrierTrainer):
        return {**trainer.reference.state_dict(), **trainer._strength.dual.state_dict()}
    if isinstance(trainer, ScheduledDPOTrainer):
        return {**trainer.reference.state_dict(), **trainer._control.state_dict()}
    if isinstance(trainer, ESLoRATrainer):
        sigmas = {f"sigma.{name}": sigma for name, sigma in trainer._update.sigmas.items()}
        return sigmas | {f"anchor.{name}": tensor for name, tensor in trainer._update.anchor.items()}
    return {}


def log_of(trainer: Trainer) -> list[dict[str, float]]:
    """What was logged at each step: loss, learning rate, token counts, beta, sigma and so on; no times."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]
