"""Killed with SIGKILL at any moment of a save, the next start ends as if there had been no kill."""

import json
import logging
import os
import random
import shutil
import signal
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from alignkit.reliability import check_checkpoint, newest_complete_checkpoint
from tests.faults.damages import MANIFEST, copy_checkpoints
from tests.faults.moments import before_each_change_in
from tests.faults.processes import finish, start
from tests.faults.trainings import METHODS, make_trainer

SAVING = ".saving"
SLOW = pytest.mark.slow


def train(method: str, folder: Path, resume: bool) -> None:
    make_trainer(method, folder, save_total_limit=2).train(resume_from_checkpoint=resume or None)


def steps_on_disk(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


# ---- At random moments ----


def wait_for_save(process: BaseProcess, folder: Path) -> None:
    """Until a save begins, or the process ends."""
    deadline = time.monotonic() + 60
    while not (folder / SAVING).exists() and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def time_of_save(process: BaseProcess, folder: Path) -> float:
    """Seconds that a save takes, measured from outside."""
    wait_for_save(process, folder)
    begun = time.monotonic()
    while (folder / SAVING).exists() and process.is_alive():
        time.sleep(0.0005)
    return time.monotonic() - begun


def killed_while_saving(method: str, folder: Path, chance: random.Random, *, resume: bool) -> str:
    """Train in a process that is killed at a random moment of its second or third save; what it printed."""
    log = folder.parent / f"{time.monotonic_ns()}.log"
    process = start(train, method, folder, resume, output=log)
    seconds = time_of_save(process, folder)
    for _ in range(chance.randrange(2)):
        time_of_save(process, folder)
    wait_for_save(process, folder)
    time.sleep(seconds * chance.random())
    process.kill()
    assert finish(process) == -signal.SIGKILL, log.read_text()
    return log.read_text()


def unfinished(folder: Path) -> list[str]:
    """Names of the checkpoints that were being written when the process was killed."""
    return [path.name for path in (folder / SAVING).glob("checkpoint-*")]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=SLOW) for seed in range(1, 10))])
@pytest.mark.parametrize("method", METHODS)
def test_killed_twice_at_random_moments_of_a_save_and_resumed_equals_uninterrupted(
    tmp_path, uninterrupted, caplog, method, seed
):
    folder, chance = tmp_path / "run", random.Random(f"{method} {seed}")
    killed_while_saving(method, folder, chance, resume=False)
    passed_over = unfinished(folder)
    printed = killed_while_saving(method, folder, chance, resume=True)
    assert all(f"{name} was being written when the run ended" in printed for name in passed_over)
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
            check_checkpoint(folder / f"checkpoint-{step}")
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
@pytest.mark.parametrize("method", ["dpo", *(pytest.param(method, marks=SLOW) for method in METHODS)])
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


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_that_plain_trl_was_killed_in_is_passed_over_by_name(tmp_path, uninterrupted, caplog, method):
    """Under its last name from the start, without a manifest: every beginning of the order in which it is written."""
    checkpoint = copy_checkpoints(uninterrupted(method).folder, tmp_path, 2, 3)
    (checkpoint / MANIFEST).unlink()
    (checkpoint / "counts.json").unlink(missing_ok=True)
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert max(files, key=lambda path: path.stat().st_mtime_ns).name == "trainer_state.json"
    assert newest_complete_checkpoint(tmp_path) == checkpoint
    for path in sorted(files, key=lambda path: -path.stat().st_mtime_ns):
        for half in (path.read_bytes()[: path.stat().st_size // 2], None):
            if half is None:
                path.unlink()
            else:
                path.write_bytes(half)
            is_found_later = path.suffix == ".safetensors" or path.name == "trainer_state.json"
            caplog.clear()
            if half is None or is_found_later or path.name != "trainer_state.json":
                assert newest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
                assert str(checkpoint) in caplog.text
    shutil.rmtree(tmp_path)
