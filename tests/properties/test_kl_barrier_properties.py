"""Divergences, aggregates, barriers and the dual weight: what must hold for all logits and all splits of a step."""

import math
from itertools import chain

import pytest
import torch
from hypothesis import strategies as st

from alignkit.kl_barrier.aggregation import AGGREGATES, aggregate_positions, hinge_barrier, plain_aggregate_positions
from alignkit.kl_barrier.barrier import (
    StepShape,
    batch_barrier,
    pooled_barrier,
    position_weights,
    rank_global_barrier,
    sequence_barrier,
    step_barrier,
)
from alignkit.kl_barrier.divergences import forward_kl, reverse_kl
from alignkit.kl_barrier.dual import HIGHEST_WEIGHT, LOWEST_WEIGHT, DualWeight
from alignkit.kl_barrier.sequences import IGNORED_LABEL, Sequences, documents_of, sequences_of
from tests.properties.given import given
from tests.properties.strategies import ORDERS, shuffled, tensors

VOCABULARY = 4
LOGITS = tensors(2, VOCABULARY, of=st.floats(-20, 20))
DIVERGENCES = st.lists(st.floats(0, 10), min_size=1, max_size=45)
TAUS = st.sampled_from([0.0, 0.5, 2.0])
HOW = st.sampled_from(AGGREGATES)


@given(LOGITS, LOGITS, ORDERS)
def test_renaming_the_vocabulary_changes_no_divergence(policy, reference, order):
    names = shuffled(list(range(VOCABULARY)), order)
    for divergence in (reverse_kl, forward_kl):
        renamed = divergence(policy[:, names], reference[:, names])
        assert torch.allclose(renamed, divergence(policy, reference), rtol=1e-9, atol=1e-12)


@given(LOGITS, tensors(2, 1, of=st.floats(-20, 20)), st.integers(0, VOCABULARY - 1), st.floats(0.01, 5))
def test_a_divergence_is_zero_for_equal_distributions_and_above_zero_for_others(logits, shift, place, change):
    other = logits.clone()
    other[:, place] += change
    for divergence in (reverse_kl, forward_kl):
        assert (divergence(logits, logits) == 0).all()
        assert torch.allclose(divergence(logits, logits + shift), torch.zeros(2, dtype=torch.float64), atol=1e-12)
        # A change of an entry of probability near 0 or 1 is below all digits.
        share = logits.softmax(-1)[:, place]
        certain = ((share > 1e-6) & (share < 1 - 1e-6)).tolist()
        assert all(value > 0 for value, seen in zip(divergence(logits, other).tolist(), certain, strict=True) if seen)


@given(LOGITS, LOGITS, st.integers(1, VOCABULARY - 1))
def test_merging_entries_of_the_vocabulary_never_raises_a_divergence(policy, reference, merged):
    def coarse(logits):
        return torch.cat([logits[:, :merged].logsumexp(-1, keepdim=True), logits[:, merged:]], dim=1)

    for divergence in (reverse_kl, forward_kl):
        fine = divergence(policy, reference)
        assert (divergence(coarse(policy), coarse(reference)) <= fine + 1e-9).all()


@given(LOGITS, LOGITS, LOGITS, LOGITS)
def test_the_divergence_of_two_independent_choices_is_the_sum_of_both(p, q, r, s):
    def product(first, second):
        return (first[:, :, None] + second[:, None, :]).flatten(1)

    whole = reverse_kl(product(p, r), product(q, s))
    assert torch.allclose(whole, reverse_kl(p, q) + reverse_kl(r, s), rtol=1e-9, atol=1e-12)


# ---- Aggregates ----


@given(DIVERGENCES, st.floats(0, 5))
def test_a_constant_added_to_all_positions_is_added_to_every_aggregate_but_the_root_mean_square(values, shift):
    kl = torch.tensor(values, dtype=torch.float64)
    for how in AGGREGATES:
        before, after = aggregate_positions(kl, how).item(), aggregate_positions(kl + shift, how).item()
        if how == "rmse":
            assert before - 1e-9 <= after <= before + shift + 1e-9
        else:
            assert after == pytest.approx(before + shift)


@given(DIVERGENCES)
def test_the_tail_mean_lies_between_the_quantile_and_the_maximum(values):
    kl = torch.tensor(values, dtype=torch.float64)
    p95, tail, highest, mean = (aggregate_positions(kl, how).item() for how in ("p95", "cvar95", "max", "mean"))
    below = sum(value < tail - 1e-9 for value in values)
    assert mean - 1e-9 <= tail <= highest + 1e-9
    assert p95 <= highest + 1e-9
    assert below >= len(values) - math.ceil(len(values) / 20) or tail == pytest.approx(highest)


