"""The hybrid reward: worked values, what each part does to it, and parts that cannot be computed."""

import copy
import json
import math
import pickle
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing._internal.distributed.fake_pg import FakeStore

from alignkit.rewards.hybrid import HybridReward
from alignkit.rewards.parts import RewardPartError, RewardParts
from alignkit.rewards.standardize import RunningStandardizer


def politeness(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
    return [float("please" in text) for text in completions]


def length_score(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
    return [10.0 * len(text) for text in completions]


TEXTS = ["please", "give me", "ok"]  # heuristic 1, 0, 0; model 60, 70, 20


def test_the_reward_is_the_weighted_sum_of_its_parts() -> None:
    assert HybridReward(politeness, length_score)(None, TEXTS) == [30.5, 35.0, 10.0]
    reward = HybridReward(heuristic=politeness, model=length_score, heuristic_weight=2.0, model_weight=0.1)
    assert reward(["p"] * 3, TEXTS, completion_ids=[[1]] * 3) == pytest.approx([8.0, 7.0, 2.0])


def test_each_part_moves_the_result_by_its_weight() -> None:
    def moved(by_heuristic: float, by_model: float) -> float:
        reward = HybridReward(
            lambda prompts, completions, **_: [0.25 + by_heuristic],
            lambda prompts, completions, **_: [3.0 + by_model],
            heuristic_weight=0.5,
            model_weight=0.25,
        )
        return reward(None, ["text"])[0]

    assert moved(0.0, 0.0) == 0.875
    assert moved(0.5, 0.0) - moved(0.0, 0.0) == 0.25
    assert moved(0.0, 2.0) - moved(0.0, 0.0) == 0.5


def test_a_better_heuristic_still_counts_where_the_model_is_standardized() -> None:
    reward = HybridReward(politeness, length_score, standardize=True)
    first, second = reward(None, ["please", "pleads"])  # as long as each other
    assert first - second == 0.5


def test_every_part_is_logged_by_itself() -> None:
    metrics: dict[str, float] = {}
    extra: dict[str, list[float]] = {}
    HybridReward(politeness, length_score, clip=20.0)(
        None, TEXTS, log_metric=metrics.__setitem__, log_extra=extra.__setitem__
    )
    assert extra == {
        "hybrid/heuristic": [1.0, 0.0, 0.0],
        "hybrid/model": [60.0, 70.0, 20.0],
        "hybrid/total": [20.0, 20.0, 10.0],
    }
    assert metrics == pytest.approx(
        {"hybrid/heuristic": 1 / 3, "hybrid/model": 50, "hybrid/total": 50 / 3, "hybrid/clipped": 2 / 3}
    )


def test_the_clip_holds_on_both_sides() -> None:
    reward = HybridReward(politeness, lambda prompts, completions, **_: [-9.0, 0.0, 9.0], 0.0, 1.0, clip=1.5)
    assert reward(None, TEXTS) == [-1.5, 0.0, 1.5]


def test_the_model_is_standardized_by_all_scores_so_far() -> None:
    reward = HybridReward(politeness, length_score, 0.0, 1.0, standardize=True)
    assert reward(None, ["x"]) == [0.0]  # one score has no spread
    # Now 10, 30 and 50: mean 30, standard deviation 20.
    assert reward(None, ["xxx", "xxxxx"]) == pytest.approx([0.0, 1.0])


def test_a_batch_that_is_better_than_those_before_has_a_higher_mean() -> None:
    reward = HybridReward(politeness, length_score, 0.0, 1.0, standardize=True)
    before = reward(None, ["x" * n for n in (1, 2, 3)])
    after = reward(None, ["x" * n for n in (11, 12, 13)])
    assert statistics.mean(after) > statistics.mean(before) + 0.5


def test_a_frozen_scale_gives_a_text_the_same_reward_in_any_batch() -> None:
    reward = HybridReward(politeness, length_score, standardize=True)
    reward(None, TEXTS)
    assert reward.standardizer is not None
    reward.standardizer.frozen = True
    alone = reward(None, ["ok"])
    assert reward(None, ["ok", "x" * 1000])[:1] == alone == reward(None, ["ok"])


@pytest.mark.parametrize("restore", ["state", "pickle", "copy"])
def test_a_restored_reward_goes_on_as_the_one_that_was_saved(restore: str) -> None:
    reward = HybridReward(politeness, length_score, standardize=True)
    reward(None, TEXTS)
    restored = HybridReward(politeness, length_score, standardize=True)
    if restore == "state":
        restored.load_state_dict(json.loads(json.dumps(reward.state_dict())))
    else:
        restored = pickle.loads(pickle.dumps(reward)) if restore == "pickle" else copy.deepcopy(reward)
    fresh = HybridReward(politeness, length_score, standardize=True)
    assert restored(None, ["a", "bb"]) == reward(None, ["a", "bb"]) != fresh(None, ["a", "bb"])


def test_a_state_of_another_setting_is_refused() -> None:
    standardized, plain = (
        HybridReward(politeness, length_score, standardize=True),
        HybridReward(politeness, length_score),
    )
    assert plain.state_dict() == {}
    plain.load_state_dict({})
    with pytest.raises(ValueError, match="standardize=False"):
        plain.load_state_dict(standardized.state_dict())
    with pytest.raises(ValueError, match="standardize=True"):
        standardized.load_state_dict({})
    with pytest.raises(ValueError, match=r"the state has \['mean'\]"):
        standardized.load_state_dict({"mean": 1.0})


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=5), min_size=1, max_size=6))
def test_the_running_spread_is_that_of_all_values_at_once(batches: list[list[float]]) -> None:
    running = RunningStandardizer()
    for batch in batches:
        running.update(batch)
    values = [value for batch in batches for value in batch]
    assert running.count == len(values)
    if len(values) > 1 and statistics.stdev(values) > 1e-3:
        assert running.mean == pytest.approx(statistics.mean(values), abs=1e-6)
        assert running.standard_deviation == pytest.approx(statistics.stdev(values), rel=1e-6)


