"""Trainers of the DPO benchmark, and what is counted while they run."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, get_args
from unittest.mock import patch

import torch
from common import FirstGradient
from datasets import Dataset
from dpo_shapes import LORA_RANK, Shape
from flops import flop_counter
from memory import MicroBatchPeak
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from alignkit import ScheduledDPOConfig, ScheduledDPOTrainer
from alignkit.tasks.toy import byte_tokenizer

Side = Literal["TRL", "alignkit", "alignkit, unshared"]
SIDES: tuple[Side, ...] = get_args(Side)
# Longer than every row, and not None, under which TRL keys its precomputed log-probabilities otherwise.
MAX_LENGTH = 2048
# The log-probability of 512 tokens is known to 2e-4 nats in float32; its share of the loss must stay below 1e-5.
BETA = 0.01


def random_model(shape: Shape) -> PreTrainedModel:
    """Random weights, as transformers draws them; the same at every call."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(shape.config(), dtype=shape.dtype)


def new_trainer(
    side: Side,
    model: PreTrainedModel,
    rows: Dataset,
    *,
    pairs: int,
    callbacks: list[TrainerCallback] | None = None,
    lora: LoraConfig | None = None,
    **settings: Any,
) -> DPOTrainer:
    """A side's trainer; rows in their order, LoRA on all linear layers, the reference is the adapter switched off.

    LoRA's B is drawn, too: a fresh adapter would be its own reference.
    """
    cuda = torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "output_dir": "trainer",
        "per_device_train_batch_size": pairs,
        "max_length": MAX_LENGTH,
        "beta": BETA,
        "max_grad_norm": 0.0,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": True,
        "bf16": False,
        "train_sampling_strategy": "sequential",
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **settings,
    }
    shared: dict[str, Any] = {
        "model": model,
        "train_dataset": rows,
        "processing_class": byte_tokenizer(),
        "peft_config": lora
        or LoraConfig(
            r=LORA_RANK,
            lora_alpha=2 * LORA_RANK,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            init_lora_weights=False,
        ),
        "callbacks": callbacks,
    }
    torch.manual_seed(0)
    if side == "TRL":
        trainer = DPOTrainer(args=DPOConfig(**arguments), **shared)
    else:
        own: dict[str, Any] = {"ref": "base", "kl_steps": 0, "share_prefix": side == "alignkit"}
        trainer = ScheduledDPOTrainer(args=ScheduledDPOConfig(**own | arguments), **shared)
    trainer.remove_callback(PrinterCallback)
    return trainer


@contextlib.contextmanager
def head_at_completions() -> Iterator[None]:
    """Let TRL's head, which both sides use, project the positions of completions only, as it does on a GPU.

    TRL's forward asks `_use_triton(device)` whether to choose them; its kernels, which look for Triton by themselves,
    stay those of a CPU.
    """
    with patch("trl.trainer.utils._use_triton", lambda device: True):
        yield


# ---- What is counted ----


class Counted:
    """One pass over the batches, at a learning rate of 0: its loss, its first gradient, its operations.

    Attributes:
        loss (`Tensor`): mean over the batches.
        gradient (`Tensor`): of the first batch, all trained parameters in one vector.
        flops (`int`): floating-point operations of the steps.
    """

    def __init__(self, trainer: Any, batches: int):
        gradient = FirstGradient()
        trainer.add_callback(gradient)
        trainer.args.max_steps = batches
        with flop_counter() as counter:
            loss = trainer.train().training_loss
        assert gradient.gradient is not None
        self.loss = torch.tensor(loss, dtype=torch.float64)
        self.gradient = gradient.gradient
        self.flops = counter.get_total_flops()


def micro_batch_peak(side: Side, shape: Shape, rows: Dataset, pairs: int) -> int:
    """Peak of tensor bytes of a micro-batch above weights, gradients and optimiser state; see `MicroBatchPeak`."""
    peak = MicroBatchPeak()
    trainer = new_trainer(
        side, random_model(shape), rows, pairs=pairs, callbacks=[peak], gradient_accumulation_steps=2
    )
    trainer.args.max_steps = 2
    trainer.train()
    return peak.peak_bytes


class ReferenceForwards:
    """Counts the forwards of a model's backbone that leave no graph: those of the reference."""

    def __init__(self, model: PreTrainedModel):
        self.n = 0
        model.base_model.register_forward_pre_hook(self._count)

    def _count(self, module: Any, args: Any) -> None:
        self.n += not torch.is_grad_enabled()


class HostWaits(TorchDispatchMode):
    """Counts operations for which a host would wait on a GPU: numbers read, and shapes that depend on values.

    Attributes:
        by_package (`Counter`): how many were asked for by the code of which package.
    """

    READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
    PACKAGES = ("alignkit", "trl", "peft", "transformers", "accelerate")

    def __init__(self) -> None:
        super().__init__()
        self.by_package: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        by_mask = name in ("aten::index", "aten::index_put_", "aten::index_put") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in self.READS or by_mask:
            self.by_package[self._caller()] += 1
        return func(*args, **(kwargs or {}))

    def _caller(self) -> str:
        frame: Any = sys._getframe(2)
        while frame is not None:
            package = frame.f_globals.get("__name__", "").split(".")[0]
            if package in self.PACKAGES:
                return package
            frame = frame.f_back
        return "torch"


def host_waits(trainer: DPOTrainer) -> dict[str, int]:
    """Of the second micro-batch's forward, loss and backward; what a first one sets up is left out."""
    waits = HostWaits()
    step = trainer.training_step

    def watched(*args: Any, **kwargs: Any) -> Any:
        with waits if trainer.state.global_step == 1 else contextlib.nullcontext():
            return step(*args, **kwargs)

    trainer.training_step = watched  # type: ignore[method-assign]
    trainer.args.max_steps = 2
    trainer.train()
    return dict(waits.by_package)
