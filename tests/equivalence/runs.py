"""Trainings of the four methods that are compared with one process: replicated (DDP), or sharded by FSDP2 or DeepSpeed.

A name is a method and what is special: `dpo`, `barrier-lora`, `reward-fsdp2`, `dpo-lora-fsdp2`.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from tests.equivalence.trainings import FSDP2, GLOBAL_BATCH, Record, record_of, train


def settings_of(run: str) -> tuple[str, dict[str, Any]]:
    """The method of a run, and its settings on ranks."""
    method, *special = run.split("-")
    return method, {"lora": "lora" in special, **(FSDP2 if "fsdp2" in special else {})}


def in_one_process(output: Path, run: str) -> Record:
    """The same training by one process, not sharded."""
    method, settings = settings_of(run)
    return train(method, output, lora=settings["lora"])


def on_ranks(output: Path, run: str) -> None:
    """Train, and write the record from the first rank."""
    method, settings = settings_of(run)
    record = train(method, output / run, batch_size=GLOBAL_BATCH // 4, **settings)
    if PartialState().is_main_process:
        torch.save(vars(record), output / f"{run}.pt")


def read_record(path: Path) -> Record:
    return Record(**torch.load(path))
