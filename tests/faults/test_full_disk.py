"""Where a checkpoint cannot be written the run ends with an error, and the last complete one is as it was."""

import math
import os
import re
import resource
from pathlib import Path

import pytest

from alignkit.reliability import check_checkpoint, newest_complete_checkpoint
from alignkit.storage import write_json
from tests.faults.damages import copy_checkpoints
from tests.faults.processes import finish, start
from tests.faults.trainings import METHODS, make_trainer

SLOW = pytest.mark.slow


def train_on_a_full_disk(method: str, folder: Path, largest_file: int) -> None:
    """Go on with a training in a process that can write no file of more bytes."""
    trainer = make_trainer(method, folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    trainer.train(resume_from_checkpoint=True)


def size_of(folder: Path, name: str) -> int:
    return (folder / name).stat().st_size


@pytest.mark.parametrize(
    ("method", "first_that_fails"),
    [
        ("barrier", "optimizer.pt"),
        ("es", "optimizer.pt"),
        *(pytest.param(method, "optimizer.pt", marks=SLOW) for method in ("reward", "dpo")),
        *(pytest.param(method, "adapter_model.safetensors", marks=SLOW) for method in METHODS),
        *(pytest.param(method, "tokenizer.json", marks=SLOW) for method in METHODS),
    ],
)
def test_on_a_full_disk_a_run_ends_with_an_error_and_resumes_exactly_from_its_last_checkpoint(
    tmp_path, uninterrupted, method, first_that_fails
):
    whole, folder = uninterrupted(method), tmp_path / "out"
    checkpoint = copy_checkpoints(whole.folder, folder, 5, 6)
    limit = size_of(checkpoint, first_that_fails) - 1
    process = start(train_on_a_full_disk, method, folder, limit, output=tmp_path / "output")
    assert finish(process, timeout_s=120) == 1
    *_, last = (tmp_path / "output").read_text().strip().splitlines()
    assert re.fullmatch(
        rf"OSError: {folder}/checkpoint-7 could not be written \(.+\); the checkpoints.* as they were", last
    )
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["checkpoint-5", "checkpoint-6"]
    for step in (5, 6):
        check_checkpoint(folder / f"checkpoint-{step}")
    resumed = make_trainer(method, folder)
    resumed.train(resume_from_checkpoint=True)
    whole.assert_equals(resumed)


def test_a_state_of_a_subclass_that_cannot_be_written_is_an_error_and_no_checkpoint(tmp_path, monkeypatch, caplog):
    trainer = make_trainer("barrier", tmp_path)
    write_parents, folders = trainer.save_own_state, []

    def write(folder: Path) -> None:
        write_parents(folder)
        folders.append(folder.name)
        write_json(folder / "own.json", {"share": [0.5, math.nan][len(folders) - 1]})

    monkeypatch.setattr(trainer, "save_own_state", write)
    with pytest.raises(ValueError, match=r"checkpoint-2/own\.json cannot hold {'share': nan}"):
        trainer.train()
    assert folders == ["checkpoint-1", "checkpoint-2"]  # once in a save
    assert "own.json" in check_checkpoint(tmp_path / "checkpoint-1")["files"]
    assert newest_complete_checkpoint(tmp_path).name == "checkpoint-1"
    assert "checkpoint-2 was being written when the run ended" in caplog.text


@pytest.mark.parametrize("method", METHODS)
def test_a_file_in_place_of_the_output_folder_is_an_error_before_the_first_step_that_names_it(tmp_path, method):
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises(OSError, match=f"{tmp_path / 'out'}"):
        make_trainer(method, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "not a folder"


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_that_cannot_be_written_to_is_an_error_before_the_first_step_that_names_it(method):
    folder = Path("/proc/self/task")  # in which not even root can make a file
    trainer = make_trainer(method, folder, callbacks=[])
    with pytest.raises(OSError, match=r"/proc/self/task cannot be written to.*output_dir"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_a_folder_without_the_right_to_write_is_an_error_before_the_first_step(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir(mode=0o555)
    trainer = make_trainer("barrier", folder)
    with pytest.raises(OSError, match=r"out cannot be written to \(Permission denied\)"):
        trainer.train()


def test_a_run_that_saves_nothing_needs_no_folder_to_write_to():
    trainer = make_trainer("barrier", Path("/proc/self/task"), save_strategy="no", max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1
