"""Two gloo ranks compute the bits of one process, also with a slow rank, failing members and a P that is odd."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.es_lora.conftest import trained
from tests.es_lora.run_training import FailingAndSlow, run

RUN = Path(__file__).parent / "run_training.py"
RUNS = ["momentum", "odd", "both", "lowrank"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """Results of all runs on two ranks: one start for all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, str(RUN), str(folder), *RUNS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_equal_one_process_bit_for_bit(tmp_path, two_ranks, name):
    trainer = run(tmp_path, name, FailingAndSlow())
    assert (two_ranks / f"{name}.processes").read_text() == "2"
    for key, found in torch.load(two_ranks / f"{name}.pt").items():
        assert torch.equal(found, trained(trainer)[key]), key
    one, two = (
        [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        for folder in (tmp_path, two_ranks / name)
    )
    for records in (one, two):  # ranks give their members' completions one after the other
        for record in records:
            record["completions"] = sorted(record.get("completions", []), key=str)
    assert one == two
    if name in ("odd", "lowrank"):
        assert all(
            {row["member"] for row in record["completions"]} > {"centre"} for record in one if "fitness" in record
        )
    if name == "odd":
        assert any(record.get("failed") for record in one)
