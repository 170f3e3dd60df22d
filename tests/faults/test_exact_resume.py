"""A training that was killed and resumed in a new process is the training that was not, bit for bit."""

import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from tests.faults.conftest import Ended
from tests.faults.processes import finish, start
from tests.faults.trainings import METHODS, log_of, make_trainer, state_of

KINDS = [(method, full) for method in METHODS for full in (False, True) if not (method == "es" and full)]
QUICK = {("reward", True), ("barrier", False), ("es", False), ("dpo", True)}
SLOW = pytest.mark.slow


class KillAfter(TrainerCallback):
    """Ends the process after a step, as by `kill -9`."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(method: str, folder: Path, full: bool, step: int, save_steps: int) -> None:
    make_trainer(method, folder, full=full, callbacks=[KillAfter(step)], save_steps=save_steps).train()


@pytest.mark.parametrize(
    ("method", "full"), [pytest.param(*kind, marks=[] if kind in QUICK else [SLOW]) for kind in KINDS]
)
def test_killed_in_the_middle_of_an_epoch_and_resumed_equals_uninterrupted(tmp_path, uninterrupted, method, full):
    folder = tmp_path / "run"
    process = start(train_until_killed, method, folder, full, 5, 3, output=tmp_path / "log")
    assert finish(process) == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-3"]
    resumed = make_trainer(method, folder, full=full, save_steps=3)
    resumed.train(resume_from_checkpoint=True)
    uninterrupted(method, full=full).assert_equals(resumed)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 7])  # 4 ends an epoch
@pytest.mark.parametrize(("method", "full"), KINDS)
def test_resumed_from_any_checkpoint_equals_uninterrupted(tmp_path, uninterrupted, method, full, step):
    whole = uninterrupted(method, full=full)
    resumed = make_trainer(method, tmp_path, full=full, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(whole.folder / f"checkpoint-{step}"))
    whole.assert_equals(resumed)


@pytest.mark.parametrize("method", [pytest.param(name, marks=[] if name == "barrier" else [SLOW]) for name in METHODS])
def test_resumed_from_the_last_step_takes_no_further_one(tmp_path, method):
    """In the middle of an epoch, where there are batches left to take one on."""
    whole, resumed = (make_trainer(method, tmp_path, max_steps=3, save_steps=3) for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=True)
    Ended(tmp_path, state_of(whole), log_of(whole)).assert_equals(resumed)


def test_after_a_checkpoint_between_two_logs_the_first_log_is_the_mean_of_the_steps_since_it(tmp_path, uninterrupted):
    whole = uninterrupted("barrier")
    make_trainer("barrier", tmp_path, logging_steps=3, save_steps=4).train()
    resumed = make_trainer("barrier", tmp_path, logging_steps=3, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert all(torch.equal(tensor, whole.state[name]) for name, tensor in state_of(resumed).items())
    losses = [entry["loss"] for entry in whole.log]
    means = {3: sum(losses[:3]) / 3, 6: sum(losses[4:6]) / 2}
    assert {entry["step"]: entry["loss"] for entry in log_of(resumed)} == pytest.approx(means)


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_holds_each_file_that_a_resume_reads(uninterrupted, method):
    """Without any one of them the rest of a training would not be the same."""
    folder = uninterrupted(method).folder / "checkpoint-3"
    own = {
        "reward": {"counts.json"},
        "barrier": {"counts.json", "kl_barrier_state.json", "kl_barrier_reference.safetensors"},
        "es": {"es_lora.json", "es_lora_anchor.safetensors"},
        "dpo": {"counts.json", "dpo_state.json", "dpo_reference.safetensors"},
    }
    common = {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    names = {path.name for path in folder.iterdir()}
    assert names >= common | own[method] | {"manifest.json"}