@given(DIVERGENCES, HOW)
def test_an_aggregate_of_equal_parts_is_that_of_one_part(values, how):
    kl = torch.tensor(values, dtype=torch.float64)
    if how in ("mean", "rmse", "max"):
        assert aggregate_positions(kl.repeat(3), how).item() == pytest.approx(aggregate_positions(kl, how).item())
    index = torch.arange(3).repeat_interleave(len(kl))
    apart = aggregate_positions(kl.repeat(3), how, index)
    assert apart.tolist() == pytest.approx([aggregate_positions(kl, how).item()] * 3)


@given(st.lists(DIVERGENCES, min_size=1, max_size=4), HOW, ORDERS)
def test_where_positions_of_sequences_stand_is_irrelevant(sequences, how, order):
    pairs = [(value, number) for number, values in enumerate(sequences) for value in values]
    moved = shuffled(pairs, order)
    found = []
    for rows in (pairs, moved):
        values, index = zip(*rows, strict=True)
        kl, index = torch.tensor(values, dtype=torch.float64), torch.tensor(index)
        found += [aggregate_positions(kl, how, index), plain_aggregate_positions(kl, how, index)]
    assert all(torch.allclose(one, found[0]) for one in found)


@given(DIVERGENCES, TAUS, st.floats(0.1, 10))
def test_the_hinge_scales_with_its_unit_and_never_exceeds_what_it_is_given(values, tau, scale):
    d = torch.tensor(values, dtype=torch.float64)
    hinge = hinge_barrier(d, tau)
    assert ((hinge >= 0) & (hinge <= d)).all()
    assert torch.allclose(hinge_barrier(scale * d, scale * tau), scale * hinge, atol=1e-9)
    assert (hinge_barrier(d, tau + 1) <= hinge).all()


# ---- Barriers ----


def sequences_with(index: list[int]) -> Sequences:
    return Sequences(torch.tensor(index, dtype=torch.long), max(index) + 1, torch.tensor(len(set(index))))


def value_and_gradient(kl, barrier_of):
    leaf = kl.clone().requires_grad_()
    barrier = barrier_of(leaf).value
    return barrier.item(), torch.autograd.grad(barrier, leaf)[0]


@given(st.lists(DIVERGENCES, min_size=2, max_size=5), HOW, TAUS, st.data())
def test_shares_of_whole_sequences_add_up_to_the_barrier_of_the_step_for_any_split(sequences, how, tau, data):
    cut = data.draw(st.integers(1, len(sequences) - 1))
    step = StepShape(n_micro_batches=1, n_ranks=1, n_sequences=len(sequences))

    def barrier(part):
        kl = torch.tensor([value for values in part for value in values], dtype=torch.float64)
        index = [number for number, values in enumerate(part) for _ in values]
        return value_and_gradient(kl, lambda leaf: sequence_barrier(leaf, sequences_with(index), how, tau, step))

    whole, parts = barrier(sequences), [barrier(sequences[:cut]), barrier(sequences[cut:])]
    assert sum(value for value, _ in parts) == pytest.approx(whole[0])
    assert torch.allclose(torch.cat([gradient for _, gradient in parts]), whole[1])


@given(DIVERGENCES, HOW, TAUS, st.integers(1, 4), st.data())
def test_ranks_and_micro_batches_of_a_step_average_to_its_one_hinge(values, how, tau, n_ranks, data):
    # Distinct, because which of equal divergences gets the gradient is left open.
    kl = torch.tensor(sorted(set(values)), dtype=torch.float64)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(kl)), min_size=n_ranks - 1, max_size=n_ranks - 1)))
    parts = kl.tensor_split(cuts) if cuts else (kl,)
    whole = value_and_gradient(kl, lambda leaf: pooled_barrier(leaf, how, tau, StepShape(1, 1, 1)))
    shape = StepShape(n_micro_batches=1, n_ranks=n_ranks, n_sequences=1)
    of_ranks = []
    for place, part in enumerate(parts):
        others = torch.cat([kl[:0], *parts[:place]]), torch.cat([kl[:0], *parts[place + 1 :]])
        of_ranks.append(value_and_gradient(part, lambda leaf, o=others: rank_global_barrier(leaf, o, how, tau, shape)))
    assert sum(value for value, _ in of_ranks) / n_ranks == pytest.approx(whole[0])
    assert torch.allclose(torch.cat([gradient for _, gradient in of_ranks]) / n_ranks, whole[1])


