"""Noise of a population, the estimate that is made of it, and the noise that members share when they write."""

import math

import torch
from hypothesis import strategies as st

from alignkit.es_lora.estimator import anchor_decay, es_gradient, low_rank_es_gradient, streamed_es_gradient
from alignkit.es_lora.finished_rows import equal_groups
from alignkit.es_lora.noise import antithetic_member, keyed_words, member_noise, member_noises, noise_slice
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
