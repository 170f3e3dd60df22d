"""A run that is killed at any point and started again ends in the numbers of one that is not; damage is named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.kl_barrier.rounds.run_loop import results_of, run_tiny

RUN = Path(__file__).parent / "run_loop.py"


def run_script(folder: Path, mode: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(RUN), str(folder), mode], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_again_and_again_equals_uninterrupted(finished_run, tmp_path):
    attempts = int(run_script(tmp_path / "killed", "killed").splitlines()[-1])
    assert attempts >= 6  # before and after renames, and in the middle of training
    assert results_of(tmp_path / "killed") == results_of(finished_run)
    for name in ("round_1/delta", "round_1/adapter", "round_2/delta", "round_2/adapter"):
        whole, resumed = (
            load_file(folder / name / "adapter_model.safetensors") for folder in (finished_run, tmp_path / "killed")
        )
        assert whole.keys() == resumed.keys()
        assert all((whole[key] == resumed[key]).all() for key in whole)
    assert not list((tmp_path / "killed").rglob("*.partial"))


def test_a_finished_run_is_not_run_again(a_copy):
    folder = a_copy()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("round_*/**/*")}
    records = run_tiny(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("round_*/**/*")} == before
    assert records[-1]["stop_reason"] == "all 2 rounds that were asked for are done"


@pytest.mark.parametrize("name", ["round_1/adapter/adapter_model.safetensors", "round_2/delta/adapter_config.json"])
def test_an_adapter_that_is_missing_is_named(a_copy, name):
    folder = a_copy()
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder / name} is missing; restore it"):
        run_tiny(folder)


def test_an_adapter_folder_that_is_missing_is_named(a_copy):
    folder = a_copy()
    shutil.rmtree(folder / "round_2" / "adapter")
    with pytest.raises(FileNotFoundError, match=r"round_2/adapter/adapter_config\.json is missing"):
        run_tiny(folder)


@pytest.mark.parametrize(
    "name", ["round_1/adapter/adapter_model.safetensors", "round_2/completions.jsonl", "round_1/training_log.jsonl"]
)
def test_a_file_of_a_round_that_was_cut_is_named(a_copy, name):
    folder = a_copy()
    (folder / name).write_bytes((folder / name).read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{folder / name} is damaged.*remove {folder / name.split('/')[0]} and"):
        run_tiny(folder)


def test_completions_that_are_missing_are_named(a_copy):
    folder = a_copy()
    (folder / "round_1" / "completions.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"round_1/completions\.jsonl is missing"):
        run_tiny(folder)


def test_a_record_that_cannot_be_read_is_named(a_copy):
    folder = a_copy()
    path = folder / "round_1" / "record.json"
    path.write_text(path.read_text()[:-100])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        run_tiny(folder)


def test_a_record_without_its_files_is_named(a_copy):
    folder = a_copy()
    path = folder / "round_1" / "record.json"
    path.write_text(json.dumps({"round": 1}))
    with pytest.raises(ValueError, match=f"{path} is no record of a round: it has no 'files'"):
        run_tiny(folder)


def test_a_round_that_is_missing_between_two_is_named(a_copy):
    folder = a_copy()
    shutil.rmtree(folder / "round_1")
    with pytest.raises(FileNotFoundError, match=r"round_1/record\.json is missing but round_2 is there"):
        run_tiny(folder)


def test_folders_that_are_no_rounds_are_left_alone(a_copy):
    folder = a_copy()
    for name in ("round_x", "round_9_before", "round_007", "round_"):
        (folder / name).mkdir()
    (folder / "round_8").write_text("a file")
    assert run_tiny(folder)[-1]["round"] == 2
    (folder / "round_9").mkdir()
    with pytest.raises(FileNotFoundError, match=r"round_3/record\.json is missing but round_9 is there"):
        run_tiny(folder)


def test_a_record_that_lacks_a_part_is_named(a_copy):
    folder = a_copy()
    path = folder / "round_1" / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in record.items() if name != "settings"}))
    with pytest.raises(ValueError, match=f"{path} is no record of a round: it has no 'settings'; restore it"):
        run_tiny(folder)


def test_an_adapter_of_an_unfinished_round_that_is_damaged_is_named(a_copy):
    folder = a_copy()
    (folder / "round_2" / "record.json").unlink()
    shutil.rmtree(folder / "round_2" / "adapter")
    weights = folder / "round_2" / "delta" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{weights} is damaged"):
        run_tiny(folder)


def test_half_a_record_left_by_a_kill_is_no_file_of_the_round(finished_run, a_copy):
    folder = a_copy()
    record = folder / "round_2" / "record.json"
    record.with_name("record.json.partial").write_text(record.read_text()[:100])
    record.unlink()
    run_tiny(folder)  # writes the record
    run_tiny(folder)  # reads it
    assert results_of(folder) == results_of(finished_run)


def test_rounds_that_are_removed_are_made_again_as_they_were(finished_run, a_copy):
    folder = a_copy()
    shutil.rmtree(folder / "round_2")
    run_tiny(folder)
    assert results_of(folder) == results_of(finished_run)
