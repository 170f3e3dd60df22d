"""Tiny trainings of TRL's own trainers, and what is left of one, for measuring what they do under faults."""

import json
import resource
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from alignkit.tasks.toy import byte_tokenizer, tiny_sequence_classifier
from tests.dpo.conftest import pairs
from tests.kl_barrier.conftest import prompts_and_completions
from tests.tiny_models import lively_lm

METHODS = ("RewardTrainer", "SFTTrainer", "DPOTrainer")
KINDS: dict[str, tuple[Any, Any]] = {
    "RewardTrainer": (RewardConfig, RewardTrainer),
    "SFTTrainer": (SFTConfig, SFTTrainer),
    "DPOTrainer": (DPOConfig, DPOTrainer),
}
SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "activation_checkpointing": False,
    "max_steps": 8,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
}
LORA = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}
N_ROWS = 16
BEGUN, OUTCOME, WEIGHTS = "begun", "outcome.json", "weights.safetensors"


class ShowBeginning(TrainerCallback):
    """Touches a file after the first step, for whoever waits for it."""

    def on_step_end(self, args, state, control, **kwargs):
        (Path(args.output_dir) / BEGUN).touch()


def rows_of(method: str) -> Dataset:
    return prompts_and_completions(N_ROWS) if method == "SFTTrainer" else pairs(N_ROWS)


def model_of(method: str, **config: Any) -> Any:
    if method == "RewardTrainer":
        return tiny_sequence_classifier(["score"], seed=1, **{"hidden_size": 16, **config})
    return lively_lm(1, **{"hidden_size": 16, **config})


def make_plain_trainer(method: str, output: Path, *callbacks: TrainerCallback, **settings: Any) -> Any:
    """A trainer of 8 steps that saves each; `settings` go to the config unless the trainer takes them, or `lora`."""
    own = ("model", "train_dataset", "eval_dataset")
    task = {"task_type": "SEQ_CLS"} if method == "RewardTrainer" else {}
    lora = LoraConfig(**{**LORA, **settings.pop("lora", {})}, **task)
    given = {"model": model_of(method), "train_dataset": rows_of(method), "peft_config": lora}
    given |= {name: settings.pop(name) for name in own if name in settings}
    config, kind = KINDS[method]
    if method != "SFTTrainer":
        settings = {"disable_dropout": False, **settings}
    torch.manual_seed(0)
    return kind(
        args=config(str(output), **{**SETTINGS, **settings}),
        processing_class=byte_tokenizer(),
        callbacks=list(callbacks),
        **given,
    )


def trained(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def train(
    method: str,
    output: Path,
    *,
    resume: bool | str = False,
    nan_in: str | None = None,
    rows: list[dict[str, Any]] | None = None,
    largest_file: int | None = None,
    **settings: Any,
) -> None:
    """The work of a child process: a training, and beside it `outcome.json` and `weights.safetensors`.

    Args:
        nan_in: part of the name of the weights of which one value is made NaN.
        rows: in place of the method's own.
        largest_file: bytes; the disk is full for what is larger.
    """
    if rows is not None:
        settings["train_dataset"] = Dataset.from_list(rows)
    trainer = make_plain_trainer(method, output, ShowBeginning(), **settings)
    if nan_in is not None:
        _, weight = next(item for item in trainer.model.named_parameters() if nan_in in item[0])
        weight.data.view(-1)[0] = torch.nan
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    trainer.train(resume_from_checkpoint=resume or None)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    outcome = {
        "steps": trainer.state.global_step,
        "losses": [entry["loss"] for entry in log],
        "learning_rates": [entry["learning_rate"] for entry in log],
        "tensors": len(trained(trainer)),
        "tensors_with_nan": sum(bool(weight.isnan().any()) for weight in trained(trainer).values()),
    }
    save_file({name: weight.contiguous() for name, weight in trained(trainer).items()}, output / WEIGHTS)
    (output / OUTCOME).write_text(json.dumps(outcome), encoding="utf-8")
