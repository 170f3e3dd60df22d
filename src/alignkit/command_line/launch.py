"""A training command through `accelerate launch`, with a configuration that comes with alignkit or the user's own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from alignkit.command_line.one_line import unknown_word
from alignkit.spec_files import read_spec_file

CONFIGS = Path(str(resources.files("alignkit") / "accelerate_configs"))
ONE_PROCESS = "NO"  # accelerate's distributed_type of it


def config_file(name: str) -> Path:
    """The file of a configuration: the user's, or the one of that name that comes with alignkit.

    Raises:
        ValueError: neither; names the nearest.
    """
    if Path(name).is_file():
        return Path(name)
    known = {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}
    if name not in known:
        raise ValueError(f"accelerate_config: {unknown_word(name, known, 'file or configuration')} of {list(known)}")
    return known[name]


def launch_command(
    name: str, arguments: Sequence[str], accelerate_config: str, num_processes: int | None
) -> list[str]:
    """The command line that starts a training command in each process.

    Args:
        name: the training command.
        arguments: its arguments.
        accelerate_config: as the user gave it.
        num_processes: how many; by default what the file says, else one for each GPU.

    Raises:
        ValueError: no such file, one that no process count fits, or one for GPUs where torch sees none.
    """
    if "LOCAL_RANK" in os.environ:
        raise ValueError("accelerate_config starts processes, but a launcher has started this one; leave it out")
    path = config_file(accelerate_config)
    config: Any = read_spec_file(path, lambda content: content)
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no configuration of accelerate; make one with `accelerate config`")
    on_gpus = not config.get("use_cpu", False)
    if on_gpus and not torch.accelerator.is_available():
        raise ValueError(f"accelerate_config {accelerate_config} is for GPUs and torch sees none; take cpu or cpu_ddp")
    count = num_processes or config.get("num_processes") or torch.accelerator.device_count()
    if count > 1 and config.get("distributed_type", ONE_PROCESS) == ONE_PROCESS:
        raise ValueError(
            f"num_processes is {count}, but accelerate_config {accelerate_config} starts one process; take "
            f"{'ddp' if on_gpus else 'cpu_ddp'} for several"
        )
    if on_gpus and count > torch.accelerator.device_count():
        raise ValueError(f"num_processes is {count}, but torch sees {torch.accelerator.device_count()} GPUs")
    # Without --quiet accelerate shows its own traceback after that of a process that failed.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(path)]
    return [*launcher, "--num_processes", str(count), "-m", "alignkit.command_line.training", name, *arguments]


def launch(command: Sequence[str]) -> None:
    """Run the command and wait.

    Raises:
        SystemExit: with its exit code, where that is not 0.
    """
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(code)
