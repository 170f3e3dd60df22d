"""The four methods on tiny models, for comparing one way of computing an optimiser step with another.

Eight rows of unequal length in each of four steps, no dropout, the barrier partly open, gradients clipped. Adam's epsilon
is large, because with a small one the rounding of a gradient near zero becomes a step of full size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig
from torch import Tensor
from transformers import Trainer

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
from alignkit.fused_head.modeling import whole
from alignkit.tasks.toy import byte_tokenizer, corpus_membership, preference_pairs, tiny_sequence_classifier
from tests.dpo.conftest import pairs
from tests.es_lora.conftest import mean_code, prompts
from tests.kl_barrier.conftest import prompts_and_completions
from tests.tiny_models import lively_lm

METHODS = ("reward", "barrier", "dpo", "es")
GLOBAL_BATCH = 8
HEADS = ["tidy", "short"]
LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}

COMMON: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "max_steps": 4,
    "optim": "adamw_torch",
    "adam_epsilon": 1e-2,
    "max_grad_norm": 1.0,
    "activation_checkpointing": False,
}
BARRIER = {"aggregate": "rmse", "barrier_weight": 2.0, "pressure_steps": 0, "learning_rate": 1e-3}
PAIRS = {"beta": 0.3, "beta_schedule": "linear", "beta_end": 0.1, "kl_steps": 1, "learning_rate": 1e-3}
ES = {
    "population_size": 4,
    "prompts_per_step": GLOBAL_BATCH,
    "max_completion_length": 6,
    "temperature": 1.0,
    "sigma": 0.2,
    "learning_rate": 0.01,
}


@dataclass
class Record:
    """What a training was: its losses and gradient norms, step by step, and the trained weights it ended with."""

    losses: list[float]
    grad_norms: list[float]
    weights: dict[str, Tensor]


def make_trainer(method: str, output: Path, *, batch_size: int = GLOBAL_BATCH, lora: bool = False, **settings: Any) -> Any:
    """A trainer whose optimiser step has `GLOBAL_BATCH` rows in micro-batches of `batch_size`, over all ranks."""
    ranks = PartialState(cpu=settings.get("use_cpu", True)).num_processes
    settings = {**COMMON, "gradient_accumulation_steps": GLOBAL_BATCH // (batch_size * ranks), **settings}
    if method != "es":
        settings |= {"bf16": False, "per_device_train_batch_size": batch_size}
    torch.manual_seed(0)
    return MAKERS[method](str(output), lora, settings)


def train(method: str, output: Path, *, resume: str | None = None, **settings: Any) -> Record:
    """Train, and tell what it was."""
    trainer = make_trainer(method, output, **settings)
    trainer.train(resume_from_checkpoint=resume)
    return record_of(trainer)


def record_of(trainer: Any) -> Record:
    """Collective under FSDP2, whose weights are put together."""
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    weights = {name: whole(weight.detach()).clone() for name, weight in named if weight.requires_grad}
    return Record([entry["loss"] for entry in log], [entry.get("grad_norm", 0.0) for entry in log], weights)


def comparisons() -> tuple[Dataset, Dataset]:
    """32 rows of every kind for two heads, and negatives of two tiers for those of them that are texts alone."""
    weighted = preference_pairs(12, seed=1).add_column("weight", [0.5 * (1 + number % 4) for number in range(12)])
    ranked = [
        {
            "completions": [f"answer {number} {word}" for word in ("one", "two two", "three three three")],
            "ratings": {"tidy": [1.0, 1.0, None], "short": [3.0, 2.0, 1.0 + number]},
        }
        for number in range(10)
    ]
    texts = [{"text": f"positive {'very ' * (number % 5)}{number}", "head": HEADS[number % 2]} for number in range(10)]
    tiers = [("soft", ["tidy"]), ("furthest", None), ("soft", ["tidy"]), ("furthest", None), ("furthest", None)]
    negatives = [{"text": "bad " * (2 + n), "tier": tier, "heads": heads} for n, (tier, heads) in enumerate(tiers)]
    rows = concatenate_datasets([weighted, Dataset.from_list(ranked), Dataset.from_list(texts)])
    return rows, Dataset.from_list(negatives)


def _reward(output: str, lora: bool, settings: dict[str, Any]) -> Trainer:
    train_rows, negatives = comparisons()
    own: dict[str, Any] = {"head_names": HEADS, "negatives_per_tier": 2, "regularizer": "center", "learning_rate": 1e-3}
    own["tier_weights"] = {"soft": 2.0, "furthest": 0.5}
    args = MultiHeadRewardConfig(output, **{**own, **settings})
    _shard_on_cpu(args)
    return MultiHeadRewardTrainer(
        tiny_sequence_classifier(HEADS, seed=1),
        args,
        train_dataset=train_rows,
        negatives=negatives,
        processing_class=byte_tokenizer(),
        peft_config=LoraConfig(**LORA, task_type="SEQ_CLS") if lora else None,
    )


def _barrier(output: str, lora: bool, settings: dict[str, Any]) -> Trainer:
    own = BARRIER | ({"tau_nats": 3.2, "ref": "base"} if lora else {"tau_nats": 2.65})  # between those of the sequences
    has_own_reference = not lora and settings.get("ref") is None and settings.get("precompute_ref") is None
    args = KLBarrierConfig(output, **{**own, **settings})
    _shard_on_cpu(args)
    return KLBarrierTrainer(
        lively_lm(1),
        args,
        train_dataset=prompts_and_completions(32),
        ref_model=lively_lm(2) if has_own_reference else None,
        processing_class=byte_tokenizer(),
        peft_config=LoraConfig(**LORA) if lora else None,
    )


def _dpo(output: str, lora: bool, settings: dict[str, Any]) -> Trainer:
    args = ScheduledDPOConfig(output, **{**PAIRS, **({"ref": "base"} if lora else {}), **settings})
    _shard_on_cpu(args)
    return ScheduledDPOTrainer(
        lively_lm(1),
        args=args,
        train_dataset=pairs(32),
        processing_class=byte_tokenizer(),
        peft_config=LoraConfig(**LORA) if lora else None,
    )


def _es(output: str, lora: bool, settings: dict[str, Any]) -> Trainer:
    args = ESLoRAConfig(output, **{**ES, **settings})
    _shard_on_cpu(args)
    return ESLoRATrainer(
        model=lively_lm(1),
        reward_funcs=mean_code,
        args=args,
        train_dataset=prompts(16),
        processing_class=byte_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "down_proj"]),
    )


MAKERS: dict[str, Callable[[str, bool, dict[str, Any]], Trainer]] = {
    "reward": _reward,
    "barrier": _barrier,
    "dpo": _dpo,
    "es": _es,
}


def _shard_on_cpu(args: Any) -> None:
    """accelerate turns FSDP on for GPUs alone, though it works between processes on the CPU as well."""
    if args.fsdp:
        PartialState().distributed_type = DistributedType.MULTI_GPU
