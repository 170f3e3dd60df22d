"""Evolution strategies: noise, shaping, the estimator and what the rewards of a step say."""

import math

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st

from alignkit.es_lora.estimator import anchor_decay, es_gradient, low_rank_es_gradient, streamed_es_gradient
from alignkit.es_lora.finished_rows import equal_groups
from alignkit.es_lora.fitness import (
    FITNESS_SHAPINGS,
    combine_rewards,
    has_variance,
    replace_failed,
    shape_fitness,
    signal_to_noise,
    step_indices,
)
from alignkit.es_lora.noise import antithetic_member, keyed_words, member_noise, member_noises, noise_slice
from alignkit.es_lora.outcome import completion_rewards, step_outcome
from alignkit.es_lora.sampling import SharedGumbelProcessor, gumbel_noise
from tests.properties.given import given
from tests.properties.strategies import ORDERS, SEEDS, shuffled, tensors

NAMES = st.text(max_size=12)
SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=2).map(tuple)
# Quarters are exact in float64, so that shifts and scales by powers of two are as well.
QUARTERS = st.integers(-40, 40).map(lambda number: number / 4)
PAIRS = st.lists(st.tuples(QUARTERS, QUARTERS), min_size=1, max_size=5)


@given(
    SEEDS, st.integers(0, 10**6), st.integers(0, 500), st.dictionaries(NAMES, SHAPES, min_size=1, max_size=4), ORDERS
)
def test_noise_depends_on_its_four_fields_and_not_on_what_is_drawn_with_it_or_in_which_order(
    seed, step, member, shapes, order
):
    together = member_noises(seed, step, member, shapes)
    for name in shuffled(list(shapes), order):
        assert torch.equal(member_noise(seed, step, member, name, shapes[name]), together[name])
    others = dict(shuffled(list(shapes.items()), order))
    assert all(torch.equal(noise, together[name]) for name, noise in member_noises(seed, step, member, others).items())


@given(SEEDS, st.integers(0, 99), st.integers(0, 99), NAMES, st.integers(0, 3))
def test_a_change_of_any_field_changes_every_number(seed, step, member, name, field):
    fields = [seed, step, member, name]
    fields[field] = fields[field] + (1 if field < 3 else "x")
    same = (member_noise(seed, step, member, name, (64,)) == member_noise(*fields, (64,))).sum()
    assert same <= 1


@given(SEEDS, NAMES, st.integers(0, 3000), st.integers(0, 60))
def test_a_slice_is_a_part_of_the_whole_and_a_longer_tensor_begins_with_the_shorter(seed, name, start, count):
    whole = member_noise(seed, 0, 0, name, (start + count + 7,))
    assert torch.equal(noise_slice(seed, 0, 0, name, start, count), whole[start : start + count])
    assert whole.isfinite().all() and (whole.abs() <= 6.77).all()


@given(st.integers(0, 10**9))
def test_members_of_a_pair_have_one_noise_and_opposite_signs(pair):
    (first, plus), (second, minus) = antithetic_member(2 * pair), antithetic_member(2 * pair + 1)
    assert first == second == pair
    assert plus == -minus == 1


@given(st.lists(st.integers(-(10**12), 10**12) | NAMES, max_size=4), st.integers(0, 30), st.integers(0, 30))
def test_more_words_of_a_stream_begin_with_the_fewer(fields, few, more):
    few, more = sorted((few, more))
    assert keyed_words(*fields, count=more)[:few].tolist() == keyed_words(*fields, count=few).tolist()


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


# ---- Estimator ----

P = 4
WEIGHTS = tensors(P, of=QUARTERS)
NOISE = tensors(P, 2, 3)


@given(WEIGHTS, WEIGHTS, NOISE, st.floats(0.01, 3), QUARTERS)
def test_the_estimate_is_linear_in_the_weights_and_sigma_divides_it(one, other, noise, sigma, factor):
    def gradient(weights, divide=False):
        return es_gradient(weights, noise, sigma, divide_by_sigma=divide)

    assert torch.allclose(gradient(one + factor * other), gradient(one) + factor * gradient(other))
    assert torch.allclose(gradient(one, True) * sigma, gradient(one))
    assert not gradient(torch.zeros(P)).any()


