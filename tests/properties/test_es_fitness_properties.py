"""From rewards to the weights of a population: units, order, failures, and what the rewards of a step say."""

import math

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st

from alignkit.es_lora.fitness import (
    FITNESS_SHAPINGS,
    combine_rewards,
    has_variance,
    replace_failed,
    shape_fitness,
    signal_to_noise,
    step_indices,
)
from alignkit.es_lora.outcome import completion_rewards, step_outcome
from tests.properties.given import given
from tests.properties.strategies import ORDERS, SEEDS, shuffled, tensors

NAMES = st.text(max_size=12)
SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=2).map(tuple)
# Quarters are exact in float64, so that shifts and scales by powers of two are as well.
QUARTERS = st.integers(-40, 40).map(lambda number: number / 4)
PAIRS = st.lists(st.tuples(QUARTERS, QUARTERS), min_size=1, max_size=5)


# ---- Shaping ----


def shaped(pairs, how):
    values = torch.tensor(pairs, dtype=torch.float64).flatten()
    return shape_fitness(values[:, None] if how == "prompt_baseline" else values, how)


@given(PAIRS, st.sampled_from([0.125, 0.5, 2.0, 64.0]), QUARTERS)
def test_units_and_zeros_of_rewards_change_no_weight(pairs, scale, shift):
    moved = [(scale * first + shift, scale * second + shift) for first, second in pairs]
    for how in FITNESS_SHAPINGS:
        assert torch.allclose(shaped(moved, how), shaped(pairs, how), atol=1e-9)


@given(PAIRS)
def test_only_the_order_counts_in_ranks_and_only_the_order_within_pairs_in_signs(pairs):
    bent = [(math.atan(first), math.atan(second)) for first, second in pairs]
    for how in ("centered_rank", "sign"):
        assert torch.allclose(shaped(bent, how), shaped(pairs, how))


@given(PAIRS)
def test_rewards_turned_round_turn_the_weights_round_and_weights_keep_the_order_of_rewards(pairs):
    turned = [(-first, -second) for first, second in pairs]
    values = torch.tensor(pairs, dtype=torch.float64).flatten()
    for how in FITNESS_SHAPINGS:
        weights = shaped(pairs, how)
        assert torch.allclose(shaped(turned, how), -weights, atol=1e-12)
        assert abs(weights.sum().item()) < 1e-9
        if how != "sign":
            assert (weights[values.argsort(stable=True)].diff() >= -1e-12).all()
        assert bool(weights.any()) == (has_variance(values) if how != "sign" else any(a != b for a, b in pairs))


@given(
    st.lists(st.lists(QUARTERS, min_size=3, max_size=3), min_size=2, max_size=5),
    st.lists(QUARTERS, min_size=3, max_size=3),
)
def test_how_hard_a_prompt_is_has_no_part_in_the_prompt_baseline(rewards, difficulty):
    fitness = torch.tensor(rewards, dtype=torch.float64)
    moved = fitness + torch.tensor(difficulty, dtype=torch.float64)
    before, after = shape_fitness(fitness, "prompt_baseline"), shape_fitness(moved, "prompt_baseline")
    assert torch.allclose(before, after, atol=1e-9)
    assert before.square().mean() <= 1 + 1e-9


@given(st.lists(QUARTERS | st.sampled_from([math.nan, math.inf, -math.inf]), min_size=1, max_size=8))
def test_a_member_that_failed_is_never_better_than_one_that_did_not(values):
    fitness = torch.tensor(values, dtype=torch.float64)
    replaced, n_failed = replace_failed(fitness)
    finite = fitness.isfinite()
    assert n_failed == (~finite).sum()
    assert replaced.isfinite().all()
    if finite.any():
        assert torch.equal(replaced[finite], fitness[finite])
        assert (replaced[~finite] == fitness[finite].min()).all()
    again, none = replace_failed(replaced)
    assert torch.equal(again, replaced) and none == 0


