"""Runs as processes of this machine: each in a session of its own, with a GPU of its own where there are several."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

STOP_TIMEOUT_S = 10.0


class LocalProcess:
    """A run that goes on in a process of its own.

    Args:
        command (`Sequence[str]`): what to run.
        log (`Path`): gets what it prints, behind what is there.
        lock (`int`): descriptor of the run's lock, which the process then holds too.
        gpu (`str`, *optional*): the only GPU that it sees.
    """

    def __init__(self, command: Sequence[str], log: Path, *, lock: int, gpu: str | None = None):
        environment = os.environ if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=[lock],
                env=environment,
                start_new_session=True,  # Ctrl-C at the terminal is for the experiment, which then stops its runs
            )

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it goes on."""
        return self.process.poll()

    def stop(self) -> None:
        """End the process and those that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None:
                return
            os.killpg(self.process.pid, number)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                continue


def visible_gpus() -> list[str]:
    """The GPUs that processes started here may use, as `CUDA_VISIBLE_DEVICES` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]
