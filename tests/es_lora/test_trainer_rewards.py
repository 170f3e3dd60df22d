"""Reward functions are called as GRPO calls them, and what they return is read as GRPO reads it."""

import asyncio
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerState
from trl import GRPOConfig, GRPOTrainer

from alignkit.es_lora.rewards import RewardFunctions
from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer
from tests.es_lora.conftest import LORA, lively_lm, mean_code, prompts
from tests.es_lora.hanging_reward import hangs_on_a_blank, hangs_once


class Recorder:
    """A reward object that keeps its keyword arguments."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **keywords: Any) -> list[float]:
        self.calls.append(keywords)
        keywords["log_metric"]("seen", 2.0)
        keywords["log_extra"]("first", [str(c)[:1] for c in keywords["completions"]])
        return [float(len(str(completion))) for completion in keywords["completions"]]


def kinds(value: Any) -> Any:
    """Type of a value, with those of what is in it."""
    if isinstance(value, dict):
        return {key: kinds(part) for key, part in value.items()}
    return [type(value), kinds(value[0])] if isinstance(value, list) and value else type(value)


@pytest.mark.parametrize("conversational", [False, True])
def test_the_same_reward_object_sees_the_same_keywords_in_grpo(make_trainer, tmp_path, conversational):
    rows = prompts(4)
    if conversational:
        rows = rows.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    recorder = Recorder()
    grpo = GRPOTrainer(
        lively_lm(),
        recorder,
        GRPOConfig(
            str(tmp_path / "grpo"),
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=6,
            save_strategy="no",
            gradient_checkpointing=False,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA),
    )
    grpo.train()
    trainer = make_trainer(reward_funcs=recorder, train_dataset=rows, processing_class=tokenizer, max_steps=1)
    trainer.train()
    theirs, ours = recorder.calls
    assert set(ours) == set(theirs) >= {"prompts", "completions", "completion_ids", "number", "trainer_state"}
    different = {"log_metric", "log_extra"}  # bound methods of their trainers
    assert {key: kinds(ours[key]) for key in ours if key not in different} == {
        key: kinds(theirs[key]) for key in theirs if key not in different
    }
    assert len(ours["prompts"]) == len(ours["number"]) == len(ours["completion_ids"]) == 7 * 2
    for prompt, completion, ids in zip(ours["prompts"], ours["completions"], ours["completion_ids"], strict=True):
        text = completion[0]["content"] if conversational else completion
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        assert "say" not in text and prompt in rows["prompt"]
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert log["seen"] == 2.0 and "rewards/Recorder/mean" in log


def test_none_does_not_apply_and_weights_count(make_trainer):
    def even(completions, number, **columns):
        return [1.0 if n % 2 == 0 else None for n in number]

    async def always(completions, **columns):
        await asyncio.sleep(0)
        return mean_code(completions)

    trainer = make_trainer(reward_funcs=[even, always], reward_weights=[0.5, 2.0], max_steps=1, completions_steps=1)
    trainer.train()
    record = json.loads((trainer._folder / "results.jsonl").read_text().splitlines()[0])
    for row in record["completions"]:
        expected = mean_code([row["completion"]])[0]
        assert row["rewards"][1] == pytest.approx(expected)
        assert row["rewards"][0] == (1.0 if row["prompt"] % 2 == 0 else None)
    centre = [row for row in record["completions"] if row["member"] == "centre"]
    values = [2 * row["rewards"][1] + 0.5 * (row["rewards"][0] or 0) for row in centre]
    assert record["centre"] == pytest.approx(sum(values) / 2) and record["failed"] == 0


def test_asynchronous_functions_share_one_loop_and_run_together():
    loops = []
    waiting = asyncio.Event()

    async def first(completions, **columns):
        loops.append(asyncio.get_running_loop())
        await asyncio.wait_for(waiting.wait(), 5)
        return [1.0] * len(completions)

    async def second(completions, **columns):
        loops.append(asyncio.get_running_loop())
        waiting.set()
        return [2.0] * len(completions)

    functions = RewardFunctions([first, second])
    for _ in range(2):
        assert functions(["p"], ["c"], [[1]], {}, None).tolist() == [[1.0, 2.0]]
    assert len(set(map(id, loops))) == 1


def test_rewards_beside_the_completions_reach_the_record(make_trainer):
    trainer = make_trainer(reward_funcs=Recorder(), max_steps=1, completions_steps=1)
    trainer.train()
    record = json.loads((trainer._folder / "results.jsonl").read_text().splitlines()[0])
    assert len(record["completions"]) == 2 * 2
    assert all(row["first"] == row["completion"][:1] for row in record["completions"])


def test_a_call_that_hangs_costs_its_rows_alone():
    functions = RewardFunctions(hangs_on_a_blank, timeout_s=1.0)
    assert functions.one_member_at_a_time
    assert functions(["p"], ["fine"], [[1]], {}, TrainerState()).tolist() == [[4.0]]
    assert functions(["p"], [" hangs"], [[1]], {}, TrainerState()).tolist() == [[math.inf]]
    assert functions(["p"], ["fine"], [[1]], {}, TrainerState()).tolist() == [[4.0]]


def test_with_a_deadline_the_member_that_hangs_fails_and_the_others_do_not(make_trainer, tmp_path):
    rows = prompts().add_column("flag", [str(tmp_path / "calls")] * 5)
    trainer = make_trainer(reward_funcs=hangs_once, train_dataset=rows, reward_timeout_s=1.0, max_steps=1)
    trainer.train()
    record = json.loads((trainer._folder / "results.jsonl").read_text().splitlines()[0])
    assert [value is None for value in record["fitness"]] == [True] + [False] * 5  # the first call is the centre's
    assert record["failed"] == 1 and record["centre"] is not None


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ([1.0], ValueError, "returned 1 rewards for 2 completions"),
        (["1.0", 2.0], TypeError, "returned '1.0' for a completion"),
        (3.0, TypeError, "return a list of 2 numbers"),
        ("ab", TypeError, "return a list of 2 numbers"),
        ([1.0, [2.0]], TypeError, "for a completion; return a number"),
        (torch.zeros(2, 2), TypeError, "'reward' returned tensor.* for a completion; return a number"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(returned, error, message):
    def reward(completions, **columns):
        return returned

    with pytest.raises(error, match=message):
        RewardFunctions(reward)(["p", "p"], ["a", "b"], [[1], [2]], {}, None)


def test_functions_of_one_name_are_told_apart_in_the_log():
    rewards = RewardFunctions([lambda completions, **columns: [0.0], mean_code, lambda completions, **columns: [1.0]])
    assert rewards.names == ["<lambda>", "mean_code", "<lambda>_2"]


def test_numbers_of_any_kind_are_read_and_nan_is_a_failure_while_none_is_not():
    def reward(completions, **columns):
        return [1, True, torch.tensor(0.5), None, math.nan, -math.inf]

    values = RewardFunctions(reward)(["p"] * 6, ["c"] * 6, [[1]] * 6, {}, None)[:, 0]
    assert values[:3].tolist() == [1.0, 1.0, 0.5]
    assert math.isnan(values[3]) and values[4:].tolist() == [math.inf, math.inf]


def test_a_row_without_other_columns_is_enough(make_trainer):
    make_trainer(train_dataset=Dataset.from_list([{"prompt": "a"}, {"prompt": "bc"}]), max_steps=1).train()


@pytest.mark.parametrize("name", ["prompts", "completions"])
def test_a_column_that_would_hide_what_is_judged_is_refused(make_trainer, name):
    with pytest.raises(ValueError, match=f"columns \\['{name}'\\].*rename them"):
        make_trainer(train_dataset=prompts().add_column(name, ["reference"] * 5))


def test_extra_columns_stay_beside_their_completions_when_a_call_logs_none():
    def logs_unless_blank(completions, log_extra, **columns):
        if completions != [" "]:
            log_extra("length", torch.tensor([len(text) for text in completions]))
        return [1.0] * len(completions)

    functions = RewardFunctions(logs_unless_blank)
    for completions in (["a", "bb"], [" "], ["ccc"]):
        functions(["p"] * len(completions), completions, [[1]] * len(completions), {}, None)
    assert functions.pop_extra() == {"length": [1, 2, None, 3]} and functions.pop_extra() == {}
    for completions in ([" "], ["ccc"]):
        functions(["p"], completions, [[1]], {}, None)
    assert functions.pop_extra() == {"length": [None, 3]}


def test_an_extra_column_of_another_length_is_refused():
    def short(completions, log_extra, **columns):
        log_extra("note", ["one"])
        return [1.0] * len(completions)

    with pytest.raises(ValueError, match="1 values of 'note' for 2 completions"):
        RewardFunctions(short)(["p", "p"], ["a", "b"], [[1], [2]], {}, None)


def test_extra_columns_may_hold_what_json_does_not_know(make_trainer):
    def logs_everything(completions, log_extra, **columns):
        log_extra("numpy", [np.float32(0.5)] * len(completions))
        log_extra("torch", torch.full((len(completions), 2), math.nan))
        log_extra("fraction", [Fraction(1, 3)] * len(completions))
        return mean_code(completions)

    trainer = make_trainer(reward_funcs=logs_everything, max_steps=1, completions_steps=1)
    trainer.train()
    record = json.loads((trainer._folder / "results.jsonl").read_text().splitlines()[0])
    for row in record["completions"]:
        assert (row["numpy"], row["torch"], row["fraction"]) == (0.5, [None, None], "1/3")