@given(tensors(4, 3, of=QUARTERS), tensors(3, of=st.floats(0, 3)), ORDERS, st.data())
def test_the_order_of_reward_functions_is_irrelevant_and_one_that_does_not_apply_is_not_there(
    rewards, weights, order, data
):
    rewards = rewards.clone()
    for place in data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=6)):
        rewards[place] = math.nan
    columns = shuffled([0, 1, 2], order)
    total = combine_rewards(rewards, weights)
    assert torch.allclose(combine_rewards(rewards[:, columns], weights[columns]), total, equal_nan=True)
    for row, value in zip(rewards, total, strict=True):
        known = ~row.isnan()
        expected = (row[known] * weights[known]).sum() if known.any() else torch.tensor(math.nan)
        assert torch.allclose(value, expected.to(value), equal_nan=True)


@given(tensors(3, 2, of=QUARTERS), st.integers(0, 2), st.sampled_from([math.inf, -math.inf]))
def test_a_completion_on_which_a_function_failed_has_no_reward_whatever_the_others_say(rewards, row, broken):
    rewards = rewards.clone()
    rewards[row, 1] = broken
    found = completion_rewards(rewards, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert found[row].isnan() and found.isnan().sum() == 1


@given(tensors(4, 2, 2, of=QUARTERS), tensors(2, 2, of=QUARTERS), st.sampled_from([0.5, 2.0]), QUARTERS, ORDERS)
def test_the_signal_has_no_unit_no_zero_and_no_order_of_members_prompts_and_rollouts(
    rewards, centre, scale, shift, order
):
    plain = signal_to_noise(rewards, centre)
    moved = signal_to_noise(scale * rewards + shift, scale * centre + shift)
    assert plain.ratio >= 0 or math.isnan(plain.ratio)
    # At the very edge rounding may decide.
    assume(plain.verdict == moved.verdict or abs(plain.between - plain.within) > 1e-6)
    assert moved.verdict == plain.verdict
    assert moved.between == pytest.approx(scale**2 * plain.between, abs=1e-9, nan_ok=True)
    members, prompts, rollouts = (shuffled(list(range(n)), order) for n in rewards.shape)
    places = rewards[members][:, prompts][:, :, rollouts], centre[prompts][:, rollouts]
    permuted = signal_to_noise(*places)
    assert permuted.verdict == plain.verdict
    assert permuted.within == pytest.approx(plain.within, abs=1e-9, nan_ok=True)


@given(tensors(5, 2, 1, 1, of=QUARTERS), st.integers(0, 3), st.booleans())
def test_the_outcome_counts_members_that_failed_and_the_centre_is_none_of_them(rewards, member, fails):
    rewards = rewards.clone()
    if fails:
        rewards[member, 0, 0, 0] = math.inf
    outcome = step_outcome(rewards, torch.ones(1, dtype=torch.float64), lambda mean, _: shape_fitness(mean, "z_score"))
    assert outcome.failed == int(fails)
    assert outcome.fitness.isnan().sum() == int(fails)
    assert outcome.centre == pytest.approx(rewards[-1].mean().item())
    assert outcome.moves == bool(outcome.shaped.any())
    record = outcome.record()
    levels = list(record["percentiles"].values())
    assert levels == sorted(levels)
    assert record["best"] >= levels[-1] - 1e-12


@given(st.integers(1, 9), st.integers(1, 20), st.integers(0, 6), SEEDS)
def test_every_pass_over_the_items_sees_each_once(n_items, per_step, n_steps, seed):
    seen = [item for step in range(n_steps) for item in step_indices(n_items, per_step, step, seed)]
    passes = [seen[start : start + n_items] for start in range(0, len(seen), n_items)]
    assert all(sorted(one) == list(range(n_items)) for one in passes if len(one) == n_items)
    assert all(len(set(one)) == len(one) for one in passes)
