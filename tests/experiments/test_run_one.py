"""One run, in this process: its records, how it goes on after an interruption, what it leaves behind."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignkit.evaluation.results import append_result, read_results
from alignkit.experiments.data import materialise
from alignkit.experiments.run_folder import RunFolder
from alignkit.experiments.run_one import carry_out
from alignkit.experiments.task import datasets_of, load_task
from alignkit.tasks.toy import byte_tokenizer
from tests.experiments.conftest import TRAINING

TASK = "tests.experiments.tiny_task"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    materialise(datasets_of(load_task(f"{TASK}:task"), byte_tokenizer()), tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def make_folder(tmp_path: Path, cache: Path, model: str):
    def make(name: str = "run", **config: Any) -> RunFolder:
        folder = RunFolder(tmp_path / name)
        folder.write_config(
            {
                **{"run": name, "kind": "run", "seed": 3, "decoding": {"do_sample": False}, "model": model},
                **{"training": TRAINING, "lora": {"r": 2}, "task": f"{TASK}:task", "keep_model": False},
                **{"cache": str(cache), "results": str(tmp_path / "results.jsonl"), **config},
            }
        )
        return folder

    return make


def interrupted(make_folder, monkeypatch, training: dict[str, Any]) -> RunFolder:
    """A run that broke off after its last step, before it was measured."""
    monkeypatch.setenv("CRASH_ON_SEED", "3")
    folder = make_folder("interrupted", training=training, task=f"{TASK}:crashing")
    with pytest.raises(RuntimeError, match="the lights went out"):
        carry_out(folder)
    monkeypatch.delenv("CRASH_ON_SEED")
    return folder


def test_a_run_leaves_one_record_for_each_item_set_with_all_that_led_to_it(make_folder, tmp_path):
    carry_out(make_folder())
    first, second = read_results(tmp_path / "results.jsonl")
    assert (first.item_set, first.metric, first.n, first.unit) == ("held_out", "margin", 4, "nats")
    assert (second.item_set, second.role, second.mean) == ("other", "general", 0.5)
    config = first.config
    assert (config["beta"], config["max_steps"], config["seed"]) == (0.1, 2, 3)
    assert (config["lora_r"], config["lora_alpha"], config["lora_dropout"]) == (2, 8, 0.0)
    assert "output_dir" not in config
    assert (first.kind, first.seed, first.decoding, first.status) == ("run", 3, {"do_sample": False}, "finished")
    assert first.commit and first.versions["trl"] and first.device.startswith("cpu")
    assert first.wall_time_s > 0 and first.peak_memory_gib > 0.1
    assert first.train_loss == pytest.approx(0.693, abs=0.05) == first.eval_loss
    logged = [row for row in first.history if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2] and "logratio/margin" in logged[0]
    assert "eval_loss" in first.history[-1] and "eval_runtime" not in first.history[-1]


def test_a_baseline_is_measured_where_the_training_asks_for_evaluations(make_folder, tmp_path):
    carry_out(make_folder(kind="baseline", training={**TRAINING, "eval_strategy": "epoch"}))
    start, _ = read_results(tmp_path / "results.jsonl")
    assert start.eval_loss is None and start.status == "finished"


def test_training_changes_the_scores_and_a_baseline_is_the_start_model(make_folder, tmp_path):
    carry_out(make_folder("start", kind="baseline", decoding={"do_sample": True, "temperature": 0.5}))
    carry_out(make_folder("other", kind="baseline", seed=4, decoding={"do_sample": True, "temperature": 0.5}))
    carry_out(make_folder("trained", training={**TRAINING, "learning_rate": 0.1}))
    start, draws, again, other_draws, trained, _ = read_results(tmp_path / "results.jsonl")
    assert start.items == again.items != trained.items
    assert draws.items != other_draws.items  # sampled by the seed
    assert start.config == {} and start.history is None and start.train_loss is None
    assert start.decoding == {"do_sample": True, "temperature": 0.5, "seed": 3}
    assert trained.items["pair0"] > start.items["pair0"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_fresh_process_with_other_settings_finds_the_tokens_and_the_reference_of_the_first(make_folder, cache):
    carry_out(make_folder())

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file() and path.name != "ready"}

    before = files()
    other = {**TRAINING, "beta": 0.4, "learning_rate": 1e-3, "num_train_epochs": 3}
    folder = make_folder("other", training=other, lora={"r": 4, "lora_alpha": 2}, seed=4)
    command = [sys.executable, "-W", "ignore", "-m", "alignkit.experiments.run_one", str(folder.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert "Tokenizing" not in done.stderr
    assert files() == before
    assert any("reference" in path.parts for path in before)


def test_an_interrupted_run_goes_on_from_its_last_whole_checkpoint_and_ends_the_same(
    make_folder, tmp_path, monkeypatch, capsys
):
    training = {**TRAINING, "max_steps": 4, "save_steps": 2, "eval_strategy": "epoch"}  # of two steps
    carry_out(make_folder("whole", training=training))
    folder = interrupted(make_folder, monkeypatch, training)
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-2", "checkpoint-4"]
    (folder.checkpoints()[1] / "complete.json").unlink()
    (folder.trainer / "checkpoint-4" / "trainer_state.json").write_text("{")  # killed while it was written
    capsys.readouterr()
    carry_out(folder)
    assert capsys.readouterr().out.count("{'loss'") == 2
    whole, _, resumed, _ = read_results(tmp_path / "results.jsonl")
    assert [row["step"] for row in resumed.history if "eval_loss" in row] == [2, 4]
    for name in ("items", "train_loss", "eval_loss", "history"):
        assert getattr(resumed, name) == getattr(whole, name), name
    assert resumed.wall_time_s > 0


def test_a_run_that_is_measured_only_hands_on_the_records_that_are_missing(make_folder, tmp_path):
    folder = make_folder()
    carry_out(folder)
    results = tmp_path / "results.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    for kept in (lines, lines[:1], []):
        results.write_text("".join(kept))
        carry_out(folder)
        assert sorted(results.read_text().splitlines(keepends=True)) == sorted(lines)


def test_checkpoints_go_and_the_model_stays_if_it_is_asked_for(make_folder):
    folder, other = make_folder("kept", keep_model=True), make_folder("not_kept")
    carry_out(folder)
    carry_out(other)
    assert (folder.path / "model" / "adapter_model.safetensors").exists()
    assert not (other.path / "model").exists()
    assert not folder.trainer.exists() and not other.trainer.exists()


def test_a_failed_record_of_the_run_does_not_count_as_its_result(make_folder, tmp_path):
    from alignkit.evaluation.results import failed_result

    folder = make_folder()
    facts = folder.facts({"beta": 0.1})
    assert facts["device"] == "unknown" and facts["config"] == {"beta": 0.1}
    append_result(
        tmp_path / "results.jsonl", failed_result(run="run", error="a", seed=3, wall_time_s=1.0, kind="run", **facts)
    )
    carry_out(folder)
    assert [line.status for line in read_results(tmp_path / "results.jsonl")] == ["failed", "finished", "finished"]


def test_full_fine_tuning_and_named_held_out_sets(make_folder, tmp_path, cache):
    held_out = load_task(f"{TASK}:task").eval_dataset(None)
    shutil.rmtree(cache)
    train = load_task(f"{TASK}:task").train_dataset(None)
    materialise({"train": train, "eval/a": held_out, "eval/b": held_out.select([1, 0])}, cache)
    carry_out(make_folder(lora=None))
    result = read_results(tmp_path / "results.jsonl")[0]
    assert "lora_r" not in result.config and result.eval_loss is None
    assert {"eval_a_loss", "eval_b_loss"} <= {key for row in result.history for key in row}


def test_scores_that_are_none_are_an_error_that_names_the_task(make_folder, monkeypatch):
    from tests.experiments.tiny_task import TinyTask

    monkeypatch.setattr(TinyTask, "evaluate", lambda *args, **kwargs: {"accuracy": 1.0})
    with pytest.raises(ValueError, match=rf"evaluate of {TASK}:task gave .*'accuracy': 1.0.*list of ItemScores"):
        carry_out(make_folder(kind="baseline"))


def test_other_data_than_the_experiment_was_started_with_is_refused(cache):
    task = load_task(f"{TASK}:task")
    named = datasets_of(task, byte_tokenizer())
    materialise(named, cache)  # the same again
    with pytest.raises(ValueError, match="the task's train set is not the one that"):
        materialise({**named, "train": named["train"].select(range(7))}, cache)
    with pytest.raises(ValueError, match="the task's eval set is not the one that"):
        materialise({"train": named["train"]}, cache)
