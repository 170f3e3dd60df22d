"""Two gloo ranks compute the bits of one process, also with a slow rank, failing members and a P that is odd."""

import json

import pytest
import torch

from tests.es_lora.conftest import trained
from tests.es_lora.run_training import FailingAndSlow
from tests.es_lora.run_training import run as train

ON_RANKS = "tests.es_lora.run_training"
RUNS = ["momentum", "odd", "both", "lowrank"]


@pytest.mark.parametrize("run", RUNS)
def test_two_ranks_equal_one_process_bit_for_bit(tmp_path, two_ranks, run):
    trainer, ranks = train(tmp_path, run, FailingAndSlow()), two_ranks / ON_RANKS
    assert (ranks / f"{run}.processes").read_text() == "2"
    for key, found in torch.load(ranks / f"{run}.pt").items():
        assert torch.equal(found, trained(trainer)[key]), key
    one, two = (
        [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        for folder in (tmp_path, ranks / run)
    )
    for records in (one, two):  # ranks give their members' completions one after the other
        for record in records:
            record["completions"] = sorted(record.get("completions", []), key=str)
    assert one == two
    if run in ("odd", "lowrank"):
        assert all(
            {row["member"] for row in record["completions"]} > {"centre"} for record in one if "fitness" in record
        )
    if run == "odd":
        assert any(record.get("failed") for record in one)
