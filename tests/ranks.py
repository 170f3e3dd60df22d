"""One pair of processes for all tests that compare two ranks with one: their start takes longer than the trainings.

A test asks for it with the fixture `two_ranks` and is parametrised by `run`; its module names in `ON_RANKS` the module
whose `on_ranks(output, run)` trains. The first such test of a session starts the runs of all the tests selected.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from filelock import FileLock

from alignkit.command_line.launch import config_file

SCRIPT = Path(__file__).with_name("run_on_ranks.py")
# Waiting for the other workers' start included.
SECONDS = 500


def asked_for(items: Iterable[pytest.Item]) -> list[str]:
    """`MODULE:RUN` of every selected test on two ranks; the same in each worker."""
    return sorted({f"{item.module.ON_RANKS}:{item.callspec.params['run']}" for item in items if on_ranks(item)})


def on_ranks(item: pytest.Item) -> bool:
    """Whether a test asks for the fixture."""
    return "two_ranks" in getattr(item, "fixturenames", ())


def launch(folder: Path, runs: list[str], config: Path, *, python: str = sys.executable, n_processes: int = 2) -> None:
    """Train on ranks through `accelerate launch`, or fail with what the processes said."""
    command = [python, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(config)]
    command += ["--num_processes", str(n_processes), "--main_process_port", "0", str(SCRIPT), str(folder), *runs]
    # Of a file: a pipe would fill up, or be kept open by a process that is left over.
    with (folder / "output.txt").open("w") as output:
        done = subprocess.run(
            command, stdout=output, stderr=output, timeout=SECONDS, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    if done.returncode != 0:
        pytest.fail((folder / "output.txt").read_text()[-6000:], pytrace=False)


def launch_once(folder: Path, runs: list[str]) -> None:
    """The runs of a session, by whichever worker comes first; where they failed, they fail for every worker."""
    with FileLock(folder / "lock", timeout=SECONDS):
        started = folder / "started"
        if not started.exists():
            started.touch()
            launch(folder, runs, config_file("cpu_ddp"))
            (folder / "done").touch()
    if not (folder / "done").exists():
        pytest.fail(f"the runs on two ranks failed: see {folder / 'output.txt'}", pytrace=False)