@given(WEIGHTS, NOISE, ORDERS)
def test_the_order_of_the_population_is_irrelevant_and_mirrored_pairs_of_equal_weight_cancel(weights, noise, order):
    places = shuffled(list(range(P)), order)
    plain = es_gradient(weights, noise, 1.0, divide_by_sigma=False)
    assert torch.allclose(es_gradient(weights[places], noise[places], 1.0, divide_by_sigma=False), plain)
    twice = es_gradient(weights.repeat(2), torch.cat([noise, noise]), 1.0, divide_by_sigma=False)
    assert torch.allclose(twice, plain)
    mirrored = es_gradient(weights.repeat(2), torch.cat([noise, -noise]), 1.0, divide_by_sigma=False)
    assert torch.allclose(mirrored, torch.zeros_like(plain), atol=1e-12)


@given(WEIGHTS, st.booleans(), st.booleans(), st.integers(0, 99), st.sampled_from([0.5, 2.0]))
def test_noise_drawn_again_gives_the_estimate_of_noise_held(weights, antithetic, divide, step, sigma):
    shapes = {"a": (3, 2), "b": (5,)}
    found = streamed_es_gradient(
        weights,
        shapes,
        dict.fromkeys(shapes, sigma),
        seed=1,
        step=step,
        antithetic=antithetic,
        divide_by_sigma=divide,
    )
    for name, shape in shapes.items():
        drawn = [antithetic_member(p) if antithetic else (p, 1) for p in range(P)]
        noise = torch.stack([sign * member_noise(1, step, member, name, shape) for member, sign in drawn])
        held = es_gradient(weights, noise, sigma, divide_by_sigma=divide)
        assert torch.allclose(found[name], held, atol=1e-4, rtol=1e-5)


@given(WEIGHTS, tensors(P, 3, 2), tensors(P, 2, 4), ORDERS)
def test_low_rank_noise_counts_as_its_product_and_the_sign_may_be_on_either_factor(weights, a, b, order):
    found = low_rank_es_gradient(weights, a, b, 1.0, divide_by_sigma=False)
    noise = (a @ b).transpose(1, 2) / math.sqrt(2)
    assert torch.allclose(found, es_gradient(weights, noise, 1.0, divide_by_sigma=False))
    assert torch.allclose(low_rank_es_gradient(weights, -a, -b, 1.0, divide_by_sigma=False), found)
    ranks = shuffled([0, 1], order)
    assert torch.allclose(
        low_rank_es_gradient(weights, a[:, :, ranks], b[:, ranks], 1.0, divide_by_sigma=False), found
    )


@given(tensors(3), tensors(3), st.floats(0, 1))
def test_the_pull_to_the_anchor_points_away_from_it_and_is_none_at_it(param, anchor, decay):
    assert not anchor_decay(anchor, anchor, decay).any()
    assert torch.allclose(anchor_decay(param, anchor, decay), -anchor_decay(anchor, param, decay))
    distance = (param - decay * (param - anchor) - anchor).norm()
    assert anchor_decay(param, anchor, decay).dot(param - anchor) >= 0
    assert torch.allclose(distance, (1 - decay) * (param - anchor).norm())


# ---- Decoding ----


@given(
    st.lists(st.lists(st.integers(0, 99), max_size=7, unique=True), min_size=1, max_size=5).filter(any),
    st.integers(0, 3),
)
def test_groups_have_one_size_and_one_member_and_hold_every_row_once(rows, more):
    most = sum(bool(of_member) for of_member in rows) + more
    members, groups = equal_groups(rows, most)
    assert len(members) == len(groups) <= most
    assert len({len(group) for group in groups}) == 1
    for member, of_member in enumerate(rows):
        mine = [row for at, group in zip(members, groups, strict=True) if at == member for row in dict.fromkeys(group)]
        assert mine == of_member


@given(tensors(6, of=st.floats(-6, 6)))
def test_gumbel_noise_is_finite_and_rises_with_the_normal_number(normals):
    found = gumbel_noise(normals.float())
    assert found.isfinite().all()
    order = normals.float().argsort()
    assert (found[order].diff() >= 0).all()


@given(tensors(2, 5, of=st.floats(-3, 3)), SEEDS, st.integers(0, 5), tensors(2, 1))
def test_members_with_equal_logits_draw_the_same_token_and_a_constant_changes_none(logits, seed, position, shift):
    keys = [(3, 0), (3, 1)]
    draw = SharedGumbelProcessor(seed=seed, step=2, keys=keys, prompt_length=4)
    ids = torch.zeros(4, 4 + position, dtype=torch.long)
    scores = logits.float()
    both = draw(ids, scores.repeat(2, 1))
    assert torch.equal(both[:2], both[2:])
    assert torch.equal(draw(ids[:2], scores), both[:2])
    alone = SharedGumbelProcessor(seed=seed, step=2, keys=keys[1:], prompt_length=4)
    assert torch.equal(alone(ids[:1], scores[1:]), both[1:2])
