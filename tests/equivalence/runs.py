"""Trainings of the four methods on two ranks, replicated (DDP) or sharded, and what one process makes of them.

A run is a case, and `@fsdp2` or `@zero` where ranks shard the model; with ZeRO the launcher's configuration says how.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch import Tensor

from tests.equivalence.trainings import FSDP2, GLOBAL_BATCH, Record, make_trainer, train

SHARDINGS = {"fsdp2": FSDP2, "zero": {}}
LORA = {"lora": True}
MOVING = {"ref": "ema", "ema_decay": 0.5}
# The method, and what is special.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "reward": ("reward", {}),
    "reward_by_name": ("reward", {"by_name": True}),
    "reward_new_heads": ("reward", {"by_name": True, "new_heads": True}),
    "reward_lora": ("reward", LORA),
    "reward_lora_by_name": ("reward", {**LORA, "by_name": True}),
    "barrier": ("barrier", {}),
    "barrier_lora": ("barrier", LORA),
    "barrier_step": ("barrier", {"aggregate_scope": "step", "tau_nats": 0.5}),
    "barrier_kept": ("barrier", {"precompute_ref": "hidden", "tau_nats": 0.001}),
    "barrier_moving": ("barrier", {**MOVING, "tau_nats": 0.001}),
    "barrier_moving_lora": ("barrier", {**LORA, **MOVING, "tau_nats": 0.001}),
    "dpo": ("dpo", {}),
    "dpo_lora": ("dpo", LORA),
    "dpo_moving": ("dpo", MOVING),
    "dpo_precomputed": ("dpo", {"precompute_ref_log_probs": True, "kl_steps": 0}),
    "dpo_without_kl": ("dpo", {"kl_steps": 0}),
    "dpo_lora_without_kl": ("dpo", {**LORA, "kl_steps": 0}),
    "es": ("es", {}),
}


def in_one_process(output: Path, run: str) -> Record:
    """The training of a run by one process that has the whole model and takes each step at once."""
    method, settings = CASES[run.partition("@")[0]]
    return train(method, output / "run", **_with_folders(settings, output))


def on_ranks(output: Path, run: str) -> None:
    """Train on ranks that accumulate two micro-batches of two rows; sharded, save at step 2 and resume from there.

    Of a run that is refused, which `refused_` before the case says, the message is left.
    """
    case, _, sharding = run.removeprefix("refused_").partition("@")
    method, settings = CASES[case]
    folder = output / run
    settings = {**_with_folders(settings, folder), "batch_size": GLOBAL_BATCH // 4}
    if not sharding:
        _write(train(method, folder, **settings), output / f"{run}.pt")
        return
    if run.startswith("refused_"):
        with pytest.raises(ValueError) as refusal:
            make_trainer(method, folder, **settings, **SHARDINGS[sharding])
        if PartialState().is_main_process:
            (output / f"{run}.txt").write_text(str(refusal.value))
        return
    settings |= {**SHARDINGS[sharding], "save_strategy": "steps", "save_steps": 2}
    _write(train(method, folder / "whole", **settings), output / f"{run}.pt")
    checkpoint = str(folder / "whole" / "checkpoint-2")
    _write(train(method, folder / "resumed", resume=checkpoint, **settings), output / f"{run}.resumed.pt")


def _with_folders(settings: dict[str, Any], output: Path) -> dict[str, Any]:
    """The cache of a reference that is kept is not that of another run."""
    is_kept = settings.keys() & {"precompute_ref", "precompute_ref_log_probs"}
    return settings | ({"ref_cache_dir": str(output / "reference")} if is_kept else {})


def _write(record: Record, path: Path) -> None:
    if PartialState().is_main_process:
        torch.save(vars(record), path)


def saved_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The model or adapter in a checkpoint, as everyone else reads it, by the names of the parameters."""
    files = [checkpoint / f"{name}.safetensors" for name in ("model", "adapter_model")]
    return load_file(next(path for path in files if path.is_file()))


def name_in_file(name: str) -> str:
    """What a parameter of a model under PEFT is called in the adapter's file."""
    return name.replace(".modules_to_save.default", "").replace(".default", "")


def read_record(path: Path) -> Record:
    return Record(**torch.load(path))
