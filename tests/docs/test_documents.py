"""The code in the documents runs."""

import argparse
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from alignkit.command_line.methods import parser_of
from alignkit.evaluation.ratings_command import add_ratings_commands
from alignkit.evaluation.sandbox import SandboxUnavailableError, check_sandbox
from alignkit.evaluation.suites.spec import read_spec
from alignkit.evaluation.suites.table import build_suite
from alignkit.experiments.spec import read_experiment
from alignkit.stages.spec import read_stages
from alignkit.stages.task import StagedTask
from alignkit.tasks.toy import byte_tokenizer, tiny_causal_lm, tiny_sequence_classifier
from tests.evaluation.judge_server import Answer, asked, serving
from tests.faults.trainings import make_trainer

ROOT = Path(__file__).parents[2]


def python_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_code_of_the_reward_model_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in python_blocks("docs/reward_model.md"):
        exec(block, namespace)
    accuracy = float(capsys.readouterr().out.splitlines()[-2])
    assert 0 <= accuracy <= 1
    assert namespace["scalar"].config.num_labels == 1


def test_the_readmes_code_runs_with_a_local_model_in_place_of_the_hubs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_causal_lm().save_pretrained("backbone")
    byte_tokenizer().save_pretrained("backbone")
    for block in python_blocks("README.md"):
        on_cpu = {
            "per_device_train_batch_size=2)": "per_device_train_batch_size=2, bf16=False, use_cpu=True)",
            "prompts_per_step=2)": "prompts_per_step=2, max_completion_length=8, use_cpu=True)",
        }
        (setting,) = (setting for setting in on_cpu if setting in block)
        block, n_names = re.subn(r'"Qwen/[\w.-]+"', '"backbone"', block.replace(setting, on_cpu[setting]))
        assert n_names == 1
        exec(block, {})
    assert "tensor([[" in capsys.readouterr().out
    assert (tmp_path / "cook" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "brief" / "evolution.png").is_file()


def test_the_code_of_the_kl_barrier_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in python_blocks("docs/kl_barrier.md"):
        exec(block, namespace)
    assert float(capsys.readouterr().out.splitlines()[-1].removeprefix("tensor(").rstrip(")")) < 1e-5
    assert namespace["args"].tau_nats > 0


def test_the_code_of_the_es_lora_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in python_blocks("docs/es_lora.md"):
        exec(block, {})
    reward, shape = capsys.readouterr().out.splitlines()[-2:]
    assert 0 <= float(reward) <= 1 and shape == "torch.Size([4, 2, 7])"


def test_the_code_of_the_dpo_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in python_blocks("docs/dpo.md"):
        exec(block, {})
    accuracy, divergence = map(float, capsys.readouterr().out.splitlines()[-1].split())
    assert accuracy > 0.5 and divergence > 0


def test_the_code_of_the_plan_page_runs(capsys):
    for block in python_blocks("docs/plan.md"):
        exec(block, {})
    # Of a layer's LoRA of rank 4: queries, keys, values and outputs 32 + 32, three of the feed-forward 32 + 64.
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"] {2 * 4 * (4 * 64 + 3 * 96)}")


def test_the_code_of_the_shared_prefix_page_runs(capsys):
    for block in python_blocks("docs/shared_prefix.md"):
        exec(block, {})
    n_tokens, difference = capsys.readouterr().out.splitlines()[-1].split(" ", 1)
    assert (int(n_tokens), float(difference.removeprefix("tensor(").split(",")[0]) < 1e-5) == (12, True)


def test_the_code_of_the_tatqa_page_runs(capsys):
    namespace: dict = {}
    for block in python_blocks("docs/tatqa.md"):
        exec(block, namespace)
    # F1 of one year of two is 2 · 1 · 0.5 / 1.5 = 0.67, and the mean with the right answer 83.5.
    assert capsys.readouterr().out.splitlines()[-1].startswith("50.0 83.5 [0.0, ")
    assert namespace["pairs"]["chosen"] == [" -12.6 million", " 2019\n2018"]


def test_the_code_of_the_rewards_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in python_blocks("docs/rewards.md"):
        exec(block, namespace)
    printed = capsys.readouterr().out.splitlines()
    found = "[Match(entry='fool', severity=0.5), Match(entry='son of a gun', severity=0.3333333333333333)]"
    assert printed[-3:-1] == [found, "0.5"]
    assert "heuristic/clean 0.5" in printed  # 1 for the first text, and 0 for the second


