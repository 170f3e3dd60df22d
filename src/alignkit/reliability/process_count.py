"""Who asks for several processes and gets one is told so; a launcher says nothing."""

import os

import torch


def check_process_count(device: torch.device, world_size: int) -> None:
    """Refuse to train alone where several processes were asked for.

    Where there is no second device `accelerate launch --num_processes 2` starts one process; all that is left of the 2
    is a `MASTER_ADDR` with no `WORLD_SIZE`. torchrun without `use_cpu` on a machine without a GPU starts processes
    that each train alone.

    Args:
        device, world_size: of the training's arguments.

    Raises:
        ValueError: in both cases, with the command that does start several processes.
    """
    if world_size > 1:
        return
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    lost = (
        "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    )
    if asked > 1 or lost:
        raise ValueError(
            f"{asked if asked > 1 else 'several'} {device.type.upper()} processes were asked for but this one trains "
            f"alone; start them with `torchrun --nproc_per_node N script.py{' --use_cpu' * (device.type == 'cpu')}`, "
            "or ask for one process (and unset MASTER_ADDR)"
        )
