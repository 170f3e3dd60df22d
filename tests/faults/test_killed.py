"""Killed with SIGKILL at any moment of a save, the next start ends as if there had been no kill."""

import json
import logging
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignkit.reliability import check_checkpoint, newest_complete_checkpoint
from tests.faults.damages import MANIFEST, copy_checkpoints, cut_in_half, files_of
from tests.faults.moments import before_each_change_in
from tests.faults.processes import finish, start
from tests.faults.trainings import METHODS, make_trainer

SAVING = ".saving"
SLOW = pytest.mark.slow


def steps_on_disk(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


# ---- At random moments ----


def train_and_die(method: str, folder: Path, resume: bool, save: int, share: float) -> None:
    """Die in the save of this number, when this share of the time that the save before it took has gone by."""
    n_saves, begun, took = 0, 0.0, 0.0

    def act(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal n_saves, begun, took
        if str(arguments[0]) != str(folder / SAVING):
            return
        if event == "os.mkdir" and not (folder / SAVING).exists():
            n_saves, begun = n_saves + 1, time.monotonic()
            if n_saves == save:
                threading.Timer(took * share, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif event == "os.rmdir" and n_saves:
            took = time.monotonic() - begun

    before_each_change_in(folder, act)
    make_trainer(method, folder, save_total_limit=2).train(resume_from_checkpoint=resume or None)


def unfinished(folder: Path) -> list[str]:
    """Names of the checkpoints that were being written when the process was killed."""
    return [path.name for path in (folder / SAVING).glob("checkpoint-*")]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=SLOW) for seed in range(1, 10))])
@pytest.mark.parametrize("method", METHODS)
def test_killed_twice_at_random_moments_of_a_save_and_resumed_equals_uninterrupted(
    tmp_path, uninterrupted, caplog, method, seed
):
    folder, log, chance = tmp_path / "run", tmp_path / "log", random.Random(f"{method} {seed}")
    passed_over: list[str] = []
    for resume in (False, True):
        process = start(train_and_die, method, folder, resume, chance.choice([2, 3]), chance.random(), output=log)
        assert finish(process) == -signal.SIGKILL, log.read_text()
        assert all(f"{name} was being written when the run ended" in log.read_text() for name in passed_over)
        passed_over = unfinished(folder)
    resumed = make_trainer(method, folder, save_total_limit=2)
    resumed.train(resume_from_checkpoint=True)
    assert all(f"{name} was being written when the run ended" in caplog.text for name in passed_over)
    uninterrupted(method).assert_equals(resumed)
    assert steps_on_disk(folder) == [7, 8] and not (folder / SAVING).exists()


# ---- At every moment ----


def train_and_look(method: str, folder: Path, record: Path) -> None:
    """Before every change to a file, note what each checkpoint is like and which of them a resume would take."""
    logging.disable()
    seen = []

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        steps = steps_on_disk(folder)
        for step in steps:
            assert check_checkpoint(folder / f"checkpoint-{step}") is not None  # with its manifest
        if steps:
            assert newest_complete_checkpoint(folder) == folder / f"checkpoint-{steps[-1]}"
        seen.append([event, steps])

    before_each_change_in(folder, look)
    make_trainer(method, folder, save_total_limit=2, max_steps=4).train()
    record.write_text(json.dumps(seen))


@pytest.mark.parametrize("method", METHODS)
def test_at_every_moment_each_checkpoint_is_complete_and_older_ones_go_last(tmp_path, method):
    process = start(train_and_look, method, tmp_path / "run", tmp_path / "seen", output=tmp_path / "log")
    assert finish(process) == 0, (tmp_path / "log").read_text()
    moments = Counter(tuple(steps) for _, steps in json.loads((tmp_path / "seen").read_text()))
    # A third checkpoint is there only while the oldest is about to go, and there are never fewer than there were.
    assert list(moments) == [(), (1,), (1, 2), (1, 2, 3), (2, 3), (2, 3, 4), (3, 4)]
    assert all(moments[steps] >= 10 for steps in [(), (1,), (1, 2), (2, 3)])


# ---- At chosen moments ----


def train_until(method: str, folder: Path, place: str) -> None:
    """Die right after a checkpoint has got its name, or while an older one is removed."""
    removed = 0

    def die(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal removed
        if steps_on_disk(folder)[-1:] != [6]:
            return
        removed += event == "os.remove"
        if place == "named" or removed == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    before_each_change_in(folder, die)
    make_trainer(method, folder, save_total_limit=2).train()


@pytest.mark.parametrize("place", ["named", "removing"])
@pytest.mark.parametrize("method", [pytest.param(name, marks=[] if name == "dpo" else [SLOW]) for name in METHODS])
def test_killed_after_a_checkpoint_is_named_it_is_resumed_and_two_complete_ones_stay(
    tmp_path, uninterrupted, method, place
):
    folder = tmp_path / "run"
    process = start(train_until, method, folder, place, output=tmp_path / "log")
    assert finish(process) == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert steps_on_disk(folder) == ([4, 5, 6] if place == "named" else [5, 6])
    assert newest_complete_checkpoint(folder).name == "checkpoint-6"
    resumed = make_trainer(method, folder, save_total_limit=2)
    resumed.train(resume_from_checkpoint=True)
    uninterrupted(method).assert_equals(resumed)
    assert steps_on_disk(folder) == [7, 8] and not (folder / SAVING).exists()


# ---- As plain TRL leaves them ----

OURS = [
    "counts.json",
    *(f"{name}{end}" for name in ("dpo", "kl_barrier") for end in ("_state.json", "_reference.safetensors")),
]


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_that_plain_trl_was_killed_in_is_passed_over_by_name(tmp_path, uninterrupted, caplog, method):
    """It has its last name from the start, and no manifest; `trainer_state.json` is the last file that is written."""
    checkpoint = copy_checkpoints(uninterrupted(method).folder, tmp_path, 2, 3)
    for path in (checkpoint / MANIFEST, *(checkpoint / name for name in OURS)):
        path.unlink(missing_ok=True)
    written = sorted((checkpoint / name for name in files_of(checkpoint)), key=lambda path: path.stat().st_mtime_ns)
    assert written[-1].name == "trainer_state.json"
    assert newest_complete_checkpoint(tmp_path) == checkpoint
    cut_in_half(written[-1])
    for path in reversed(written):
        caplog.clear()
        assert newest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
        assert re.search(r"checkpoint-3 is passed over: .*checkpoint-3/trainer_state\.json", caplog.text)
        path.unlink()
    assert newest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