def test_the_code_of_the_metrics_page_runs(capsys):
    for block in python_blocks("docs/metrics.md"):
        exec(block, {})
    rouge, others, likelihoods, combined, following = capsys.readouterr().out.splitlines()
    assert (rouge, others) == ("[0.6, 0.57]", "[0.0, 0.0] [1.0, 1.0]")
    perplexity, bits, counts = likelihoods.split(" ", 2)
    assert 200 < int(perplexity) < 350 and 7.5 < float(bits) < 8.5 and counts == "[10, 40]"
    assert combined == "{'rouge_l': 1.0, 'exact_match': 1.0, 'fact_f1': 1.0}"
    assert following == "(True, False) (True, True)"


def test_the_code_and_the_files_of_the_judges_page_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    with serving(lambda body, number: Answer("[[A]]" if "A and B" in asked(body) else "[[8]]")) as (_, url):
        for block in python_blocks("docs/judges.md"):
            exec(block.replace("http://localhost:8000/v1", url), namespace)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == ["8.0 [[8]]", "8.0 [[8]]", "0.50 [0.26, 0.74], position bias 1.0"]
    # A gap of 1.3 over a spread of 0.2 is all that Ties asks for, but for its last hundredth: tanh(5.5).
    assert printed[-2:] == [f"[{7 / 9}]", str((5 + 1 + 0.01 * math.tanh(1.3 / 0.2 - 1)) / 6)]
    page = (ROOT / "docs/judges.md").read_text()
    text = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0].replace(", prompts: judge_prompts.jsonl", "")
    tiny_sequence_classifier(["good"]).save_pretrained("runs/reward")
    byte_tokenizer().save_pretrained("runs/reward")
    options = yaml.safe_load(text)
    for suite in options.pop("suite"):
        assert build_suite(suite, options[suite]).judge.settings
    parser = argparse.ArgumentParser()
    add_ratings_commands(parser)
    for command in re.findall(r"alignkit ratings ((?:.*\\\n)*.*)", page):
        assert parser.parse_args(command.replace("\\\n", " ").split()).key == Path("key.json")


def test_the_files_and_the_commands_of_the_command_line_page_are_understood(tmp_path, monkeypatch):
    text = (ROOT / "docs/command_line.md").read_text()
    monkeypatch.chdir(tmp_path)
    for name, content in re.findall(r"```yaml\n# (\w+\.yaml)\n(.*?)```", text, re.DOTALL):
        Path(name).write_text(content)
        assert parser_of(name.removesuffix(".yaml")).parse(["--config", name]).data.dataset_name
    commands = re.findall(r"^    alignkit (\w+) (--config .*)$", text, re.MULTILINE)
    parsed = [parser_of(method).parse(flags.split()) for method, flags in commands]
    assert [one.model.peft_config().r for one in parsed] == [16, 16, 32, 16]


def test_the_code_of_the_distributed_page_runs(capsys):
    for block in python_blocks("docs/distributed.md"):
        exec(block, {})
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/distributed.md").read_text(), re.MULTILINE)
    assert capsys.readouterr().out.strip() == str(sorted(name.strip("`") for row in table for name in row.split(", ")))


PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md", "benchmarks/README.md", *PAGES]


