"""The reward model's losses and tiers: what must hold for every score matrix and every kind of comparison."""

import pytest
import torch
from hypothesis import strategies as st

from alignkit.reward_model.comparisons import Comparisons, tiered_comparisons
from alignkit.reward_model.losses import (
    bradley_terry_loss,
    center_penalty,
    head_weight_vector,
    positive_regularizer,
    positive_weights,
    reward_objective,
)
from tests.properties.given import given
from tests.properties.strategies import NUMBERS, ORDERS, shuffled, tensors

HEADS = 3
TEXTS = 5
REDUCTIONS = st.sampled_from(["comparisons", "active_heads"])
INDICES = st.tuples(st.integers(0, TEXTS - 1), st.integers(0, TEXTS - 1), st.integers(0, HEADS - 1))
WEIGHTS = st.sampled_from([0.25, 0.5, 1.0, 2.0])
COMPARISONS = st.lists(st.tuples(INDICES, WEIGHTS, st.floats(0, 3), WEIGHTS), min_size=1, max_size=8)
SCORES = tensors(TEXTS, HEADS)
# Numbers of a coarse grid, so that ties come up.
GRID = st.integers(-3, 3).map(float)


def comparisons_of(rows) -> Comparisons:
    winner, loser, head = torch.tensor([indices for indices, _, _, _ in rows]).reshape(-1, 3).unbind(1)
    weight, margin, unit = torch.tensor([row[1:] for row in rows], dtype=torch.float64).reshape(-1, 3).unbind(1)
    return Comparisons(winner, loser, head, weight, margin, unit)


def loss_and_gradient(scores, comparisons, **options):
    leaf = scores.clone().requires_grad_()
    loss = bradley_terry_loss(leaf, comparisons, **options).loss
    return loss.item(), torch.autograd.grad(loss, leaf)[0]


# ---- Bradley-Terry ----


@given(SCORES, COMPARISONS, tensors(HEADS), REDUCTIONS)
def test_a_constant_added_to_a_heads_scores_changes_neither_loss_nor_gradient(scores, rows, shift, reduction):
    before = loss_and_gradient(scores, comparisons_of(rows), reduction=reduction)
    after = loss_and_gradient(scores + shift, comparisons_of(rows), reduction=reduction)
    assert after[0] == pytest.approx(before[0], abs=1e-9)
    assert torch.allclose(after[1], before[1], atol=1e-9)


@given(SCORES, COMPARISONS, REDUCTIONS)
def test_the_gradient_of_a_head_sums_to_zero_because_only_gaps_count(scores, rows, reduction):
    _, gradient = loss_and_gradient(scores, comparisons_of(rows), reduction=reduction)
    assert torch.allclose(gradient.sum(0), torch.zeros(HEADS, dtype=torch.float64), atol=1e-9)


@given(SCORES, COMPARISONS, REDUCTIONS, ORDERS)
def test_the_order_of_comparisons_texts_and_heads_is_irrelevant(scores, rows, reduction, order):
    plain = loss_and_gradient(scores, comparisons_of(rows), reduction=reduction)
    texts, heads = shuffled(list(range(TEXTS)), order), shuffled(list(range(HEADS)), order)
    moved = [((texts.index(w), texts.index(lo), heads.index(h)), *rest) for (w, lo, h), *rest in shuffled(rows, order)]
    loss, gradient = loss_and_gradient(scores[texts][:, heads], comparisons_of(moved), reduction=reduction)
    assert loss == pytest.approx(plain[0], rel=1e-12)
    assert torch.allclose(gradient, plain[1][texts][:, heads], atol=1e-12)


@given(SCORES, COMPARISONS, st.data())
def test_a_comparison_cut_into_two_of_half_its_weight_and_unit_is_the_same(scores, rows, data):
    place = data.draw(st.integers(0, len(rows) - 1))
    indices, weight, margin, unit = rows[place]
    halves = [*rows[:place], *[(indices, weight / 2, margin, unit / 2)] * 2, *rows[place + 1 :]]
    for reduction in ("comparisons", "active_heads"):
        whole = loss_and_gradient(scores, comparisons_of(rows), reduction=reduction)
        cut = loss_and_gradient(scores, comparisons_of(halves), reduction=reduction)
        assert cut[0] == pytest.approx(whole[0], rel=1e-12)
        assert torch.allclose(cut[1], whole[1], atol=1e-12)


