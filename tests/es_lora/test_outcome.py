"""What a step does with its rewards."""

import math

import torch

from alignkit.es_lora.fitness import SignalToNoise, shape_fitness
from alignkit.es_lora.outcome import PERCENTILES, Outcome, completion_rewards, step_outcome


def test_a_step_whose_pairs_all_tie_moves_nothing_though_members_differ():
    of_members = torch.tensor([1.0, 1.0, 3.0, 3.0, 2.0], dtype=torch.float64)  # two pairs, and the centre
    rewards = of_members.view(5, 1, 1, 1)
    weights = torch.ones(1, dtype=torch.float64)
    tied, scored = (
        step_outcome(rewards, weights, lambda fitness, per_prompt, how=how: shape_fitness(fitness, how))
        for how in ("sign", "z_score")
    )
    assert not tied.moves and tied.shaped.tolist() == [0.0] * 4
    assert scored.moves and scored.shaped.tolist() == [-1.0, -1.0, 1.0, 1.0]


def test_a_shaping_sees_members_on_each_prompt_with_the_lowest_in_place_of_one_that_failed():
    inf = torch.inf
    of_members = torch.tensor(
        [[1.0, 4.0], [inf, inf], [3.0, 2.0], [0.0, 0.0]], dtype=torch.float64
    )  # 3, and the centre
    seen = []
    outcome = step_outcome(
        of_members.view(4, 2, 1, 1),
        torch.ones(1, dtype=torch.float64),
        lambda fitness, per_prompt: seen.append((fitness.tolist(), per_prompt.tolist())) or fitness - fitness.mean(),
    )
    assert seen == [([2.5, 2.5, 2.5], [[1.0, 4.0], [1.0, 2.0], [3.0, 2.0]])]
    assert (outcome.failed, outcome.moves) == (1, False)


def test_a_completion_that_failed_fails_its_member_but_only_itself_of_the_centre():
    rewards = torch.arange(24, dtype=torch.float64).view(3, 2, 2, 2)  # 2 members and the centre
    rewards[1, 0, 1, 1] = rewards[2, 1, 0, 0] = torch.inf
    rewards[2, 0, 0, 1] = torch.nan  # does not apply
    weights = torch.tensor([1.0, 10.0], dtype=torch.float64)
    outcome = step_outcome(rewards, weights, lambda fitness, per_prompt: fitness)
    assert outcome.fitness[0].item() == (10 + 32 + 54 + 76) / 4
    assert outcome.fitness[1].isnan() and outcome.failed == 1
    assert outcome.centre == (16 + 208 + 252) / 3


def test_a_completion_has_no_reward_where_a_function_failed_and_the_others_have_theirs():
    rewards = torch.tensor([[1.0, 2.0], [torch.inf, 2.0], [torch.nan, 2.0]])
    found = completion_rewards(rewards, torch.tensor([1.0, 10.0]))
    assert found[[0, 2]].tolist() == [21.0, 20.0] and found[1].isnan()


def test_the_signal_of_a_step_is_that_of_its_members_against_the_centre():
    rewards = torch.tensor([0.0, 4.0, 8.0, 30.0], dtype=torch.float64).view(4, 1, 1, 1)  # 3, and the centre
    outcome = step_outcome(rewards, torch.ones(1, dtype=torch.float64), lambda fitness, per_prompt: fitness)
    assert outcome.signal.between == 16.0
    assert outcome.signal.verdict == "sigma_too_large"  # 30 − 4 > 2 √16


def test_the_best_member_is_one_that_did_not_fail_though_all_rewards_are_below_0():
    fitness = torch.tensor([-3.0, -1.0, torch.nan])
    record = Outcome(fitness, torch.zeros(3), 0.0, 1, False, SignalToNoise(1.0, 2.0, 0.5, "ok")).record()
    assert (record["best"], record["best_member"]) == (-1.0, 1)


def test_the_record_of_a_step_holds_plain_numbers_of_the_members_that_did_not_fail():
    nan = torch.nan
    fitness = torch.tensor([*range(101), nan], dtype=torch.float64)
    record = Outcome(fitness, torch.zeros(102), 7.0, 1, False, SignalToNoise(1.0, 2.0, 0.5, "ok")).record()
    assert {key: value for key, value in record.items() if key != "fitness"} == {
        "mean": 50.0,
        "std": math.sqrt((101**2 - 1) / 12),
        "best": 100.0,
        "best_member": 100,
        "centre": 7.0,
        "percentiles": {str(level): float(level) for level in PERCENTILES},
        "failed": 1,
        "signal_to_noise": 0.5,
        "verdict": "ok",
    }
    assert record["fitness"][:101] == list(range(101)) and math.isnan(record["fitness"][101])


def test_a_step_in_which_every_member_failed_has_a_record_without_numbers():
    nan = torch.nan
    record = Outcome(
        torch.full((2,), nan), torch.zeros(2), 7.0, 2, False, SignalToNoise(nan, nan, nan, "unknown")
    ).record()
    assert all(math.isnan(record[key]) for key in ("mean", "std", "best", "signal_to_noise"))
    assert [*record["percentiles"]] == [*map(str, PERCENTILES)]
    assert all(map(math.isnan, record["percentiles"].values()))
