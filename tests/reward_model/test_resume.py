"""A run that is killed and resumed ends in the same weights as one that is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

RUN = Path(__file__).parent / "run_training.py"


def command(output: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(RUN), str(output), *arguments]


def finish(output: Path, *arguments: str) -> None:
    done = subprocess.run(command(output, *arguments), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # tests/faults has one such run of every trainer in the default tier
@pytest.mark.parametrize("data", ["pairs", "tiers"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, data):
    finish(tmp_path / "whole", "--data", data)
    arguments = command(tmp_path / "killed", "--data", data, "--wait-after", "5")
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 90
        while not (tmp_path / "killed" / "waiting").exists():  # past step 5, with a checkpoint of step 4 on disk
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "killed" / "final").exists()
    finish(tmp_path / "killed", "--data", data, "--resume")
    whole, resumed = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all((whole[name] == resumed[name]).all() for name in whole)