@given(SCORES, INDICES, NUMBERS)
def test_winner_and_loser_exchanged_and_the_margin_negated_is_the_complementary_event(scores, indices, margin):
    winner, loser, head = indices
    both = comparisons_of([(indices, 1.0, margin, 1.0), ((loser, winner, head), 1.0, -margin, 1.0)])
    chances = (-bradley_terry_loss(scores, both).per_comparison).exp()
    assert chances.sum().item() == pytest.approx(1.0, abs=1e-12)


@given(SCORES, COMPARISONS, REDUCTIONS, st.floats(0.1, 10))
def test_all_weights_times_a_factor_change_the_mean_over_comparisons_nothing(scores, rows, reduction, factor):
    scaled = [(indices, factor * weight, margin, unit) for indices, weight, margin, unit in rows]
    plain, _ = loss_and_gradient(scores, comparisons_of(rows), reduction=reduction)
    expected = plain if reduction == "comparisons" else factor * plain
    assert loss_and_gradient(scores, comparisons_of(scaled), reduction=reduction)[0] == pytest.approx(expected)


@given(SCORES, COMPARISONS, st.floats(0.01, 2))
def test_a_larger_margin_never_lowers_the_loss_and_a_higher_score_of_the_winner_never_raises_it(scores, rows, more):
    raised = [(indices, weight, margin + more, unit) for indices, weight, margin, unit in rows]
    plain = bradley_terry_loss(scores, comparisons_of(rows)).per_comparison
    assert (plain >= 0).all()
    assert (bradley_terry_loss(scores, comparisons_of(raised)).per_comparison >= plain).all()
    for number, ((winner, loser, head), *_) in enumerate(rows):
        better = scores.clone()
        better[winner, head] += more
        output = bradley_terry_loss(better, comparisons_of(rows))
        assert output.per_comparison[number] <= plain[number]
        # Where the loss is above rounding it falls.
        assert winner == loser or plain[number] < 1e-9 or output.per_comparison[number] < plain[number]


@given(SCORES, COMPARISONS, st.data(), tensors(HEADS, of=st.floats(0.1, 3)))
def test_parts_that_are_given_the_weight_of_the_step_add_up_to_the_whole(scores, rows, data, head_weights):
    cut = data.draw(st.integers(0, len(rows)))
    total = comparisons_of(rows).weight.sum()
    parts = [rows[:cut], rows[cut:]]
    options = {"head_weights": head_weights, "total_weight": total}
    losses = [loss_and_gradient(scores, comparisons_of(part), **options) for part in parts if part]
    whole = loss_and_gradient(scores, comparisons_of(rows), head_weights=head_weights)
    assert sum(loss for loss, _ in losses) == pytest.approx(whole[0])
    assert torch.allclose(sum(gradient for _, gradient in losses), whole[1], atol=1e-12)


@given(SCORES, COMPARISONS)
def test_concatenated_parts_are_the_whole_and_rows_can_be_renumbered(scores, rows):
    whole = comparisons_of(rows)
    joined = Comparisons.concatenate([Comparisons.empty(), *(comparisons_of([row]) for row in rows)])
    assert all(torch.equal(getattr(joined, name), getattr(whole, name)) for name in ("winner", "head", "weight"))
    doubled = torch.cat([scores, scores])
    there = whole.rows(torch.arange(TEXTS) + TEXTS)
    assert bradley_terry_loss(doubled, there).loss == bradley_terry_loss(scores, whole).loss


# ---- Regularisers ----


@given(SCORES, st.lists(st.integers(0, HEADS - 1), min_size=TEXTS, max_size=TEXTS), REDUCTIONS, ORDERS)
def test_a_regularizer_is_even_in_the_scores_and_blind_to_the_order_of_positives(scores, heads, reduction, order):
    heads = torch.tensor(heads)
    places = shuffled(list(range(TEXTS)), order)
    for kind in ("log_square", "squared_log_square", "center"):
        value = positive_regularizer(scores, heads, kind=kind, reduction=reduction)
        negated = positive_regularizer(-scores, heads, kind=kind, reduction=reduction)
        moved = positive_regularizer(scores[places], heads[places], kind=kind, reduction=reduction)
        assert negated == value
        assert moved.item() == pytest.approx(value.item(), rel=1e-12, abs=1e-12)
        assert kind == "log_square" or value >= 0


