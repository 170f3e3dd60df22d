"""The plan's benchmark: what it writes, and that its counter leaves out what comes before the mark."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_peak_of_a_training_leaves_out_that_of_its_construction(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from plan_workloads import PeakOfTraining

    recorder = PeakOfTraining()
    recorder.start()
    kept = torch.zeros(1 << 10)
    torch.zeros(1 << 20)
    recorder.mark()
    second = kept.exp()
    del kept, second
    assert recorder.stop() == 8 << 10


@pytest.mark.slow
def test_the_quick_form_writes_claims_that_are_met(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "plan.py"), "--quick", "--output", str(tmp_path / "quick.json")]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    record = json.loads((tmp_path / "quick.json").read_text())["plan"]
    assert (record["gpu"] is None) is not torch.cuda.is_available()
    assert all(claim["met"] for claim in record["claims"])
