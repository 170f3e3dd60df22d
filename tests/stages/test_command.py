"""The command line of the stages, and the whole way from a file to a report."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignkit.evaluation.results import read_results
from alignkit.stages.arms import contrasts
from alignkit.stages.artefacts import folder_of
from alignkit.stages.command import add_stages_commands, run_status
from alignkit.stages.demo import SPEC, add_demo_arguments
from alignkit.stages.report import write_report
from alignkit.stages.run import Pipeline
from alignkit.stages.spec import build_spec, read_stages
from tests.stages.conftest import QUICK, ROLLOUTS


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_stages_commands(parser)
    return parser.parse_args(arguments)


def test_status_names_every_stage_and_runs_none(content, write, capsys):
    run_status(parsed("status", str(write(content))))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [kind.partition("-")[0] for kind, *_ in lines].count("evaluate") == 3
    assert {" ".join(state) for _, *state in lines} == {"to do"}
    assert not (Path(content["output_dir"]) / "artefacts").exists()


def test_the_specification_of_the_demo_is_one_and_is_offline():
    parser = argparse.ArgumentParser()
    add_demo_arguments(parser)
    spec = read_stages(SPEC, output_dir=parser.parse_args([]).output_dir)
    assert list(spec.arms) == ["sft", "sft_rl"] and spec.model is None and not spec.evaluation.suites
    example = Path(__file__).parents[2] / "examples" / "staged.yaml"
    assert read_stages(example, output_dir=str(spec.output_dir)) == spec


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_way_ends_in_results_and_a_report_with_pictures(content: dict[str, Any], write):
    content |= {"dpo": {"training": QUICK}, "arms": {"sft_rl": ["sft", "rl"], "sft_dpo": ["sft", "dpo"]}}
    pipeline = Pipeline(build_spec(content), say=lambda _: None)
    assert pipeline.carry_out(), pipeline.summary()
    conclusion = write_report(pipeline.spec, pipeline.graph)
    folder = Path(content["output_dir"])
    results = read_results(folder / "results.jsonl")
    assert {result.run for result in results if result.kind == "baseline"} == {"start-seed0"}
    assert {result.run for result in results if result.kind == "run"} == {"sft_rl-seed0", "sft_dpo-seed0"}
    assert any("requests, good" in lead for lead, _ in conclusion)
    text = (folder / "report.md").read_text()
    for section in ("Arms against each other", "What the arms cost", "How the stages learned", "Answers"):
        assert f"## {section}" in text
    assert "| sft_rl | sft → reward → rl |" in text
    for picture in ("before_after", "learning_sft", "learning_reward", "learning_rl", "learning_dpo"):
        assert (folder / f"report_{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report.html").read_text().count("data:image/png") >= 5
    again = Pipeline(build_spec(content), say=lambda _: None)
    assert again.carry_out() and set(again.states.values()) == {"reused"}


def test_arms_are_compared_in_pairs_with_holm_over_all_of_them():
    from alignkit.evaluation.comparison import analyse
    from tests.evaluation.records import result

    items = {f"q{place}": float(place % 2) for place in range(40)}
    better = {name: 1.0 for name in items}
    made = [
        result(f"{arm}{seed}", items=scores, seed=seed, config={"arm": arm})
        for arm, scores in (("a", items), ("b", better), ("c", items))
        for seed in (0, 1)
    ]
    analysis = analyse([*made, result("start", items=items, kind="baseline")])
    found = {
        (one.first.runs[0].config["arm"], one.second.runs[0].config["arm"]): one.comparison
        for one in contrasts(analysis, analysis.measures[0], n_resamples=500)
    }
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert found["a", "b"].difference == 0.5 and found["b", "c"].difference == -0.5
    assert (found["a", "b"].verdict, found["b", "c"].verdict) == ("effect", "harm")
    assert found["a", "c"].difference == 0 and found["a", "c"].verdict == "no evidence"
    assert found["a", "b"].p_holm >= found["a", "b"].p
    losses = dataclasses.replace(analysis.measures[0], higher_is_better=False)
    assert contrasts(analysis, losses, n_resamples=500)[0].comparison.verdict == "harm"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_ends_in_one_page_with_pictures_and_the_policy_answers_better_than_the_start_model(tmp_path):
    command = [sys.executable, "-m", "alignkit.cli", "demo", "-o", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"open {(tmp_path / 'demo' / 'report.html').resolve().as_uri()}" in done.stdout
    means = {}
    for line in (tmp_path / "demo" / "results.jsonl").read_text().splitlines():
        result = json.loads(line)
        means[result["run"], result["metric"]] = result["mean"]
    assert means["start-seed0", "good"] < 0.2 < means["sft-seed0", "good"]
    for manner in ("polite", "formatted"):
        assert means["start-seed0", manner] < 0.6 < 0.9 < means["sft_rl-seed0", manner]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trainings_go_through_accelerate_launch_on_two_processes(content: dict[str, Any]):
    import alignkit

    two = Path(alignkit.__file__).parent / "accelerate_configs" / "cpu_ddp.yaml"
    content |= {"launch": {"config_file": str(two)}, "arms": {"sft_rl": ["sft", "rl"]}}
    content["rl"] = {"training": {**ROLLOUTS, "max_steps": 50}, "generated_tokens": 100}
    said: list[str] = []
    pipeline = Pipeline(build_spec(content), say=said.append)
    assert pipeline.carry_out(), said
    records = {node.kind: folder_of(pipeline.spec.output_dir, node) for node in pipeline.graph.nodes}
    record = records["rl"].record()
    # Two processes with 8 completions of at most 8 tokens each.
    assert 100 <= record["generated_tokens"] < 100 + 2 * 8 * 8
    assert record["steps"] == record["completions"] // 16
    assert not records["sft"].trainer.exists()


def test_the_demo_is_the_example_of_the_repository():
    example = read_stages(Path(__file__).parents[2] / "examples" / "staged.yaml", output_dir="a")
    assert read_stages(SPEC, output_dir="a") == example
