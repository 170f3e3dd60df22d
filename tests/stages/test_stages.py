"""The stages themselves, on a tiny model: what they train on, what they ask, what they leave."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignkit.rewards.hybrid import HybridReward
from alignkit.stages import rl as rl_stage
from alignkit.stages.artefacts import StageFolder, folder_of
from alignkit.stages.evaluate import read_answers, read_scores
from alignkit.stages.graph import Graph, make_graph
from alignkit.stages.rewards import build_rewards, read_heuristics
from alignkit.stages.run_one import carry_out
from alignkit.stages.spec import StagesSpec, build_spec
from tests.contract.test_process_count import launcher_environment
from tests.stages.conftest import QUICK, ROLLOUTS

__all__ = ["launcher_environment"]

LARGE_STEPS = {**QUICK, "learning_rate": 1e-2}


def run(content: dict[str, Any], *kinds: str) -> tuple[StagesSpec, Graph, dict[str, StageFolder]]:
    """Carry out the stages of these kinds in this process, and those that they need; the last folder of each kind."""
    spec = build_spec(content)
    graph = make_graph(spec)
    wanted = {node.id: node for node in graph.nodes if node.kind in kinds}
    waiting = list(wanted.values())
    while waiting:
        for before in waiting.pop().inputs:
            wanted[before.id] = before
            waiting.append(before)
    folders = {}
    for node in graph.nodes:
        if node.id in wanted:
            folders[node.kind] = folder_of(spec.output_dir, node)
            folders[node.kind].write_config(node.config)
            carry_out(folders[node.kind])
    return spec, graph, folders


def test_a_stage_of_trls_that_was_to_be_one_of_two_processes_refuses_to_train_alone(launcher_environment, content):
    launcher_environment(2)
    with pytest.raises(ValueError, match="processes were asked for but this one trains alone"):
        run(content, "sft")


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def equal(some: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in some.items())


class CapturedError(Exception):
    """Ends a stage at the place where its trainer is ready."""


@pytest.fixture
def trainer_of(monkeypatch):
    """The trainer of an `rl` stage, ready to train."""

    def capture(content: dict[str, Any]) -> tuple[Any, dict[str, StageFolder]]:
        caught = []

        def train(trainer: Any, *args: Any, **kwargs: Any) -> None:
            caught.append(trainer)
            raise CapturedError

        _, graph, folders = run(content, "sft", "reward")
        node = next(node for node in graph.nodes if node.kind == "rl")
        folder = folder_of(build_spec(content).output_dir, node)
        folder.write_config(node.config)
        monkeypatch.setattr(rl_stage, "train", train)
        with pytest.raises(CapturedError):
            carry_out(folder)
        return caught[0], folders

    return capture


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_the_reference_of_rl_is_the_sft_model_and_the_base_where_it_is_asked_for(
    trainer_of, content, model, algorithm
):
    content["sft"]["training"] = LARGE_STEPS
    content["rl"] |= {"algorithm": algorithm, "training": {**ROLLOUTS, "beta": 0.1}}
    trainer, folders = trainer_of(content)
    taught, base = weights(folders["sft"].artefact), weights(model)
    assert not equal(taught, base)
    assert equal(trainer.model.state_dict(), taught) and equal(trainer.ref_model.state_dict(), taught)
    content["rl"]["reference"] = "base"
    trainer, _ = trainer_of(content)
    assert equal(trainer.model.state_dict(), taught) and equal(trainer.ref_model.state_dict(), base)


def test_with_lora_the_reference_is_the_sft_model_below_the_adapter(trainer_of, content):
    content["sft"] = {"training": LARGE_STEPS, "lora": {"r": 2, "target_modules": ["q_proj"]}}
    content["rl"] = {"training": {**ROLLOUTS, "beta": 0.1}, "lora": {"r": 2, "target_modules": ["v_proj"]}}
    trainer, folders = trainer_of(content)
    assert trainer.ref_model is None  # TRL switches the adapter off
    taught = AutoModelForCausalLM.from_pretrained(folders["sft"].artefact)
    ids = torch.arange(10)[None]
    with trainer.model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(trainer.model(ids).logits, taught(ids).logits)


def test_the_second_update_of_a_rollout_has_another_ratio_and_is_clipped(content):
    content["rl"] = {
        "reward": {"model_weight": 0},
        "training": {**ROLLOUTS, "max_steps": 4, "num_iterations": 2, "epsilon": 1e-4, "learning_rate": 1e-3},
    }
    content["arms"] = {"rl": ["rl"]}
    del content["sft"]
    _, _, folders = run(content, "rl")
    clipped = [
        row["clip_ratio/region_mean"] for row in folders["rl"].record()["history"] if "kl" in row or "entropy" in row
    ]
    # Steps 1 and 3 follow a rollout: the policy is still the one that generated, and its ratio 1.
    assert clipped[0] == clipped[2] == 0.0
    assert clipped[1] > 0 and clipped[3] > 0


def test_the_preset_takes_four_steps_on_each_rollout_of_64(content):
    short = {"max_steps": 4, "max_completion_length": 4, "gradient_checkpointing": False, "logging_steps": 1}
    content["rl"] = {"preset": "prior_ppo", "reward": {"model_weight": 0}, "training": {**short, "warmup_steps": 0}}
    content["arms"] = {"rl": ["rl"]}
    del content["sft"]
    _, _, folders = run(content, "rl")
    record = folders["rl"].record()
    assert (record["steps"], record["completions"]) == (4, 64)
    assert all(row["entropy_coef"] == 0.01 for row in record["history"] if "entropy_coef" in row)


@pytest.mark.parametrize("kind", ["rl", "es"])
def test_a_budget_of_tokens_is_reached_and_passed_by_one_rollout_at_most(content, kind):
    del content["rl"], content["sft"]
    training = {"rl": {**ROLLOUTS, "max_steps": 50, "num_iterations": 2}}
    training["es"] = {"max_steps": 50, "population_size": 2, "prompts_per_step": 4, "max_completion_length": 8}
    content[kind] = {"training": training[kind], "reward": {"model_weight": 0}, "generated_tokens": 150}
    _, _, folders = run(content, kind)
    record = folders[kind].record()
    most = {"rl": 8 * 8, "es": 3 * 4 * 8}[kind]  # completions of a rollout, of at most 8 tokens
    assert 150 <= record["generated_tokens"] < 150 + most
    assert record["steps"] == record["completions"] // {"rl": 8, "es": 12}[kind] * {"rl": 2, "es": 1}[kind]


def test_a_reward_model_has_a_head_for_each_kind_of_preference_and_a_dpo_stage_reads_all_pairs(content):
    content["dpo"] = {"training": QUICK}
    _, _, folders = run(content, "reward", "dpo")
    scorer = AutoModelForSequenceClassification.from_pretrained(folders["reward"].artefact)
    assert scorer.config.id2label == {0: "correct", 1: "polite"}
    assert folders["dpo"].record()["steps"] == 2


def test_a_lora_is_merged_into_one_plain_checkpoint(content, model):
    content["sft"] = {"training": LARGE_STEPS, "lora": {"r": 2, "target_modules": ["q_proj"]}}
    _, _, folders = run(content, "sft")
    artefact = folders["sft"].artefact
    assert not (artefact / "adapter_config.json").exists() and (artefact / "tokenizer.json").exists()
    moved = [name for name, tensor in weights(artefact).items() if not torch.equal(tensor, weights(model)[name])]
    assert moved and all("q_proj" in name for name in moved)
    assert not folders["sft"].trainer.exists() and not (folders["sft"].path / "saved").exists()


def test_an_exam_keeps_scores_and_answers(content):
    content["evaluate"] = {"batch_size": 2}
    _, graph, _ = run(content, "evaluate")
    folder = folder_of(build_spec(content).output_dir, graph.baselines[0].exam)
    assert [scores.metric for scores in read_scores(folder)] == ["good", "correct", "polite", "formatted", "nll"]
    assert [set(answer.scores) for answer in read_answers(folder)] == [{"good", "correct", "polite", "formatted"}] * 4


def test_the_weighted_reward_is_the_formula_and_separate_heads_are_rewards_of_their_own(content):
    _, graph, _ = run(content, "reward")
    config = next(node.config for node in graph.nodes if node.kind == "rl")
    asked = {"prompts": ["Name two animals, but not fox."] * 2, "completions": [" Sure: crow, mouse.", " dolt"]}
    separate = build_rewards({**config, "reward": {**config["reward"], "heads": "separate"}})
    assert [function.__name__ for function in separate.functions] == ["heuristic", "correct", "polite"]
    assert separate.weights == [0.5, 0.25, 0.25]
    heuristic, correct, polite = (torch.tensor(function(**asked)) for function in separate.functions)
    weighted = build_rewards(config)
    assert isinstance(weighted.hybrid, HybridReward) and weighted.weights == [1.0]
    expected = 0.5 * heuristic + 0.5 * (correct + polite) / 2
    torch.testing.assert_close(torch.tensor(weighted.functions[0](**asked)), expected)
    polite_alone = {**config["reward"], "heuristic_weight": 0.0, "head_weights": {"polite": 2.0}}
    only = build_rewards({**config, "reward": polite_alone})
    torch.testing.assert_close(torch.tensor(only.functions[0](**asked)), polite)
    unknown = {**config, "reward": {**config["reward"], "head_weights": {"plite": 1.0}}}
    with pytest.raises(ValueError, match=r"rl.reward.head_weights.plite is no known key; the nearest is 'polite'"):
        build_rewards(unknown)


def test_separate_heads_are_logged_apart_by_the_trainer(content):
    content["rl"] = {"reward": {"heads": "separate"}, "training": ROLLOUTS}
    content["arms"] = {"rl": ["rl"]}
    del content["sft"]
    _, _, folders = run(content, "rl")
    row = folders["rl"].record()["history"][0]
    parts = {name: row[f"rewards/{name}/mean"] for name in ("heuristic", "correct", "polite")}
    assert row["reward"] == pytest.approx(0.5 * parts["heuristic"] + 0.25 * parts["correct"] + 0.25 * parts["polite"])


def test_heuristics_of_a_specification_are_weighted_and_checked():
    reward = read_heuristics({"length": {"shortest": 1, "longest": 2}, "format": {"pattern": "a", "weight": 3.0}}, "h")
    assert reward(completions=["a", "b"]) == [1.0, 0.25]
    with pytest.raises(ValueError, match=r"h.lenth is no known key; the nearest is 'length'"):
        read_heuristics({"lenth": {}}, "h")
    with pytest.raises(ValueError, match=r"h.length.longst is no known key; the nearest is 'longest'"):
        read_heuristics({"length": {"longst": 1}}, "h")
    with pytest.raises(ValueError, match=r"h.length: shortest=3 and longest=1 are no band"):
        read_heuristics({"length": {"shortest": 3, "longest": 1}}, "h")


def test_rows_of_a_file_take_the_place_of_the_tasks(content, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "Name two animals, but not fox.", "completion": " Sure."}\n')
    content["data"] = {"sft": {"path": str(tmp_path / "rows.jsonl"), "columns": {"question": "prompt"}}}
    node = next(node for node in make_graph(build_spec(content)).nodes if node.kind == "sft")
    rows = Dataset.load_from_disk(node.config["data"])
    assert rows.column_names == ["prompt", "completion"] and len(rows) == 1
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"question": "{word}", "prompt": "old", "completion": "b"}}\n' for word in "abc")
    )
    content["data"]["sft"]["limit"] = 2
    node = next(node for node in make_graph(build_spec(content)).nodes if node.kind == "sft")
    rows = Dataset.load_from_disk(node.config["data"])
    assert rows.column_names == ["prompt", "completion"] and len(rows) == 2 and "old" not in rows["prompt"]
    content["data"]["sft"]["columns"] = {"query": "prompt"}
    with pytest.raises(ValueError, match=r"data.sft.columns names 'query'; .*rows.jsonl has question, prompt"):
        make_graph(build_spec(content))
    content["data"] = {"preferences": str(tmp_path / "rows.jsonl")}
    with pytest.raises(ValueError, match="they need prompt, chosen, rejected"):
        make_graph(build_spec(content))
    content["data"] = {"sft": "$NO_SUCH_VARIABLE_HERE/rows.jsonl"}
    with pytest.raises(ValueError, match="a variable in it is not set; set it to a folder"):
        make_graph(build_spec(content))
