"""A run that is killed and resumed ends in the same bits, and the same history, as one that is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.es_lora.conftest import prompts, trained
from tests.es_lora.run_training import run

RUN = Path(__file__).parent / "run_training.py"
ROOT = RUN.parents[2]


def killed_in_step_6(output: Path, name: str) -> None:
    """Start a run in a process of its own that dies within step 6, with checkpoints of steps 2 and 4 on disk."""
    command = [sys.executable, str(RUN), str(output), name, "--kill-in", "6"]
    paths = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, timeout=90)
    assert done.returncode == -9, done.stderr[-2000:]


@pytest.mark.parametrize(
    "name", ["both", *(pytest.param(name, marks=pytest.mark.slow) for name in ("momentum", "lowrank"))]
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, name):
    killed_in_step_6(tmp_path / "killed", name)
    folder = tmp_path / "killed" / name
    assert len((folder / "results.jsonl").read_text().splitlines()) >= 5  # all but the running step
    resumed = run(folder, name, resume=True)
    whole = run(tmp_path / "whole", name)
    assert resumed.state.global_step == whole.state.global_step == 6
    for (key, expected), found in zip(trained(whole).items(), trained(resumed).values(), strict=True):
        assert torch.equal(found, expected), key
    histories = [(path / "results.jsonl").read_bytes() for path in (folder, tmp_path / "whole")]
    assert histories[0] == histories[1]
    assert [json.loads(line)["step"] for line in histories[0].splitlines()][-1] == 6
    logs = [[entry for entry in t.state.log_history if "loss" in entry] for t in (resumed, whole)]
    assert logs[0] == logs[1]


def test_a_checkpoint_that_was_not_written_to_its_end_is_left_aside(tmp_path, caplog):
    run(tmp_path, "both")
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": 1')
    again = run(tmp_path, "both", resume=True)
    assert "checkpoint-6 is passed over" in caplog.text and "trainer_state.json has 11 bytes" in caplog.text
    assert again.state.global_step == 6


def test_a_run_that_was_killed_after_its_last_checkpoint_takes_no_further_step(make_trainer):
    settings = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 4,
        "eval_dataset": prompts(3),
    }  # 3 are an epoch
    whole, again = make_trainer(**settings), make_trainer(**settings)
    whole.train()
    history = (whole._folder / "results.jsonl").read_bytes()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert all(torch.equal(weight, trained(whole)[name]) for name, weight in trained(again).items())
    assert (again._folder / "results.jsonl").read_bytes() == history


def test_an_evaluation_at_the_start_is_not_recorded_again_on_resuming(make_trainer):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_steps": 2, "eval_on_start": True}
    whole, again = (make_trainer(**settings, eval_dataset=prompts(3)) for _ in range(2))
    whole.train()
    history = (whole._folder / "results.jsonl").read_bytes()
    again.train(resume_from_checkpoint=str(whole._folder / "checkpoint-2"))
    assert (again._folder / "results.jsonl").read_bytes() == history
