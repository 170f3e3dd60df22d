"""SIGTERM ends a run with a checkpoint of the step that it was in, and with exit code 143."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from alignkit.reliability import check_checkpoint
from tests.faults.processes import finish, start, start_ranks
from tests.faults.trainings import METHODS, make_trainer, state_of
from tests.kl_barrier.conftest import prompts_and_completions

ASKED = 143
STEP = 3


class WaitInStep(TrainerCallback):
    """Stands still in a step until it is told to go on, so that a signal arrives within it."""

    def __init__(self, step: int, folder: Path):
        self._step, self._folder = step, folder

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self._step:
            (self._folder / f"in-step-{args.process_index}").touch()
            wait_for(self._folder / "go-on")


def wait_for(path: Path, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"waited too long for {path}"
        time.sleep(0.005)


def train(method: str, folder: Path, *, own_handler: bool = False, **settings: Any) -> None:
    notes = folder.parent

    def note(*arguments: Any) -> None:
        (notes / "handled").touch()

    if own_handler:
        signal.signal(signal.SIGTERM, note)
    options = {"save_steps": 100, **settings}
    make_trainer(method, folder, callbacks=[WaitInStep(STEP, notes)], **options).train()
    assert signal.getsignal(signal.SIGTERM) is (note if own_handler else signal.SIG_DFL)
    (notes / "finished").touch()


def terminated(tmp_path: Path, method: str, *, times: int = 1, **settings: Any) -> int:
    """Exit code of a training that got SIGTERM in its third step."""
    process = start(train, method, tmp_path / "out", output=tmp_path / "output", **settings)
    wait_for(tmp_path / "in-step-0")
    assert process.pid is not None
    for _ in range(times):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.05)  # two at once are one
    (tmp_path / "go-on").touch()
    return finish(process, timeout_s=120)


def checkpoints_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize("method", METHODS)
def test_after_a_sigterm_the_step_is_finished_and_saved_and_the_run_goes_on_from_it_exactly(
    tmp_path, uninterrupted, method
):
    assert terminated(tmp_path, method) == ASKED
    assert checkpoints_in(tmp_path / "out") == [f"checkpoint-{STEP}"]
    check_checkpoint(tmp_path / "out" / f"checkpoint-{STEP}")
    assert f"SIGTERM: ended after step {STEP}, checkpoint-{STEP} is complete" in (tmp_path / "output").read_text()
    assert not (tmp_path / "finished").exists()
    resumed = make_trainer(method, tmp_path / "out", save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    uninterrupted(method).assert_equals(resumed)


def test_a_second_sigterm_ends_the_process_at_once(tmp_path):
    assert terminated(tmp_path, "barrier", times=2) == -signal.SIGTERM
    assert checkpoints_in(tmp_path / "out") == []


def test_a_process_with_a_handler_of_its_own_keeps_it_and_goes_on(tmp_path):
    assert terminated(tmp_path, "barrier", own_handler=True) == 0
    assert (tmp_path / "handled").exists() and (tmp_path / "finished").exists()
    assert checkpoints_in(tmp_path / "out") == ["checkpoint-8"]


@pytest.mark.parametrize("settings", [{"save_strategy": "no"}, {"enable_jit_checkpoint": False}])
def test_a_run_that_does_not_save_or_shall_not_heed_it_is_ended_at_once(tmp_path, settings):
    assert terminated(tmp_path, "barrier", **settings) == -signal.SIGTERM
    assert checkpoints_in(tmp_path / "out") == []


class TerminateItself(TrainerCallback):
    """Sends its own process a SIGTERM in the third step, and notes what the trainer does from then on."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == STEP:
            os.kill(os.getpid(), signal.SIGTERM)
            self.done.clear()

    def on_save(self, args, state, control, **kwargs):
        self.done.append("saved")

    def on_evaluate(self, args, state, control, **kwargs):
        self.done.append("evaluated")


def ended_by_itself(folder: Path, **settings: Any) -> list[str]:
    terminate = TerminateItself()
    rows = prompts_and_completions(4)
    trainer = make_trainer("barrier", folder, callbacks=[terminate], eval_dataset=rows, **settings)
    with pytest.raises(SystemExit) as end:
        trainer.train()
    assert end.value.code == ASKED
    return terminate.done


def test_a_run_that_saves_and_evaluates_by_epochs_saves_once_and_evaluates_nothing(tmp_path):
    assert ended_by_itself(tmp_path, save_strategy="epoch", eval_strategy="epoch") == ["saved"]
    assert checkpoints_in(tmp_path) == [f"checkpoint-{STEP}"]


def test_the_last_checkpoint_stays_beside_the_best_one_though_one_alone_is_to_be_kept(tmp_path):
    """Of a run that is not cut short the Trainer removes the last one at the end."""
    settings = {"save_total_limit": 1, "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1}
    assert ended_by_itself(tmp_path, **settings, greater_is_better=True) == ["saved"]
    best, last = checkpoints_in(tmp_path)
    assert best in ("checkpoint-1", "checkpoint-2") and last == f"checkpoint-{STEP}"
    check_checkpoint(tmp_path / last)


def test_a_sigterm_in_the_last_step_lets_the_run_end_as_ever(tmp_path):
    assert terminated(tmp_path, "barrier", max_steps=STEP) == 0
    assert (tmp_path / "finished").exists()
    assert checkpoints_in(tmp_path / "out") == [f"checkpoint-{STEP}"]


# ---- Two ranks ----


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_sigterm_to_one_of_two_ranks_makes_both_save_and_end_and_they_resume_exactly(tmp_path, method):
    ranks = start_ranks(2, train, method, tmp_path / "out", output=tmp_path / "output")
    for rank in (0, 1):
        wait_for(tmp_path / f"in-step-{rank}")
    assert ranks[1].pid is not None
    os.kill(ranks[1].pid, signal.SIGTERM)
    (tmp_path / "go-on").touch()
    assert [finish(process, timeout_s=120) for process in ranks] == [ASKED, ASKED]
    assert checkpoints_in(tmp_path / "out") == [f"checkpoint-{STEP}"]
    check_checkpoint(tmp_path / "out" / f"checkpoint-{STEP}")
    states = []
    for name, resume in (("out", True), ("whole", False)):
        folder = tmp_path / name
        ranks = start_ranks(2, train_to_the_end, method, folder, resume, output=tmp_path / f"output-{name}")
        assert [finish(process, timeout_s=120) for process in ranks] == [0, 0]
        states.append(load_file(folder / "state.safetensors"))
    assert states[0].keys() == states[1].keys()
    assert [name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])] == []


def train_to_the_end(method: str, folder: Path, resume: bool) -> None:
    trainer = make_trainer(method, folder, save_steps=100)
    assert trainer.args.world_size == 2
    trainer.train(resume_from_checkpoint=resume or None)
    if trainer.is_world_process_zero():
        save_file(state_of(trainer), folder / "state.safetensors")
