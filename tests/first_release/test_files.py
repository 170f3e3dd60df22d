"""What the first release has written is read by this one, and says the same."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from alignkit.evaluation.results import read_results
from alignkit.experiments.spec import read_experiment
from alignkit.experiments.status import states
from alignkit.reliability import check_checkpoint
from tests.first_release.trainings import HEADS, MAKERS, SAVED_STEP, STEPS, make_trainer, values_of

FILES = Path(__file__).parent / "files"
EXPECTED = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Path:
    """A copy of the files, and the working directory, for which their relative paths are."""
    monkeypatch.chdir(shutil.copytree(FILES, tmp_path / "files"))
    return tmp_path / "files"


def expected(name: str) -> torch.Tensor:
    return torch.tensor(EXPECTED["values"][name])


def test_the_files_are_those_of_version_0_1_0():
    assert EXPECTED["versions"]["alignkit"] == "0.1.0"


@pytest.mark.parametrize("method", MAKERS)
def test_an_adapter_says_what_it_said(copied, method):
    torch.testing.assert_close(values_of(method, method), expected(method), rtol=1e-6, atol=1e-6)


def test_a_whole_reward_model_says_what_it_said(copied):
    torch.testing.assert_close(values_of("reward", "reward_full"), expected("reward_full"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", MAKERS)
def test_a_checkpoint_is_whole_and_resumes_to_what_the_run_became(copied, method):
    checkpoint = copied / "out" / f"checkpoint-{SAVED_STEP}"
    shutil.copytree(copied / f"{method}_checkpoint", checkpoint)
    assert check_checkpoint(checkpoint) is not None
    trainer = make_trainer(method, "out")
    trainer.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == list(range(1, STEPS + 1))
    trainer.save_model("resumed")
    torch.testing.assert_close(values_of(method, "resumed"), expected(method), rtol=1e-5, atol=1e-5)


def test_results_are_read_and_an_experiment_is_known_to_be_finished(copied):
    results = read_results(copied / "experiment" / "results.jsonl")
    assert [(result.item_set, result.n) for result in results] == [("held_out", 4), ("other", 4)] * 2
    assert all(result.mean == pytest.approx(sum(result.items.values()) / 4) for result in results)
    assert [state for _, state in states(read_experiment(Path("experiment.yaml")))] == ["finished", "finished"]


def test_no_path_of_a_machine_is_kept():
    text = b"".join(path.read_bytes() for path in FILES.rglob("*") if path.is_file())
    assert not [word for word in (b"/home/", b"/root/", b"/tmp/") if word in text]


def test_the_heads_kept_their_names(copied):
    labels = json.loads((copied / "reward_full" / "config.json").read_text(encoding="utf-8"))["id2label"]
    assert list(labels.values()) == HEADS
