"""The four methods on tiny models, for comparing one way of computing an optimiser step with another.

Eight rows of unequal length in each of four steps, no dropout, the barrier partly open, gradients clipped. Adam's
epsilon is large, because with a small one the rounding of a gradient near zero becomes a step of full size.
"""

import os
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
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

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
from alignkit.tasks.toy import byte_tokenizer, preference_pairs, tiny_sequence_classifier
from tests.dpo.conftest import pairs
from tests.es_lora.conftest import mean_code, prompts
from tests.kl_barrier.conftest import prompts_and_completions
from tests.tiny_models import lively_lm

METHODS = ("reward", "barrier", "dpo", "es")
GLOBAL_BATCH = 8
HEADS = ["tidy", "short"]
LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}

# What the log of a step says of the step, however it is split.
LOGGED = ("loss", "grad_norm", "learning_rate", "tidy/loss", "short/loss", "nll", "barrier", "kl/divergence", "kl/max")
LOGGED += ("kl/mean", "kl/gate_open", "logratio/margin", "logratio/accuracy", "kl/reverse_on_data", "beta", "reward")
# Times, and what TRL's parents average over batches or ranks as they fall.
OF_THE_SPLIT = tuple(
    f"eval_{name}"
    for name in ("loss", "entropy", "mean_token", "logits", "logps", "rewards", "runtime", "samples_per", "steps_per")
)

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
    "rollouts_per_prompt": 2,
    "fitness_shaping": "prompt_baseline",
    "max_completion_length": 4,
    "temperature": 1.0,
    "sigma": 0.2,
    "learning_rate": 0.01,
}


@dataclass
class Record:
    """What a training was: the log of each step, metrics of an evaluation, the trained weights it ended with.

    `sharding` is "fsdp2", "zero2" or "zero3", or empty for a model that each process has whole.
    """

    log: list[dict[str, float]]
    metrics: dict[str, float]
    weights: dict[str, Tensor]
    sharding: str = ""


def make_trainer(
    method: str,
    output: Path,
    *,
    batch_size: int = GLOBAL_BATCH,
    lora: bool = False,
    by_name: bool = False,
    new_heads: bool = False,
    **settings: Any,
) -> Any:
    """A trainer whose optimiser step has `GLOBAL_BATCH` rows in micro-batches of `batch_size`, over all ranks.

    Args:
        by_name: whether the trainer loads the model, from a folder.
        new_heads: whether that is a language model, to which the reward trainer adds heads.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    common = {**COMMON, "gradient_accumulation_steps": GLOBAL_BATCH // (batch_size * ranks)}
    if method != "es":
        common |= {"bf16": False, "per_device_train_batch_size": batch_size, "per_device_eval_batch_size": 2}
    settings = {**common, **settings}
    unset_hf_deepspeed_config()  # else the trainer before this one has ZeRO-3 shard the model while it is made
    torch.manual_seed(0)
    model: Any = tiny_sequence_classifier(HEADS, seed=1) if method == "reward" and not new_heads else lively_lm(1)
    if by_name:
        model = _saved(model, output.with_name(f"{output.name}_model"))
    arguments = {"model": model, "processing_class": byte_tokenizer()}
    if lora:
        arguments["peft_config"] = LoraConfig(**LORA, task_type="SEQ_CLS" if method == "reward" else "CAUSAL_LM")
    return MAKERS[method](str(output), arguments, settings)


def _saved(model: Any, folder: Path) -> str:
    """The name of a folder with the model, which the first process writes."""
    state = PartialState()
    if state.is_main_process:
        model.save_pretrained(folder)
    state.wait_for_everyone()
    return str(folder)


def train(method: str, output: Path, *, resume: str | None = None, **settings: Any) -> Record:
    """Train, evaluate, and tell what it was."""
    trainer = make_trainer(method, output, **settings)
    trainer.train(resume_from_checkpoint=resume)
    return record_of(trainer)


def record_of(trainer: Any) -> Record:
    """Of a trainer that has trained. Collective: a sharded model is put together."""
    entries = (entry for entry in trainer.state.log_history if "loss" in entry)
    log = [{name: value for name, value in entry.items() if name in LOGGED} for entry in entries]
    metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    metrics = {name: value for name, value in metrics.items() if not name.startswith(OF_THE_SPLIT)}
    return Record(log, metrics, _weights(trainer), _sharding(trainer))


def _weights(trainer: Any) -> dict[str, Tensor]:
    named = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    if trainer.is_deepspeed_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return {name: state[name].clone() for name, weight in named.items() if weight.requires_grad and state}
    return {name: whole(weight.detach()).clone() for name, weight in named.items() if weight.requires_grad}


def _sharding(trainer: Any) -> str:
    if trainer.is_deepspeed_enabled:
        return f"zero{trainer.accelerator.deepspeed_plugin.zero_stage}"
    return "fsdp2" if any(isinstance(weight, DTensor) for weight in trainer.model.parameters()) else ""


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


def _reward(output: str, arguments: dict[str, Any], settings: dict[str, Any]) -> Trainer:
    rows, negatives = comparisons()
    own: dict[str, Any] = {
        "head_names": HEADS,
        "negatives_per_tier": 2,
        "regularizer": "center",
        "learning_rate": 1e-3,
    }
    own["tier_weights"] = {"soft": 2.0, "furthest": 0.5}
    args = MultiHeadRewardConfig(output, **{**own, **settings})
    _shard_on_cpu(args)
    arguments |= {"train_dataset": rows, "eval_dataset": rows.select(range(8, 15)), "negatives": negatives}
    return MultiHeadRewardTrainer(args=args, **arguments)


def _barrier(output: str, arguments: dict[str, Any], settings: dict[str, Any]) -> Trainer:
    has_adapter, names_reference = "peft_config" in arguments, {"ref", "precompute_ref"} & set(settings)
    own = BARRIER | {"tau_nats": 2.4 if has_adapter else 2.65}  # between the divergences of the sequences
    if has_adapter and not names_reference:
        own["ref"] = "base"
    elif not names_reference:
        arguments["ref_model"] = lively_lm(2)
    args = KLBarrierConfig(output, **{**own, **settings})
    _shard_on_cpu(args)
    rows = {"train_dataset": prompts_and_completions(32), "eval_dataset": prompts_and_completions(7, seed=1)}
    return KLBarrierTrainer(args=args, **arguments, **rows)


def _dpo(output: str, arguments: dict[str, Any], settings: dict[str, Any]) -> Trainer:
    own = PAIRS | ({"ref": "base"} if "peft_config" in arguments else {})
    args = ScheduledDPOConfig(output, **{**own, **settings})
    _shard_on_cpu(args)
    return ScheduledDPOTrainer(args=args, **arguments, train_dataset=pairs(32), eval_dataset=pairs(7, seed=1))


def _es(output: str, arguments: dict[str, Any], settings: dict[str, Any]) -> Trainer:
    args = ESLoRAConfig(output, **{**ES, **settings})
    _shard_on_cpu(args)
    arguments["peft_config"] = LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    return ESLoRATrainer(args=args, **arguments, reward_funcs=mean_code, train_dataset=prompts(16))


MAKERS: dict[str, Callable[[str, dict[str, Any], dict[str, Any]], Trainer]] = {
    "reward": _reward,
    "barrier": _barrier,
    "dpo": _dpo,
    "es": _es,
}


def _shard_on_cpu(args: Any) -> None:
    """accelerate turns FSDP on for GPUs alone, though it works between processes on the CPU as well."""
    if args.fsdp:
        PartialState().distributed_type = DistributedType.MULTI_GPU
