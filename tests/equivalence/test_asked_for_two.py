"""Who asks for two processes and gets one is told so, by every trainer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.equivalence.trainings import METHODS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MULTI_CPU = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
use_cpu: true
num_machines: 1
num_processes: 2
machine_rank: 0
mixed_precision: "no"
"""


@pytest.mark.parametrize("asked_by", ["options", "config"])
def test_two_cpu_processes_of_which_accelerate_starts_one_are_refused_by_every_trainer(tmp_path, asked_by):
    (tmp_path / "mine.yaml").write_text(MULTI_CPU)
    asked = {
        "options": ["--cpu", "--num_processes", "2"],
        "config": ["--config_file", str(tmp_path / "mine.yaml")],
    }
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *asked[asked_by]]
    environment = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "LOCAL_RANK")}
    script = Path(__file__).with_name("make_each.py")
    command = [*launcher, str(script), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if "CPU processes were asked for but this one trains" in line]
    assert [line.partition(":")[0] for line in lines] == list(METHODS)