@given(SCORES, COMPARISONS)
def test_the_centring_term_is_not_negative_and_grows_with_the_square_of_the_scores(scores, rows):
    plain = center_penalty(scores, comparisons_of(rows))
    assert plain >= 0
    assert center_penalty(3 * scores, comparisons_of(rows)).item() == pytest.approx(9 * plain.item())


@given(SCORES, COMPARISONS, st.floats(0, 2), st.floats(0, 2))
def test_the_objective_is_the_sum_of_its_terms(scores, rows, weight, coefficient):
    comparisons, positive = comparisons_of(rows), torch.arange(TEXTS)
    heads = torch.zeros(TEXTS, dtype=torch.long)
    whole = reward_objective(
        scores,
        comparisons,
        positive,
        heads,
        regularizer="center",
        regularizer_weight=weight,
        center_coefficient=coefficient,
    )
    terms = [
        bradley_terry_loss(scores, comparisons).loss,
        weight * positive_regularizer(scores, heads, kind="center", reduction="comparisons"),
        coefficient * center_penalty(scores, comparisons),
    ]
    assert whole.loss.item() == pytest.approx(sum(terms).item(), rel=1e-6)


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=4))
def test_weights_of_positives_give_each_distinct_one_of_the_step_the_same_say(micro_batches):
    keys = [torch.tensor(batch) for batch in micro_batches]
    everything = torch.cat(keys)
    weights = torch.cat([positive_weights(batch, everything) for batch in keys])
    say = {key: weights[everything == key].sum().item() for key in set(everything.tolist())}
    assert list(say.values()) == pytest.approx([1 / len(say)] * len(say), rel=1e-6)


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0.1, 1e4), min_size=1))
def test_weights_by_inverse_count_make_every_head_count_alike_and_have_mean_one_over_the_data(counts):
    weights = head_weight_vector("inverse_count", [*counts], counts)
    shares = weights.double() * torch.tensor([*counts.values()], dtype=torch.float64)
    assert shares.tolist() == pytest.approx([shares[0].item()] * len(counts), rel=1e-5)
    assert (shares.sum() / sum(counts.values())).item() == pytest.approx(1.0, rel=1e-5)


# ---- Tiers ----


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=6),
    st.lists(st.sampled_from(["near", "far", "none"]), min_size=1, max_size=8),
    st.sampled_from(["all", "positional"]),
)
def test_a_tiers_share_does_not_depend_on_how_many_negatives_it_has(heads, tiers, pairing):
    tier_weights = {"near": 2.0, "far": 0.5, "none": 0.0}
    made = tiered_comparisons(torch.tensor(heads), tiers, tier_weights=tier_weights, pairing=pairing)
    owner = made.winner if pairing == "all" else made.head
    for one in owner.unique().tolist():
        for number, name in enumerate(tier_weights):
            share = made.weight[(owner == one) & (made.tier == number)].sum().item()
            assert share == pytest.approx(tier_weights[name] if name in tiers else 0.0, rel=1e-5)
        assert made.unit[owner == one].sum().item() == pytest.approx(1.0, rel=1e-5)
    assert (made.loser >= len(heads)).all()
    assert [tiers[loser - len(heads)] for loser in made.loser.tolist()] == [list(tier_weights)[t] for t in made.tier]
    assert torch.equal(made.head, torch.tensor(heads)[made.winner])


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.data())
def test_a_mask_and_lists_of_heads_say_the_same_of_negatives(heads, data):
    allowed = data.draw(st.lists(st.lists(st.integers(0, 2), unique=True), min_size=1, max_size=5))
    mask = torch.tensor([[head in one for head in range(HEADS)] for one in allowed])
    options = {"tier_weights": {"x": 1.0}, "pairing": data.draw(st.sampled_from(["all", "positional"]))}
    tiers = ["x"] * len(allowed)
    by_lists = tiered_comparisons(torch.tensor(heads), tiers, negative_heads=allowed, **options)
    by_mask = tiered_comparisons(torch.tensor(heads), tiers, negative_heads=mask, **options)
    assert all(torch.equal(getattr(by_lists, name), getattr(by_mask, name)) for name in ("winner", "loser", "weight"))
    used = zip(by_mask.loser.tolist(), by_mask.head.tolist(), strict=True)
    assert all(mask[loser - len(heads), head] for loser, head in used)
