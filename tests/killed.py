"""A training that is killed at a known place."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def kill_after_step_5(script: Path, output: Path, run: str) -> None:
    """Start a run of a script in a process of its own and kill it, with a checkpoint of step 3 on disk.

    The script takes a folder, the name of a run and `--wait-after STEP`, after which it touches `waiting` there.
    """
    command = [sys.executable, str(script), str(output), run, "--wait-after", "5"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **silent) as process:
        deadline = time.monotonic() + 90
        while not (output / "waiting").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