def test_equal_values_are_standardized_to_zero() -> None:
    running = RunningStandardizer()
    running.update([4.0, 4.0, 4.0])
    assert running([4.0, 5.0]) == [0.0, 1.0]


def test_a_value_that_is_not_finite_leaves_the_scale_as_it_was() -> None:
    running = RunningStandardizer()
    with pytest.raises(ValueError, match="must be finite"):
        running.update([1.0, math.nan])
    assert running == RunningStandardizer()


async def later(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def down(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
    raise ConnectionError("the server is down")


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        (lambda prompts, completions, **_: [0.0, None, 0.0], "returned None for completion 1"),
        (lambda prompts, completions, **_: [0.0, 0.0, math.nan], "returned nan for completion 2"),
        (lambda prompts, completions, **_: [math.inf, 0.0, 0.0], "returned inf for completion 0"),
        (lambda prompts, completions, **_: [0.0, "0.5", 0.0], "returned '0.5' for completion 1"),
        (lambda prompts, completions, **_: [torch.zeros(2)] * 3, r"returned tensor\(\[0., 0.\]\) for completion 0"),
        (lambda prompts, completions, **_: [0.0, 0.0], "returned 2 rewards for 3 completions"),
        (lambda prompts, completions, **_: None, "returned None; return a list"),
        (lambda prompts, completions, **_: 0.5, "returned 0.5; return a list"),
        (down, "failed: ConnectionError: the server is down"),
        (later, "is asynchronous"),
    ],
)
@pytest.mark.parametrize("place", ["heuristic", "model"])
def test_a_part_that_cannot_be_computed_is_an_error_with_its_name(place: str, part: Any, complaint: str) -> None:
    parts = {"heuristic": politeness, "model": length_score} | {place: part}
    with pytest.raises(RewardPartError, match=f"^part '{place}' of the reward 'hybrid' {complaint}"):
        HybridReward(**parts)(None, TEXTS)


def test_every_part_is_given_the_prompts_the_completions_and_the_columns() -> None:
    seen: list[Any] = []

    def looking(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
        seen.append((prompts, completions, columns))
        return [0.0] * len(completions)

    HybridReward(looking, looking)(["p"] * 3, TEXTS, answer=[1, 2, 3])
    assert seen == [(["p"] * 3, TEXTS, {"answer": [1, 2, 3]})] * 2


def test_one_text_in_the_place_of_a_list_is_refused() -> None:
    with pytest.raises(TypeError, match="completions is the string 'please'; wrap it in a list"):
        HybridReward(politeness, length_score)(None, "please")


def test_rewards_may_be_tensors() -> None:
    reward = HybridReward(politeness, lambda prompts, completions, **_: torch.tensor([1.0, 2.0, 3.0]))
    assert reward(None, TEXTS) == [1.0, 1.0, 1.5]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"heuristic_weight": -0.5}, "heuristic_weight=-0.5 must be"),
        ({"model_weight": math.inf}, "model_weight=inf must be"),
        ({"heuristic_weight": 0, "model_weight": 0}, "are both 0"),
        ({"model_weight": "0.5"}, "model_weight='0.5' must be"),
        ({"model_weight": True}, "model_weight=True must be"),
        ({"clip": 0}, "clip=0 would make every reward 0"),
        ({"clip": -1.0}, r"clip=-1\.0 must be"),
    ],
)
def test_bad_settings_are_errors_that_name_them(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        HybridReward(politeness, length_score, **settings)


def test_a_part_that_cannot_be_called_is_an_error() -> None:
    with pytest.raises(TypeError, match="part 'model' of hybrid is 'some/model', which cannot be called"):
        HybridReward(politeness, "some/model")  # type: ignore[arg-type]


@pytest.mark.parametrize("functions", [{}, {"": politeness}, {1: politeness}])
def test_parts_without_a_name_are_an_error(functions: dict[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"the parts of mine are .*; give at least one, each with a name"):
        RewardParts("mine", functions)


def test_no_completions_get_no_rewards() -> None:
    assert HybridReward(politeness, length_score, standardize=True, clip=1.0)([], [], log_metric=print) == []


def test_several_processes_must_share_a_frozen_scale() -> None:
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        reward = HybridReward(politeness, length_score, standardize=True)
        with pytest.raises(ValueError, match=r"set standardizer\.frozen = True in all of them"):
            reward(None, TEXTS)
        assert reward.standardizer is not None
        reward.standardizer.frozen = True
        assert reward(None, ["please"]) == [30.5]  # nothing was shown, so that 60 stays 60
        assert HybridReward(politeness, length_score)(None, ["please"]) == [30.5]
    finally:
        torch.distributed.destroy_process_group()