@given(DIVERGENCES, HOW, TAUS, st.data())
def test_a_step_linearised_where_it_stands_has_the_value_and_gradient_of_its_hinge(values, how, tau, data):
    kl = torch.tensor(sorted(set(values)), dtype=torch.float64)
    cut = data.draw(st.integers(0, len(kl)))
    divergence, weights = position_weights(kl, how, tau)
    shape = StepShape(n_micro_batches=2, n_ranks=1, n_sequences=1)
    halves = [
        value_and_gradient(part, lambda leaf, w=w: step_barrier(leaf, w, divergence, tau, shape))
        for part, w in ((kl[:cut], weights[:cut]), (kl[cut:], weights[cut:]))
    ]
    whole = value_and_gradient(kl, lambda leaf: pooled_barrier(leaf, how, tau, StepShape(1, 1, 1)))
    assert sum(value for value, _ in halves) == pytest.approx(whole[0])
    assert torch.allclose(torch.cat([gradient for _, gradient in halves]), whole[1])


@given(DIVERGENCES, TAUS)
def test_an_evaluated_batch_of_one_sequence_is_the_same_in_every_scope(values, tau):
    kl, sequences = torch.tensor(values, dtype=torch.float64), sequences_with([0] * len(values))
    for how in AGGREGATES:
        found = [batch_barrier(kl, sequences, how, scope, tau) for scope in ("sequence", "micro_batch", "step")]
        assert len({round(barrier.value.item(), 9) for barrier in found}) == 1
        assert found[0].divergence.item() == pytest.approx(found[1].divergence.item())


# ---- Sequences ----

ROWS = st.lists(st.lists(st.tuples(st.integers(1, 90), st.booleans()), min_size=1, max_size=6), min_size=1, max_size=4)


@given(ROWS, st.booleans())
def test_documents_are_the_same_padded_row_by_row_or_packed_into_one(rows, on_the_left):
    length = max(map(len, rows))

    def padded(values, filling):
        more = [filling] * (length - len(values))
        return [*more, *values] if on_the_left else [*values, *more]

    tokens = [[token for token, _ in row] for row in rows]
    labels = [[token if is_labelled else IGNORED_LABEL for token, is_labelled in row] for row in rows]
    packed = {
        "input_ids": torch.tensor([list(chain.from_iterable(tokens))]),
        "labels": torch.tensor([list(chain.from_iterable(labels))]),
        "position_ids": torch.tensor([[place for row in rows for place in range(len(row))]]),
    }
    apart = {
        "input_ids": torch.tensor([padded(row, 0) for row in tokens]),
        "labels": torch.tensor([padded(row, IGNORED_LABEL) for row in labels]),
    }
    # As collators do: nothing predicts the first token of a document, whatever stands before it in its row.
    packed["labels"][packed["position_ids"] == 0] = IGNORED_LABEL
    starts = (apart["input_ids"] == 0).sum(1) if on_the_left else torch.zeros(len(rows), dtype=torch.long)
    apart["labels"][torch.arange(len(rows)), starts] = IGNORED_LABEL
    found, other = sequences_of(packed), sequences_of(apart)
    assert torch.equal(found.index, other.index)
    assert found.n_labelled == other.n_labelled
    if not on_the_left:
        assert documents_of(packed) == documents_of(apart)
        n_labels = sum(label != IGNORED_LABEL for _, targets in documents_of(packed) for label in targets)
        assert n_labels == len(found.index)


# ---- Dual weight ----


@given(st.lists(st.floats(0, 1e3), max_size=20), st.floats(0.01, 10), st.floats(0.1, 10), st.floats(0, 0.99))
def test_the_dual_weight_follows_the_ratio_to_its_target_alone_and_stays_in_bounds(seen, target, unit, decay):
    plain, scaled = DualWeight(target, decay=decay), DualWeight(unit * target, decay=decay)
    for value in seen:
        before = plain.weight
        plain.update(value)
        scaled.update(unit * value)
        assert LOWEST_WEIGHT <= plain.weight <= HIGHEST_WEIGHT
        assert abs(math.log(plain.weight / before)) <= plain.rate + 1e-12
    assert scaled.weight == pytest.approx(plain.weight, rel=1e-6)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=10), st.lists(st.floats(0, 5), max_size=5), st.floats(0, 2))
def test_more_divergence_never_gives_less_weight_and_a_restored_one_goes_on_the_same(seen, later, more):
    low, high = DualWeight(1.0), DualWeight(1.0)
    for value in seen:
        low.update(value)
        high.update(value + more)
    assert high.weight >= low.weight - 1e-12
    restored = DualWeight(1.0)
    restored.load_state_dict(low.state_dict())
    for value in later:
        low.update(value)
        restored.update(value)
    assert restored == low
