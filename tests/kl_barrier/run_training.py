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

from alignkit import KLBarrierConfig, KLBarrierTrainer
from alignkit.tasks.toy import byte_tokenizer
from tests.callbacks import KeepGradients, WaitAfter
from tests.kl_barrier.conftest import QUIET, masked_rows, prompts_and_completions
from tests.tiny_models import lively_lm

LORA = {"r": 4, "target_modules": "all-linear"}
FSDP = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}
# What differs from run to run; thresholds lie between the divergences of the sequences.
RUNS: dict[str, dict[str, Any]] = {
    "sequence": {"aggregate": "rmse", "tau_nats": 2.65, "barrier_weight": 2.0, "learning_rate": 1e-4},
    "step": {"aggregate": "cvar95", "aggregate_scope": "step", "tau_nats": 3.0},
    "rank_global": {"aggregate": "p95", "aggregate_scope": "rank_global", "tau_nats": 3.0},
    "empty_rank": {"aggregate": "max", "aggregate_scope": "sequence", "tau_nats": 3.0, "rows": "half_of_them_masked"},
    "dual": {"target_kl": 0.5, "kl_direction": "forward"},
    "sharded": {"aggregate": "rmse", "tau_nats": 0.0, "learning_rate": 0.1, "on_ranks": FSDP},
    "sharded_adapter": {
        "aggregate_scope": "step",
        "tau_nats": 0.0,
        "learning_rate": 0.1,
        "peft_config": LORA,
        "on_ranks": FSDP,
    },
    "moving_reference": {
        "target_kl": 0.05,
        "ref": "ema",
        "ema_decay": 0.8,
        "peft_config": LORA | {"lora_dropout": 0.2},
    },
    "moving_copy": {"aggregate": "rmse", "tau_nats": 0.01, "ref": "ema", "ema_decay": 0.8},
    "step_with_dropout": {
        "aggregate": "rmse",
        "aggregate_scope": "step",
        "tau_nats": 0.001,
        "tau_schedule": "linear",
        "tau_nats_end": 0.02,
        "peft_config": LORA | {"lora_dropout": 0.2},
    },
}
OWN_REFERENCE = ("sequence", "step", "rank_global", "dual", "empty_rank")


def make_trainer(output: Path, run: str, *callbacks: TrainerCallback, **settings: Any) -> KLBarrierTrainer:
    options = {**RUNS[run], **settings}
    lora = options.pop("peft_config", None)
    on_ranks = options.pop("on_ranks", {})
    if os.environ.get("WORLD_SIZE"):
        options |= on_ranks
    train_rows, eval_rows = prompts_and_completions(32), prompts_and_completions(13, seed=1)
    if options.pop("rows", None) == "half_of_them_masked":  # all that the second of two ranks sees
        train_rows, eval_rows = masked_rows([number % 8 < 4 for number in range(32)]), masked_rows([True] * 13)
        options |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "train_sampling_strategy": "sequential"}
    args = KLBarrierConfig(str(output), **{**QUIET, **options})
    if args.fsdp:
        # accelerate turns FSDP on for GPUs alone, though it works between processes on the CPU as well.
        PartialState().distributed_type = DistributedType.MULTI_GPU
    torch.manual_seed(0)
    return KLBarrierTrainer(
        lively_lm(1),
        args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        ref_model=lively_lm(2) if run in OWN_REFERENCE else None,
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
        pressure_steps=1,
    )
    trainer.train()
    assert trainer.is_fsdp_enabled == bool(trainer.args.fsdp)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        record = {
            "processes": trainer.accelerator.num_processes,
            "log": [entry for entry in trainer.state.log_history if "loss" in entry],
            "metrics": {name: value for name, value in metrics.items() if "second" not in name and "time" not in name},
            "worst": [
                [worst.sequence, worst.position, worst.token_id] for worst in trainer.evaluation_report.worst_tokens
            ],
        }
        save_file(keep.by_step(), output / f"{run}.safetensors")
        (output / f"{run}.json").write_text(json.dumps(record))


def on_ranks(output: Path, run: str) -> None:
    """One of two ranks, each with half of the batch of `train_on_ranks(..., batch_size=8)`."""
    train_on_ranks(output, run, batch_size=4)


def train_to_the_end(output: Path, run: str, wait_after: int = 0, resume: bool = False) -> KLBarrierTrainer:
    """Eight steps, four in an epoch, with a checkpoint after three."""
    waits = [WaitAfter(wait_after, output / "waiting")] if wait_after else []
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 8}
    trainer = make_trainer(output, run, *waits, **settings, save_strategy="steps", save_steps=3, pressure_steps=3)
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
