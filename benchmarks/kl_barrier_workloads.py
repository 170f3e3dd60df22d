"""Rows, models and trainers of the KL barrier's benchmark."""

import copy
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from common import be_quiet
from datasets import Dataset
from kl_barrier_peers import CompositionTrainer, LogitsTrainer
from kl_barrier_shapes import LORA_RANK, Shape, Side
from memory import MicroBatchPeak, ResidentPeak
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PreTrainedModel, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from alignkit import KLBarrierConfig, KLBarrierTrainer
from alignkit.tasks.toy import byte_tokenizer

BARRIER_WEIGHT = 1.0
STEPS_PER_EPOCH = 2


def random_model(shape: Shape) -> PreTrainedModel:
    """Random weights, as transformers draws them."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # billions of draws take minutes on a CPU
        return AutoModelForCausalLM.from_config(shape.config(), dtype=shape.dtype)


def random_rows(shape: Shape, batches: int) -> Dataset:
    """Rows of random tokens, all of the same length, with a label on every token."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(shape.vocab_size, (batches * shape.rows, shape.tokens), generator=generator)
    return Dataset.from_dict({"input_ids": rows.tolist()})


def new_trainer(
    shape: Shape,
    side: Side,
    model: PreTrainedModel,
    *,
    gradient_accumulation_steps: int = 1,
    callbacks: list[TrainerCallback] | None = None,
) -> SFTTrainer:
    """A side's trainer. Its frozen weights are those of `model`; its LoRA, on all linear layers, is its own.

    All sides have the same rows and the same LoRA, of which B is random, too: a fresh adapter has no divergence.
    """
    cuda = torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "output_dir": "trainer",
        "per_device_train_batch_size": shape.rows,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "max_length": None,
        "max_grad_norm": 0.0,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": True,
        "bf16": shape.dtype == torch.bfloat16,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    shared: dict[str, Any] = {
        "model": _sharing_weights(model),
        "train_dataset": random_rows(shape, STEPS_PER_EPOCH * gradient_accumulation_steps),
        "processing_class": byte_tokenizer(),
        "peft_config": LoraConfig(
            r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        "callbacks": callbacks,
    }
    barrier: dict[str, Any] = {
        "barrier_weight": BARRIER_WEIGHT,
        "tau_nats": side.tau_nats,
        "aggregate": side.aggregate,
    }
    torch.manual_seed(0)
    if side.trainer == "sft":
        trainer = SFTTrainer(args=SFTConfig(**arguments), **shared)
    elif side.trainer == "barrier":
        if side.is_cached:
            arguments |= {"precompute_ref": "hidden", "ref_cache_dir": tempfile.mkdtemp(dir=".")}
        trainer = KLBarrierTrainer(args=KLBarrierConfig(pressure_steps=0, **barrier, **arguments), **shared)
    else:
        peer = {"composition": CompositionTrainer, "logits": LogitsTrainer}[side.trainer]
        trainer = peer(args=SFTConfig(**arguments), **barrier, **shared)
    trainer.remove_callback(PrinterCallback)
    _move_adapter(trainer.model)
    return trainer


def _sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Another model with the very same parameters, so that many trainers hold one set of frozen weights."""
    return copy.deepcopy(model, memo={id(parameter): parameter for parameter in model.parameters()})


@torch.no_grad()
def _move_adapter(model: Any) -> None:
    """Give LoRA's B random values. Drawn on the CPU, so that they are the same everywhere."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def peak_memory(shape: Shape, sides: Sequence[Side]) -> dict[str, dict[str, int]]:
    """Peak bytes of each side, in a process of its own; see [`MicroBatchPeak`] and [`ResidentPeak`].

    Returns:
        `dict`: by name of the side, `allocated_bytes` of a micro-batch above weights, gradients and optimiser state,
        and `resident_bytes` of the first step above the process with its trainer.
    """
    # Nothing is timed, so two run at once.
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        peaks = processes.map(_peak_of_this_process, [shape] * len(sides), sides)
        return {side.name: peak for side, peak in zip(sides, peaks, strict=True)}


def _peak_of_this_process(shape: Shape, side: Side) -> dict[str, int]:
    be_quiet()
    allocated, resident = MicroBatchPeak(), ResidentPeak()
    trainer = new_trainer(
        shape, side, random_model(shape), gradient_accumulation_steps=2, callbacks=[resident, allocated]
    )
    trainer.args.max_steps = 2
    trainer.train()
    return {"allocated_bytes": allocated.peak_bytes, "resident_bytes": resident.peak_bytes}
