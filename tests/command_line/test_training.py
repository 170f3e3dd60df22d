"""The training commands from a file to a saved model, and the folder that they leave."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from peft import AutoPeftModelForCausalLM
from rich.console import Console

from alignkit.cli import main
from alignkit.command_line.methods import METHODS
from alignkit.command_line.progress import ShowProgress, show_metrics
from alignkit.reward_model import load_reward_model

OWN_FILES = {"README.md", "config.yaml", "environment.txt", "log.txt", "trainer_state.json"}
LORA = ["--lora.r", "2", "--lora.target_modules", "all-linear"]


def history(folder: Path) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in history(folder) if "loss" in entry]


@pytest.mark.parametrize("method", METHODS)
def test_a_file_and_a_flag_train_evaluate_and_save(method, files, write_config, tmp_path, capsys):
    config = write_config(method, dataset_test_name=str(files / f"{method}.jsonl"))
    assert main([method, "--config", config, "--learning_rate", "1e-2", *LORA]) == 0
    folder, out = tmp_path / "out", capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} >= {*OWN_FILES, "adapter_model.safetensors", "eval_results.json"}
    assert history(folder)[0]["learning_rate"] == 1e-2 and len(losses(folder)) == 2
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 2
    assert "learning_rate: 0.01" in (folder / "config.yaml").read_text()
    assert "torch" in (folder / "environment.txt").read_text()
    assert (folder / "log.txt").read_text().count("step 2: ") >= 2  # of the step, and of the evaluation
    lines = out.splitlines()
    assert lines[0].startswith("step 1/2  loss ") and lines[-1].endswith(f"are in {folder}")
    assert any(line.startswith("eval_loss ") for line in lines)
    assert any(line.startswith("step 2/2  train_loss ") for line in lines)
    assert "\x1b" not in out
    if method == "reward":
        assert load_reward_model(str(folder)).score(["a b"]).shape == (1, 1)
    else:
        AutoPeftModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_a_model_that_is_nowhere_is_named(method, write_config, capsys):
    assert main([method, "--config", write_config(method), "--model_name_or_path", "no-model"]) == 2
    assert "no-model" in capsys.readouterr().err


def test_the_file_that_a_run_leaves_gives_the_same_run(write_config, tmp_path, capsys):
    first = ["dpo", "--config", write_config("dpo"), "--learning_rate", "1e-2", "--lora.r", "2"]
    assert main([*first, "--lora.target_modules", "all-linear", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main([*first, "--lora.target_modules", "all-linear"]) == 0
    left = tmp_path / "out" / "config.yaml"
    assert left.read_text() == printed
    assert main(["dpo", "--config", str(left), "--output_dir", str(tmp_path / "again")]) == 0
    assert losses(tmp_path / "again") == losses(tmp_path / "out") and len(losses(tmp_path / "out")) == 2


def test_a_resumed_run_ends_as_an_undisturbed_one(write_config, tmp_path):
    config = write_config("dpo", save_strategy="steps", save_steps=1, max_steps=3, learning_rate=1e-2)
    assert main(["dpo", "--config", config, "--output_dir", str(tmp_path / "whole")]) == 0
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "last" / "checkpoint-2")
    for output, checkpoint in {"named": str(tmp_path / "whole" / "checkpoint-2"), "last": "true"}.items():
        resumed = ["--output_dir", str(tmp_path / output), "--resume_from_checkpoint", checkpoint]
        assert main(["dpo", "--config", config, *resumed]) == 0
        assert losses(tmp_path / output) == losses(tmp_path / "whole")
        assert "resume_from" not in (tmp_path / output / "config.yaml").read_text()


def test_a_finished_run_is_not_resumed(write_config, tmp_path, capsys):
    config = write_config("dpo", save_strategy="steps", save_steps=2)
    assert main(["dpo", "--config", config]) == 0
    model = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert main(["dpo", "--config", config, "--resume_from_checkpoint", "true"]) == 2
    assert "checkpoint-2 is the end of the training (step 2, epoch 0.5); raise" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == model


def test_a_reward_model_is_trained_against_negatives(files, write_config, tmp_path):
    positives = [{"text": f"good {number}", "head": "kind"} for number in range(8)]
    Dataset.from_list(positives).save_to_disk(tmp_path / "positives")
    negatives = [{"text": f"bad {number}", "tier": "soft"} for number in range(8)]
    Dataset.from_list(negatives).to_json(tmp_path / "negatives.jsonl")
    config = write_config("reward", dataset_name=str(tmp_path / "positives"))
    flags = ["--negatives", str(tmp_path / "negatives.jsonl"), "--tier_weights", '{"soft": 1}']
    assert main(["reward", "--config", config, *flags]) == 0
    assert "tier_weights:\n  soft: 1\n" in (tmp_path / "out" / "config.yaml").read_text()


@pytest.mark.slow
def test_bad_input_ends_with_two_and_one_line_and_writes_nothing(write_config, tmp_path):
    command = [sys.executable, "-m", "alignkit.cli", "dpo", "--config", write_config("dpo"), "--bta", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True)
    # bitsandbytes has a line of its own to say on some CPUs.
    lines = [line for line in done.stderr.splitlines() if "gemm_4bit" not in line]
    assert (done.returncode, done.stdout) == (2, "")
    assert lines == ["alignkit dpo: --bta is no known argument; the nearest is --beta"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("dpo", {"model_name_or_path": None}, "model_name_or_path is missing"),
        ("dpo", {"dataset_name": "nowhere.jsonl"}, "there is no file nowhere.jsonl"),
        ("dpo", {"columns": {"prompt": "question"}}, "columns.prompt is 'question', which is no column"),
        ("dpo", {"resume_from_checkpoint": "true"}, "holds no complete checkpoint; leave resume_from_checkpoint out"),
        ("dpo", {"resume_from_checkpoint": "nowhere"}, "which holds no trainer_state.json; give a checkpoint"),
        ("dpo", {"num_processes": 2}, "num_processes is 2 without accelerate_config"),
        ("dpo", {"beta_schedule": "linear"}, "beta_schedule is 'linear'; say where it ends with beta_end"),
        ("es", {"reward_funcs": None}, "reward_funcs is missing"),
        ("es", {"per_device_train_batch_size": 4}, "set prompts_per_step"),
        ("reward", {"head_names": None}, "head_names is not set"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_no_folder(
    method, changes, message, write_config, tmp_path, capsys
):
    assert main([method, "--config", write_config(method, **changes)]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("alignkit")]
    assert len(lines) == 1 and message in lines[0] and captured.out == ""
    assert not (tmp_path / "out").exists()


def test_a_training_that_diverges_says_so_in_its_log_too(write_config, tmp_path, capsys):
    config = write_config("barrier", learning_rate=1e30, max_steps=6, tau_nats=0.0)
    assert main(["barrier", "--config", config]) == 2
    assert "alignkit barrier: the training diverged: " in capsys.readouterr().err
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "the command ends here" in log and "ValueError: the training diverged: " in log


def test_a_terminal_gets_a_bar_and_a_table_and_a_pipe_plain_lines(tmp_path):
    with open(tmp_path / "pipe.txt", "w", encoding="utf-8") as file:
        pipe = Console(file=file)
        assert ShowProgress(pipe).progress is None
        show_metrics(pipe, {"eval_loss": 0.123456, "note": "left out", "eval_[red]n[/red]": 3})
    assert (tmp_path / "pipe.txt").read_text() == "eval_loss 0.1235\neval_[red]n[/red] 3\n"
    with open(tmp_path / "terminal.txt", "w", encoding="utf-8") as file:
        terminal = Console(file=file, force_terminal=True)
        assert ShowProgress(terminal).progress is not None and ShowProgress(terminal, bar=False).progress is None
        show_metrics(terminal, {})
        assert file.tell() == 0  # without a test set there is no empty table
        show_metrics(terminal, {"eval_loss": 0.123456})
    shown = (tmp_path / "terminal.txt").read_text()
    assert "\x1b[" in shown and "0.1235" in shown
