"""Small training runs in a process of their own, for the tests of resuming and of several ranks.

python run_training.py FOLDER RUN --wait-after STEP
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import TrainerCallback

from alignkit import ScheduledDPOConfig, ScheduledDPOTrainer
from alignkit.tasks.toy import byte_tokenizer
from tests.callbacks import KeepGradients, WaitAfter
from tests.dpo.conftest import QUIET, pairs
from tests.tiny_models import lively_lm

LORA = {"r": 4, "target_modules": "all-linear"}
FSDP = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}
DROPOUT = {"disable_dropout": False, "share_prefix": False}
# What differs from run to run.
RUNS: dict[str, dict[str, Any]] = {
    "shared": {"beta": 0.3, "beta_schedule": "linear", "beta_end": 0.1, "kl_steps": 1},
    "unshared": {"share_prefix": False, "kl_steps": 2},
    "own_betas": {"peft_config": LORA, "betas": True},
    "dynamic": {"dynamic_beta_alpha": 0.5, "peft_config": LORA},
    "target": {"target_kl": 0.05, "kl_steps": 1, "peft_config": LORA, "gradient_checkpointing": True},
    "precomputed": {"peft_config": LORA, "precompute_ref_log_probs": True},
    "sharded": {"kl_steps": 1, "on_ranks": FSDP},
    "sharded_adapter": {"peft_config": LORA, "kl_steps": 1, "on_ranks": FSDP, "gradient_checkpointing": True},
    "sharded_precomputed": {"precompute_ref_log_probs": True, "on_ranks": FSDP},
    "dynamic_with_dropout": {"dynamic_beta_alpha": 0.5, "peft_config": LORA | {"lora_dropout": 0.2}, **DROPOUT},
    "target_of_moving_reference": {
        "target_kl": 0.001,
        "kl_steps": 2,
        "ref": "ema",
        "ema_decay": 0.8,
        "peft_config": LORA | {"lora_dropout": 0.2},
        **DROPOUT,
    },
    "moving_copy": {"beta_schedule": "cosine", "beta_end": 0.02, "ref": "ema", "ema_decay": 0.8},
}


def make_trainer(output: Path, run: str, *callbacks: TrainerCallback, **settings: Any) -> ScheduledDPOTrainer:
    options = {**RUNS[run], **settings}
    lora = options.pop("peft_config", None)
    on_ranks = options.pop("on_ranks", {})
    if os.environ.get("WORLD_SIZE"):
        options |= on_ranks
    train_rows, eval_rows = pairs(32), pairs(13, seed=1)
    if options.pop("betas", False):
        train_rows = train_rows.add_column("beta", [0.05 * (1 + number % 7) for number in range(32)])
    defaults = {"kl_steps": 0, "ref_cache_dir": str(output / "ref_logps")}
    args = ScheduledDPOConfig(str(output), **{**QUIET, **defaults, **options})
    if args.fsdp:
        # accelerate turns FSDP on for GPUs alone, though it works between processes on the CPU as well.
        PartialState().distributed_type = DistributedType.MULTI_GPU
    torch.manual_seed(0)
    return ScheduledDPOTrainer(
        lively_lm(1),
        args=args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=byte_tokenizer(),
        peft_config=None if lora is None else LoraConfig(**lora),
        callbacks=list(callbacks),
    )


def train_on_ranks(output: Path, run: str, batch_size: int) -> None:
    """Three steps of two micro-batches, all gradients kept, and an evaluation."""
    keep = KeepGradients()
    trainer = make_trainer(
        output / run,
        run,
        keep,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=3,
        max_steps=3,
        optim="sgd",
        learning_rate=0.1,
    )
    trainer.train()
    assert trainer.is_fsdp_enabled == bool(trainer.args.fsdp)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        record = {
            "processes": trainer.accelerator.num_processes,
            "log": [entry for entry in trainer.state.log_history if "loss" in entry],
            "metrics": {name: value for name, value in metrics.items() if "logratio" in name or "kl/" in name},
        }
        save_file(keep.by_step(), output / f"{run}.safetensors")
        (output / f"{run}.json").write_text(json.dumps(record))


def on_ranks(output: Path, run: str) -> None:
    """One of two ranks, each with half of the batch of `train_on_ranks(..., batch_size=8)`."""
    train_on_ranks(output, run, batch_size=4)


def train_to_the_end(output: Path, run: str, wait_after: int = 0, resume: bool = False) -> ScheduledDPOTrainer:
    """Eight steps, four in an epoch, with a checkpoint after three."""
    waits = [WaitAfter(wait_after, output / "waiting")] if wait_after else []
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 8}
    trainer = make_trainer(output, run, *waits, **settings, save_strategy="steps", save_steps=3)
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--wait-after", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    train_to_the_end(options.output, options.run, options.wait_after)


if __name__ == "__main__":
    main()
