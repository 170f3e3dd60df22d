"""A training of each method whose model FSDP2 shards over the GPUs that there are, be it one."""

from pathlib import Path

import torch
from accelerate import PartialState

from tests.equivalence.trainings import GLOBAL_BATCH, train


def on_ranks(output: Path, run: str) -> None:
    """Train, and leave the record of it."""
    record = train(run, output / run, use_cpu=False, batch_size=GLOBAL_BATCH // PartialState().num_processes)
    if PartialState().is_main_process:
        torch.save(vars(record), output / f"{run}.pt")