def test_the_code_and_the_file_of_the_evaluation_page_work_and_give_the_numbers_of_its_text(tmp_path, capsys):
    for block in python_blocks("docs/evaluation.md"):
        exec(block, {"folder": tmp_path})
    items, seeds, *_, measured = capsys.readouterr().out.splitlines()
    assert (items, seeds) == ("0.109 0.042 2641", "5")
    assert measured == "shouting capitals 3 0.0"
    assert (tmp_path / "results.jsonl").is_file()
    (spec,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/evaluation.md").read_text(), re.DOTALL)
    (tmp_path / "evaluation.yaml").write_text(spec)
    gsm8k, safety, perplexity = read_spec(tmp_path / "evaluation.yaml", {}, {}).suites()
    assert (gsm8k.max_new_tokens, safety.prompts, perplexity.limit) == (256, "helpful", 500)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_relative_link_leads_somewhere(document):
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", (ROOT / document).read_text())
    generated = ROOT / "docs" / "api"  # written when the site is built, where its links are checked
    paths = [(ROOT / document).parent / target for target in targets]
    assert [path for path in paths if not path.exists() and path.resolve().parent != generated] == []


def test_every_page_with_code_has_a_test_that_runs_it():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    named = re.findall(r'"((?:docs/)?[\w/]+\.md)"', tests)
    assert [page for page in PAGES if python_blocks(page) and page not in named] == []


def test_the_code_of_the_migration_page_names_every_default_that_differs(capsys):
    for block in python_blocks("docs/migration.md"):
        exec(block, {})
    assert capsys.readouterr().out.splitlines()[-1] == "['enable_jit_checkpoint', 'logging_nan_inf_filter']"


def test_the_code_of_the_data_formats_page_runs(capsys):
    for block in python_blocks("docs/data_formats.md"):
        exec(block, {})
    assert capsys.readouterr().out.splitlines()[-1] == "['prompt', 'chosen', 'rejected'] assistant"


def test_the_file_map_has_every_module_as_its_docstring_says():
    written = (ROOT / "docs/file_map.md").read_text()
    made = subprocess.run(
        [sys.executable, "-c", "import file_map; print(file_map.file_map(), end='')"],
        cwd=ROOT / "docs",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert written == made, "python docs/file_map.py writes it"


def test_the_code_and_the_file_of_the_stages_page_work(tmp_path, capsys, monkeypatch):
    namespace: dict = {}
    for block in python_blocks("docs/stages.md"):
        exec(block, namespace)
    assert capsys.readouterr().out.splitlines() == ["['sft'] alignkit.tasks.requests_task:task"]
    assert isinstance(namespace["task"], StagedTask)
    assert len(namespace["task"].preference_dataset()) > 0
    (spec,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/stages.md").read_text(), re.DOTALL)
    (tmp_path / "spec.yaml").write_text(spec)
    (tmp_path / "words.txt").write_text("dolt\n")
    monkeypatch.chdir(tmp_path)
    read = read_stages(tmp_path / "spec.yaml")
    assert list(read.arms) == ["sft", "sft_rl"] and read.stages["rl"].training["num_iterations"] == 4


def test_the_code_of_the_reliability_page_resumes_and_checks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_trainer("reward", Path("out")).train()
    (tmp_path / "out" / "checkpoint-7" / "optimizer.pt").unlink()
    for block in python_blocks("docs/reliability.md"):
        exec(block, {"trainer": make_trainer("reward", Path("out"))})
    assert capsys.readouterr().out.splitlines()[-1] == str(Path("out", "checkpoint-8"))


def test_the_code_and_the_files_of_the_sweeps_page_work(tmp_path, capsys):
    for block in python_blocks("docs/sweeps.md"):
        exec(block, {})
    paired, _, corrected = capsys.readouterr().out.splitlines()
    assert paired.startswith("+0.10 [") and paired.endswith("n 100")
    assert corrected.startswith("[0.03, 0.06, 0.06] 0.606")
    grid, search = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/sweeps.md").read_text(), re.DOTALL)
    spec = tmp_path / "spec.yaml"
    spec.write_text(grid)
    assert len(read_experiment(spec).settings) == 7
    spec.write_text(grid.partition("grid:")[0] + search)
    assert read_experiment(spec).search.n_trials == 20


def test_the_code_of_the_subclassing_page_trains_each_new_kind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in python_blocks("docs/subclassing.md"):
        exec(block, {})
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("{")]
    accuracy, gate_open = map(float, printed[:2])
    assert accuracy > 0.6 and gate_open == 1
    assert printed[2].startswith("0.0 tensor([ 1.6")  # no step without variance


def test_the_code_of_the_code_execution_page_runs(capsys):
    try:
        check_sandbox()
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    for block in python_blocks("docs/code_execution.md"):
        exec(block, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "exit code 0 HELLO"
    assert lines[-4:-1] == ["True ", "False the program ended before its tests did", "False timed out"]
    # 1 - C(2, 2) / C(3, 2)
    assert lines[-1] == f"[1.0, 1.0, 1.0] [{1 - 1 / 3}]"
