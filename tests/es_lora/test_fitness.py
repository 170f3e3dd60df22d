"""Fitness shaping, failed members, rewards of several functions, signal to noise, and the order of prompts."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alignkit.es_lora import (
    FITNESS_SHAPINGS,
    SignalToNoise,
    combine_rewards,
    has_variance,
    replace_failed,
    shape_fitness,
    signal_to_noise,
    step_indices,
)

EACH = pytest.mark.parametrize("how", FITNESS_SHAPINGS)
NAN, INF = math.nan, math.inf
POPULATIONS = st.lists(st.integers(-50, 50), min_size=2, max_size=12).filter(lambda values: len(values) % 2 == 0)


def shaped(values: list, how: str) -> list[float]:
    fitness = torch.tensor(values, dtype=torch.float64)
    if how == "prompt_baseline" and fitness.ndim == 1:
        fitness = fitness[:, None]
    return shape_fitness(fitness, how).tolist()


# ---- Values ----


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("z_score", [-1.5 / math.sqrt(1.25), -0.5 / math.sqrt(1.25), 1.5 / math.sqrt(1.25), 0.5 / math.sqrt(1.25)]),
        ("centered_rank", [-1 / 2, -1 / 6, 1 / 2, 1 / 6]),
        ("sign", [-1.0, 1.0, 1.0, -1.0]),
    ],
)
def test_the_weights_of_one_two_four_three(how, expected):
    assert shaped([1.0, 2.0, 4.0, 3.0], how) == pytest.approx(expected)


def test_equal_fitnesses_share_the_mean_of_their_ranks():
    assert shaped([5.0, 1.0, 5.0, 9.0, 5.0], "centered_rank") == [0.0, -0.5, 0.0, 0.5, 0.0]


def test_a_tied_pair_has_the_sign_zero():
    assert shaped([2.0, 2.0, 1.0, 0.0], "sign") == [0.0, 0.0, 1.0, -1.0]


def test_the_prompt_baseline_is_the_deviation_from_each_prompt_over_its_spread():
    # Deviations from the prompts' means 1 and 10 are (−1, −2) and (1, 2): root mean square √2.5, means −1.5 and 1.5.
    expected = 1.5 / math.sqrt(2.5)
    assert shaped([[0.0, 8.0], [2.0, 12.0]], "prompt_baseline") == pytest.approx([-expected, expected])


def test_the_prompt_baseline_of_one_prompt_is_the_z_score():
    values = [0.3, 0.1, -2.0, 0.7]
    assert shaped(values, "prompt_baseline") == pytest.approx(shaped(values, "z_score"))


def test_a_difficult_prompt_does_not_shrink_the_step_under_the_prompt_baseline():
    fitness = torch.tensor([[0.0, 0.2], [1.0, 0.4], [0.5, 0.9]])
    shifted = fitness + torch.tensor([0.0, -64.0])
    torch.testing.assert_close(
        shape_fitness(shifted, "prompt_baseline"), shape_fitness(fitness, "prompt_baseline"), rtol=0, atol=1e-4
    )


def test_a_missing_reward_on_a_hard_prompt_gives_no_advantage():
    # Prompt 0 pays 10 to everyone, prompt 1 nothing: the member that lacks prompt 1 is no better than the others.
    fitness = torch.tensor([[10.0, NAN], [10.0, 0.1], [10.0, -0.1]])
    first, second, third = shape_fitness(fitness, "prompt_baseline").tolist()
    assert first == pytest.approx(0, abs=1e-6)
    assert second == pytest.approx(-third)
    assert second > 0


def test_the_weights_sum_to_zero_where_rewards_are_missing():
    weights = shape_fitness(torch.tensor([[1.0, NAN, 3.0], [2.0, 0.5, 9.0], [4.0, 0.0, NAN]]), "prompt_baseline")
    assert weights.sum().item() == pytest.approx(0, abs=1e-6)
    assert weights.abs().max() > 0.1


@EACH
def test_shaping_keeps_the_dtype(how):
    fitness = torch.tensor([[1.0], [2.0]]) if how == "prompt_baseline" else torch.tensor([1.0, 2.0])
    assert shape_fitness(fitness, how).dtype == torch.float32


# ---- Properties ----


@EACH
@given(values=POPULATIONS, scale=st.sampled_from([0.125, 1.0, 3.0, 100.0]), shift=st.integers(-100, 100))
@settings(max_examples=40, deadline=None)
def test_shift_and_scale_of_the_rewards_change_nothing(how, values, scale, shift):
    moved = [scale * value + shift for value in values]
    assert shaped(moved, how) == pytest.approx(shaped(values, how), abs=1e-9)


@EACH
@given(values=POPULATIONS, random=st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_members_is_irrelevant(how, values, random):
    if how == "sign":  # its members are pairs
        pairs = list(range(len(values) // 2))
        random.shuffle(pairs)
        order = [2 * pair + side for pair in pairs for side in (0, 1)]
    else:
        order = list(range(len(values)))
        random.shuffle(order)
    expected = shaped(values, how)
    assert shaped([values[i] for i in order], how) == pytest.approx([expected[i] for i in order], abs=1e-12)


@EACH
@given(values=POPULATIONS)
@settings(max_examples=40, deadline=None)
def test_the_weights_sum_to_zero(how, values):
    assert sum(shaped(values, how)) == pytest.approx(0, abs=1e-9)


@given(values=POPULATIONS)
@settings(max_examples=40, deadline=None)
def test_z_scores_have_variance_one_and_keep_the_order(values):
    assume(len({*values}) > 1)
    scores = torch.tensor(shaped(values, "z_score"))
    assert scores.square().mean().item() == pytest.approx(1)
    assert scores.argsort(stable=True).tolist() == torch.tensor(values).argsort(stable=True).tolist()


# ---- No variance ----


@EACH
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_without_variance_the_weights_are_zero(how, value):
    fitness = torch.full((6, 3) if how == "prompt_baseline" else (6,), value)
    assert not has_variance(fitness)
    assert shape_fitness(fitness, how).tolist() == [0.0] * 6


@EACH
def test_differences_in_the_last_bit_are_no_variance(how):
    fitness = torch.full((4,), 0.1)
    fitness[1] = torch.nextafter(fitness[1], torch.tensor(1.0))
    fitness = fitness[:, None] if how == "prompt_baseline" else fitness
    assert not has_variance(fitness)
    assert not shape_fitness(fitness, how).any()


def test_prompts_of_different_difficulty_are_no_variance_between_members():
    assert not has_variance(torch.tensor([[1.0, 5.0], [1.0, 5.0]]))
    assert has_variance(torch.tensor([[1.0, 5.0], [1.0, 5.1]]))


def test_eight_last_bits_of_the_largest_are_rounding_and_nine_are_not():
    bit = torch.finfo(torch.float32).eps
    assert not has_variance(torch.tensor([1.0, 1 - 8 * bit]))
    assert has_variance(torch.tensor([1.0, 1 - 9 * bit]))
    assert has_variance(torch.tensor([1e-8, 2e-8]))


@pytest.mark.parametrize("value", [5.0, -5.0])
def test_a_missing_reward_is_no_variance(value):
    assert not has_variance(torch.tensor([[value], [value], [NAN]]))


def test_a_population_of_one_has_no_variance():
    assert shaped([3.0], "centered_rank") == [0.0]


# ---- Failed members ----


def test_a_failed_member_gets_the_lowest_finite_fitness_and_is_counted():
    fitness, n_failed = replace_failed(torch.tensor([2.0, NAN, -1.0, INF, -INF]))
    assert fitness.tolist() == [2.0, -1.0, -1.0, -1.0, -1.0]
    assert n_failed == 3


def test_when_all_members_failed_the_fitness_is_zero():
    fitness, n_failed = replace_failed(torch.tensor([NAN, INF]))
    assert fitness.tolist() == [0.0, 0.0]
    assert n_failed == 2


def test_a_member_without_any_reward_gets_the_lowest_of_each_prompt():
    fitness, n_failed = replace_failed(torch.tensor([[1.0, 5.0], [NAN, INF], [3.0, NAN]]))
    assert fitness[:2].tolist() == [[1.0, 5.0], [1.0, 5.0]]
    assert fitness[2, 0] == 3 and fitness[2, 1].isnan()
    assert n_failed == 1


def test_nothing_failed_changes_nothing():
    fitness = torch.tensor([2.0, -1.0])
    replaced, n_failed = replace_failed(fitness)
    assert torch.equal(replaced, fitness) and n_failed == 0


@pytest.mark.parametrize(
    ("values", "how", "complaint"),
    [
        ([1.0, NAN], "z_score", r"members \[1\] have no finite fitness; call replace_failed"),
        ([[1.0, 2.0], [NAN, NAN]], "prompt_baseline", r"members \[1\]"),
        ([[1.0, 2.0], [INF, 1.0]], "prompt_baseline", r"members \[1\]"),
        ([1.0, 2.0, 3.0], "sign", "3 members; 'sign' compares pairs"),
        ([1.0, 2.0], "rank", "fitness_shaping is 'rank'; choose one of 'z_score', 'centered_rank'"),
        ([1.0, 2.0], "prompt_baseline", r"needs floats \(P, M\): one for each member and prompt$"),
        ([[1.0], [2.0]], "z_score", r"needs floats \(P,\): one for each member$"),
        ([], "z_score", r"needs floats \(P,\)"),
        ([1, 2], "z_score", "torch.int64"),
    ],
)
def test_fitness_that_cannot_be_shaped_is_refused(values, how, complaint):
    with pytest.raises(ValueError, match=complaint):
        shape_fitness(torch.tensor(values), how)


# ---- Several reward functions ----


def test_a_reward_function_that_does_not_apply_is_left_out_of_the_sum():
    rewards = torch.tensor([[1.0, 10.0], [NAN, 10.0], [1.0, NAN], [NAN, NAN]])
    combined = combine_rewards(rewards, torch.tensor([2.0, 0.5]))
    assert combined[:3].tolist() == [7.0, 5.0, 2.0]
    assert combined[3].isnan()


def test_rewards_of_any_leading_shape_are_combined():
    rewards = torch.arange(24.0).view(2, 3, 4)
    torch.testing.assert_close(combine_rewards(rewards, torch.ones(4)), rewards.sum(-1))


def test_the_sum_of_rewards_has_their_dtype():
    assert combine_rewards(torch.ones(3, 2), torch.ones(2, dtype=torch.float64)).dtype == torch.float32


def test_another_number_of_weights_than_functions_is_refused():
    with pytest.raises(ValueError, match="one weight for each"):
        combine_rewards(torch.zeros(5, 2), torch.ones(3))


# ---- Signal to noise ----


def rewards_of(
    member_std: float, rollout_std: float, prompts: int = 8, rollouts: int = 4, seed: int = 4
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    members = member_std * torch.randn(40, 1, 1, generator=generator)
    difficulty = 5 * torch.randn(1, prompts, 1, generator=generator)
    return members + difficulty + rollout_std * torch.randn(40, prompts, rollouts, generator=generator)


def test_the_components_of_a_hand_worked_layout():
    # Means of the members 1 and 4, of the prompts 1 and 4; what is left of every cell is ±0.5.
    rewards = torch.tensor([[0.0, 2.0], [2.0, 6.0]])[:, :, None]
    found = signal_to_noise(rewards)
    assert found.between == pytest.approx(4.5)
    assert found.within == pytest.approx(4 * 0.25 / 1 / 2)
    assert found.ratio == pytest.approx((4.5 - 0.5) / 0.5)


def test_one_prompt_is_judged_by_its_rollouts():
    # Members' means 1 and 5; deviations ±1 and ±1: variance 2 of one rollout, 1 of a mean of two.
    found = signal_to_noise(torch.tensor([[[0.0, 2.0]], [[4.0, 6.0]]]))
    assert (found.between, found.within, found.ratio) == pytest.approx((8.0, 1.0, 7.0))


def test_members_that_differ_less_than_by_chance_have_no_signal():
    # All means are 1; what is left of every cell is ±1.
    found = signal_to_noise(torch.tensor([[0.0, 2.0], [2.0, 0.0]])[:, :, None])
    assert found == SignalToNoise(0.0, 4 / 1 / 2, 0.0, "sigma_too_small")


def test_members_that_differ_alike_on_every_prompt_are_all_signal():
    found = signal_to_noise(torch.tensor([[0.0, 0.0], [1.0, 1.0]])[:, :, None])
    assert found == SignalToNoise(0.5, 0.0, INF, "ok")


@pytest.mark.parametrize(("variance", "verdict"), [(18.8, "sigma_too_small"), (19.1, "ok")])
def test_three_members_on_two_prompts_need_19_times_the_variance_by_chance(variance, verdict):
    # F with 2 and 2 degrees of freedom exceeds x by chance in 1 of 1 + x. Members' means −√v, 0, √v; within 4 / 2 / 2.
    member = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) * math.sqrt(variance)
    rest = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    found = signal_to_noise(torch.stack([member + rest, member - rest], dim=1)[:, :, None])
    assert (found.between, found.within) == pytest.approx((variance, 1.0))
    assert found.verdict == verdict


@pytest.mark.parametrize(("centre", "verdict"), [(19.0, "unknown"), (20.0, "sigma_too_large")])
def test_a_centre_more_than_two_standard_deviations_above_the_mean_member_is_broken_by_the_noise(centre, verdict):
    # Members 0 and 10: mean 5, 2 √50 = 14.1; one prompt and one rollout tell nothing of chance.
    found = signal_to_noise(torch.tensor([0.0, 10.0]).view(2, 1, 1), torch.tensor([[centre]]))
    assert found.between == pytest.approx(50.0) and found.verdict == verdict
    assert math.isnan(found.within) and math.isnan(found.ratio)


@pytest.mark.parametrize(("bits", "verdict"), [(8, "no_variance"), (9, "sigma_too_large")])
def test_a_centre_above_equal_members_by_eight_last_bits_is_rounding(bits, verdict):
    member = 1 - bits * torch.finfo(torch.float64).eps
    rewards = torch.full((4, 1, 1), member, dtype=torch.float64)
    assert signal_to_noise(rewards, torch.ones(1, 1, dtype=torch.float64)).verdict == verdict


def test_members_that_differ_by_rounding_have_no_variance_at_all():
    rewards = torch.full((4, 2, 1), 0.1)
    rewards[1, 0] = torch.nextafter(rewards[1, 0], torch.tensor(1.0))
    assert signal_to_noise(rewards) == SignalToNoise(0.0, 0.0, 0.0, "no_variance")


def test_the_estimated_ratio_is_the_ratio_of_the_variances():
    found = signal_to_noise(rewards_of(1.0, 2.0, prompts=50, rollouts=4))
    assert found.within == pytest.approx(4 / 200, rel=0.1)
    assert found.ratio == pytest.approx(1 / (4 / 200), rel=0.5)


@pytest.mark.parametrize(
    ("rewards", "centre", "verdict"),
    [
        (rewards_of(1.0, 1.0), None, "ok"),
        (rewards_of(1.0, 1.0, prompts=1), None, "ok"),
        (rewards_of(0.0, 1.0), None, "sigma_too_small"),
        (rewards_of(0.0, 1.0, prompts=1), None, "sigma_too_small"),
        (rewards_of(1.0, 1.0), rewards_of(1.0, 1.0).mean(0) + 0.5, "ok"),
        (rewards_of(1.0, 1.0), rewards_of(1.0, 1.0).mean(0) + 9, "sigma_too_large"),
        (torch.zeros(4, 2, 1), torch.ones(2, 1), "sigma_too_large"),
        (torch.full((4, 2, 3), 0.1), torch.full((2, 3), 0.1), "no_variance"),
        (torch.tensor([1.0, 5.0]).view(1, 2, 1).expand(4, 2, 3), None, "no_variance"),
        (rewards_of(1.0, 0.0), None, "ok"),
        (rewards_of(1.0, 1.0, prompts=1, rollouts=1), None, "unknown"),
        (rewards_of(1.0, 1.0)[:1], None, "unknown"),
    ],
)
def test_the_verdict_names_what_is_wrong(rewards, centre, verdict):
    assert signal_to_noise(rewards, centre).verdict == verdict


@pytest.mark.parametrize("prompts", [1, 6])
def test_members_that_differ_by_chance_pass_for_signal_once_in_twenty_steps(prompts):
    verdicts = [signal_to_noise(rewards_of(0.0, 1.0, prompts, 3, seed)).verdict for seed in range(400)]
    assert 3 <= verdicts.count("ok") <= 37  # 20 expected, 4 standard deviations are 17


def test_failed_members_and_unknown_prompts_are_left_out():
    rewards = rewards_of(1.0, 1.0)
    holes = rewards.clone()
    holes[5], holes[7, 2, 1] = NAN, NAN
    kept_members, kept_prompts = [p for p in range(40) if p != 5], [0, 1, 3, 4, 5, 6, 7]
    assert signal_to_noise(holes) == signal_to_noise(rewards[kept_members][:, kept_prompts])


# ---- Which prompts a step sees ----


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 30), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_after_any_step_every_item_was_seen_equally_often_but_for_one(n_items, per_step, n_steps, seed):
    seen = torch.zeros(n_items, dtype=torch.long)
    for step in range(n_steps):
        indices = step_indices(n_items, per_step, step, seed)
        assert len(indices) == per_step
        seen += torch.bincount(torch.tensor(indices), minlength=n_items)
    assert seen.max() - seen.min() <= 1


def test_the_items_of_a_step_do_not_depend_on_the_steps_before():
    steps = [step_indices(10, 4, step, 7) for step in range(6)]
    assert [step_indices(10, 4, step, 7) for step in reversed(range(6))] == steps[::-1]


def test_every_pass_is_shuffled_anew_and_by_its_seed():
    passes = [tuple(step_indices(20, 20, step, seed)) for step in range(3) for seed in range(3)]
    assert len({*passes, tuple(range(20))}) == 10
    assert all(sorted(order) == list(range(20)) for order in passes)


def test_the_first_order_is_the_one_of_every_release():
    assert step_indices(6, 6, 0, 0) == [2, 0, 3, 4, 1, 5]


@pytest.mark.parametrize("numbers", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_an_impossible_cycle_is_refused(numbers):
    with pytest.raises(ValueError, match="at least 1, 1 and 0"):
        step_indices(*numbers, seed=0)


def test_one_member_has_no_variance_that_could_be_told():
    found = signal_to_noise(rewards_of(1.0, 1.0)[:1])
    assert all(math.isnan(value) for value in (found.between, found.within, found.ratio))
