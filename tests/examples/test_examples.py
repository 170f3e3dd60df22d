"""Every example starts under `accelerate launch`, trains a few steps on the CPU, and leaves what it says it leaves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.evaluation.comparison import analyse
from alignkit.evaluation.results import read_results
from alignkit.evaluation.tatqa_rules import ANSWER_TYPES
from alignkit.tasks.tatqa import CORRUPTIONS

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL_FILES = ["config.json", "model.safetensors", "tokenizer.json", "README.md"]
TWO_STEPS = ["--max_steps", "2"]
FEW_PASSAGES = ["--train_passages", "10", "--eval_passages", "4"]
# Arguments and files of each example on real data.
ON_DATA = {
    "reward_corpus_membership": ([*TWO_STEPS, *FEW_PASSAGES, "--n_seeds", "1"], [*MODEL_FILES, "results.json"]),
    "reward_hh_two_heads": ([*TWO_STEPS, "--n_rows", "40"], [*MODEL_FILES, "results.json"]),
    "reward_multi_attribute": ([*TWO_STEPS, "--folds", "2", "--missing", "0.3"], [*MODEL_FILES, "results.json"]),
    "reward_receptivity": (
        [*TWO_STEPS, *FEW_PASSAGES, "--n_seeds", "1"],
        ["results.json", "receptivity.png", "scores-broughton.png"],
    ),
    "barrier_sft": (
        [*TWO_STEPS, "--n_passages", "20", "--calibrate"],
        ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"],
    ),
    "barrier_rounds_stories": (
        # Steps from which half of the calibration's divergences are above 0, as its default share asks.
        [*("--rounds", "1", "--seeds", "0", "--arms", "none", "mean"), *("--max_steps", "4", "--warmup_steps", "0")],
        [
            *("comparison.md", "comparison.png", "mean/seed_0/report.md", "mean/seed_0/trajectory.png"),
            *("none/seed_0/results.jsonl", "none/seed_0/round_1/adapter/adapter_model.safetensors"),
        ],
    ),
    "es_stories_style": (
        [
            *("--seeds", "0", "1", "--completions", "16", "--evaluations", "1", "--held_out_prompts", "4"),
            *("--population_size", "2", "--prompts_per_step", "2", "--max_completion_length", "8"),
        ],
        [
            *("comparison.md", "comparison.png", "B/seed_1/adapter_model.safetensors", "B/seed_1/results.jsonl"),
            *(f"{arm}/seed_1/run.json" for arm in ("B", "both", "random", "prior", "grpo")),
        ],
    ),
    "es_conciseness": (
        [*TWO_STEPS, "--population_size", "2", "--max_completion_length", "8"],
        ["adapter_model.safetensors", "results.jsonl", "evolution.png", "time_breakdown.png"],
    ),
}
# The same for those that make their own model and problems.
FEW_PROBLEMS = ["--n_train", "40", "--n_test", "4", "--sft_steps", "2", "--population_size", "2"]
WITHOUT_DATA = {
    "reward_small_encoder": ([*TWO_STEPS, "--n_train", "16", "--n_test", "8"], [*MODEL_FILES, "results.json"]),
    "es_countdown": (
        [*TWO_STEPS, *FEW_PROBLEMS, "--prompts_per_step", "2"],
        ["start/tokenizer.json", "adapter_model.safetensors", "results.jsonl", "evolution.png", "time_breakdown.png"],
    ),
    "es_countdown_comparison": (
        [*FEW_PROBLEMS, "--seeds", "0", "1", "--completions", "256", "--evaluations", "1", "--prompts_per_step", "64"],
        ["starts/seed=1/model.safetensors", "comparison.md", "comparison.png"],
    ),
    "dpo_tables": (
        [
            *("--lesson_share", "0.01", "--seeds", "0", "--baseline_seeds", "0", "1", "2"),
            *("--betas", "0.02", "--epochs", "1", "--arms", "False"),
        ],
        ["start/model.safetensors", "dpo_tables.yaml", "results.jsonl", "report.md", "report_pareto_1.png"],
    ),
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def launch(example: str, *arguments: str, processes: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
    command += [str(EXAMPLES / f"{example}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def check(process: subprocess.CompletedProcess[str], folder: Path, files: list[str]) -> None:
    assert process.returncode == 0, f"{process.stdout[-2000:]}\n{process.stderr[-4000:]}"
    assert [name for name in files if not (folder / name).is_file()] == []


def test_every_example_is_tested_and_in_the_index():
    data_modules = {"author_passages", "story_rounds", "story_style", "es_comparison", "es_report", "countdown_start"}
    data_modules |= {"staged_tasks", "tables_task"}
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - data_modules
    index = (EXAMPLES / "README.md").read_text("utf-8")
    assert scripts == {*ON_DATA, *WITHOUT_DATA, "reward_quickstart", "dpo_tatqa", "staged"}
    assert [script for script in scripts if f"{script}.py" not in index] == []


@pytest.mark.parametrize("example", ON_DATA)
def test_the_example_trains_a_few_steps_and_writes_its_files(example, data_dir, tmp_path):
    arguments, files = ON_DATA[example]
    process = launch(example, *arguments, "--output_dir", str(tmp_path), ALIGNKIT_DATA=str(data_dir))
    check(process, tmp_path, files)


@pytest.mark.parametrize("example", WITHOUT_DATA)
def test_the_example_without_data_trains_a_few_steps_and_writes_its_files(example, tmp_path):
    arguments, files = WITHOUT_DATA[example]
    check(launch(example, *arguments, "--output_dir", str(tmp_path), ALIGNKIT_DATA=""), tmp_path, files)


def test_the_quickstart_passes_its_checks_without_data(tmp_path):
    process = launch("reward_quickstart", "--steps", "2", "--output", str(tmp_path), ALIGNKIT_DATA="")
    check(process, tmp_path, [*MODEL_FILES, "scores.png", "probe.png"])


@pytest.mark.parametrize("task", ["gsm8k", "clinical"])
def test_the_staged_example_goes_the_whole_way_on_real_data(task, data_dir, tmp_path):
    spec = EXAMPLES / f"staged_{task}.yaml"
    arguments = ["--spec", str(spec), "--output_dir", str(tmp_path)]
    process = launch("staged", *arguments, ALIGNKIT_DATA=str(data_dir))
    check(process, tmp_path, ["results.jsonl", "report.md", "report.html", "report_before_after.png"])
    assert {result.run for result in read_results(tmp_path / "results.jsonl")} == {
        *("start-seed0", "sft-seed0", "sft_rl-seed0")
    }


def launch_tatqa(
    data_dir: Path, folder: Path, *arguments: str, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """The example that takes model and data from the hub, with those of the data folder in their place."""
    model = str(data_dir / "models" / "stories260K")
    arguments = ("--model", model, "--no_chat", *arguments, "--output_dir", str(folder))
    return launch("dpo_tatqa", *arguments, processes=processes, ALIGNKIT_DATA=str(data_dir))


def test_two_seeds_of_the_tatqa_example_are_one_setting_with_a_baseline_each(data_dir, tmp_path):
    for seed in ("0", "1"):
        arguments = [*TWO_STEPS, "--limit", "1", "--max_new_tokens", "4", "--max_length", "512", "--seed", seed]
        check(launch_tatqa(data_dir, tmp_path, *arguments), tmp_path, ["results.jsonl"])
    results = read_results(tmp_path / "results.jsonl")
    of_one_seed = [(kind, metric) for metric in ("exact_match", "f1", "scale") for kind in ("baseline", "run")]
    assert [(result.kind, result.metric) for result in results] == 2 * of_one_seed
    assert len({frozenset(result.items) for result in results}) == 1
    assert all((tmp_path / result.run / "adapter_model.safetensors").is_file() for result in results[1::2])
    (setting,) = analyse(results).experiment.settings
    assert [run.seed for run in setting.runs] == [0, 1]


def test_the_tables_of_the_tatqa_page_are_what_the_example_prints(data_dir, tmp_path):
    process = launch_tatqa(data_dir, tmp_path, "--pairs_only")
    check(process, tmp_path, [])
    printed = [re.findall(r"[\w.-]+", row) for row in process.stdout.splitlines() if re.match("│ [a-z]", row)]
    page = (EXAMPLES.parent / "docs" / "tatqa.md").read_text("utf-8")
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in page.splitlines() if row.startswith("| ")]
    names = [*ANSWER_TYPES, "all", *CORRUPTIONS]
    figures = [[cell for cell in row if cell in names or re.fullmatch(r"[\d.]+", cell)] for row in rows]
    assert [row[0] for row in printed] == names
    assert [row[:3] for row in printed] == [row for row in figures if len(row) == 3 and row[0] in names]
    for unit, accuracy in re.findall(r"by length alone, in (\w+): ([\d.]+)", process.stdout):
        assert f"**{accuracy}** by {unit}" in " ".join(page.replace("of the pairs", "").split())


@pytest.mark.parametrize("example", ON_DATA)
def test_without_the_data_folder_the_example_says_what_to_set(example, tmp_path):
    process = launch(example, "--output_dir", str(tmp_path), ALIGNKIT_DATA="")
    assert process.returncode != 0
    assert "set ALIGNKIT_DATA to the folder with" in process.stderr


def check_refused(process: subprocess.CompletedProcess[str], folder: Path, files: list[str]) -> None:
    """One process came of two, and nothing of what the example leaves."""
    assert process.returncode != 0
    assert "CPU processes were asked for but this one trains alone" in process.stdout + process.stderr
    assert [name for name in files if (folder / name).exists()] == []


@pytest.mark.parametrize("example", ON_DATA)
def test_an_example_on_data_asked_for_two_cpu_processes_trains_nothing(example, data_dir, tmp_path):
    arguments, files = ON_DATA[example]
    arguments = [*arguments, "--output_dir", str(tmp_path)]
    check_refused(launch(example, *arguments, processes=2, ALIGNKIT_DATA=str(data_dir)), tmp_path, files)


@pytest.mark.parametrize("example", [*WITHOUT_DATA, "staged", "reward_quickstart"])
def test_an_example_asked_for_two_cpu_processes_trains_nothing(example, tmp_path):
    arguments, files = WITHOUT_DATA.get(example, ([], ["report.md", *MODEL_FILES]))
    output = "--output" if example == "reward_quickstart" else "--output_dir"
    process = launch(example, *arguments, output, str(tmp_path), processes=2, ALIGNKIT_DATA="")
    check_refused(process, tmp_path, files)


def test_the_tatqa_example_asked_for_two_cpu_processes_trains_nothing(data_dir, tmp_path):
    check_refused(launch_tatqa(data_dir, tmp_path, "--limit", "1", processes=2), tmp_path, ["results.jsonl"])
