"""The reward model's pure functions: what must hold for every score matrix and every kind of comparison."""

import numpy as np
import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st

from alignkit.reward_model.batching import ComparisonCollator, pad_length, pad_texts
from alignkit.reward_model.comparisons import Comparisons, tiered_comparisons
from alignkit.reward_model.losses import (
    bradley_terry_loss,
    center_penalty,
    head_weight_vector,
    positive_regularizer,
    positive_weights,
    reward_objective,
)
from alignkit.reward_model.metrics import calibration_error, evaluation_report
from alignkit.reward_model.rows import parse_negative, parse_row
from alignkit.reward_model.separation import auroc, d_prime
from tests.properties.given import given
from tests.properties.strategies import NUMBERS, ORDERS, SEEDS, shuffled, tensors

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


@given(SCORES, COMPARISONS, st.floats(0, 2))
def test_a_larger_margin_never_lowers_the_loss_and_a_larger_gap_never_raises_it(scores, rows, more):
    raised = [(indices, weight, margin + more, unit) for indices, weight, margin, unit in rows]
    plain = bradley_terry_loss(scores, comparisons_of(rows)).per_comparison
    assert (bradley_terry_loss(scores, comparisons_of(raised)).per_comparison >= plain - 1e-12).all()
    output = bradley_terry_loss(scores, comparisons_of(rows))
    order = output.gap.argsort()
    without_margins = torch.nn.functional.softplus(-output.gap)[order]
    assert (without_margins.diff() <= 1e-12).all()
    assert (plain >= 0).all()


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


# ---- Metrics ----

SETS = st.tuples(st.lists(GRID, min_size=1, max_size=6), st.lists(GRID, min_size=1, max_size=6))


@given(SETS)
def test_auroc_of_exchanged_sets_is_the_complement_and_no_increasing_map_changes_it(sets):
    high, low = map(np.array, sets)
    value = auroc(high, low)
    assert 0 <= value <= 1
    assert auroc(low, high) == pytest.approx(1 - value)
    assert auroc(np.exp(high), np.exp(low)) == pytest.approx(value)
    assert value == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a in high for b in low]))


@given(SETS, st.floats(0.1, 10), NUMBERS)
def test_d_prime_changes_its_sign_with_the_sets_and_nothing_with_scale_and_shift(sets, scale, shift):
    high, low = map(np.array, sets)
    value = d_prime(high, low)
    assert np.isnan(d_prime(low, high)) == np.isnan(value)
    if not np.isnan(value):
        assert d_prime(low, high) == pytest.approx(-value)
        assert d_prime(scale * high + shift, scale * low + shift) == pytest.approx(value, rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(NUMBERS, WEIGHTS), min_size=1, max_size=12), ORDERS, st.floats(0.1, 10))
def test_the_calibration_error_is_a_share_blind_to_order_and_to_the_scale_of_weights(rows, order, scale):
    def error(rows, factor=1.0):
        gaps, weights = np.array(rows).T
        return calibration_error(gaps, factor * weights)

    assert 0 <= error(rows) <= 1
    assert error(shuffled(rows, order), scale) == pytest.approx(error(rows), abs=1e-12)


def report_of(scores, rows, heads=("a", "b", "c"), **options):
    winner, loser, head = zip(*(indices for indices, *_ in rows), strict=True)
    weight = [weight for _, weight, *_ in rows]
    return evaluation_report(scores, winner, loser, head, weight, head_names=heads, **options)


@given(tensors(TEXTS, HEADS, of=GRID), COMPARISONS, ORDERS)
def test_a_report_is_blind_to_the_order_of_comparisons_and_a_permutation_of_heads_permutes_it(scores, rows, order):
    plain = report_of(scores, rows)
    heads = shuffled(list(range(HEADS)), order)
    moved = [((w, lo, heads.index(h)), *rest) for (w, lo, h), *rest in shuffled(rows, order)]
    other = report_of(scores[:, heads], moved, heads=["abc"[head] for head in heads])
    assert other.overall == pytest.approx(plain.overall)
    assert other.counts == plain.counts
    for name, metrics in plain.heads.items():
        # Of two heads with equal |r| either may be the one named.
        found = {key: abs(value) if key == "cross_correlation" else value for key, value in other.heads[name].items()}
        assert found == pytest.approx({k: abs(v) if k == "cross_correlation" else v for k, v in metrics.items()})
    assert np.allclose(other.leakage, plain.leakage[np.ix_(heads, heads)], equal_nan=True)
    assert np.allclose(other.correlation, plain.correlation[np.ix_(heads, heads)], equal_nan=True)


@given(tensors(TEXTS, HEADS, of=GRID), COMPARISONS, st.floats(0.5, 4), tensors(HEADS))
def test_scale_and_shift_of_the_scores_change_no_accuracy_and_negation_is_the_complement(scores, rows, scale, shift):
    plain, moved, negated = report_of(scores, rows), report_of(scale * scores + shift, rows), report_of(-scores, rows)
    # A gap that is rounding would be no tie any more.
    assume(np.array_equal(plain.leakage, moved.leakage, equal_nan=True) or scale in (0.5, 1, 2, 4))
    for name, metrics in plain.heads.items():
        assert moved.heads[name]["margin"] == pytest.approx(scale * metrics["margin"], abs=1e-5)
        assert negated.heads[name]["accuracy"] == pytest.approx(1 - metrics["accuracy"])
        assert negated.heads[name]["margin"] == pytest.approx(-metrics["margin"])
        assert negated.heads[name]["auroc"] == pytest.approx(1 - metrics["auroc"])
        assert all(0 <= value <= 1 for key, value in metrics.items() if key.startswith(("acc", "auroc", "ece")))
        assert metrics["min_score"] <= metrics["mean_score"] + 1e-12
        assert metrics["mean_score"] <= metrics["max_score"] + 1e-12


@given(tensors(TEXTS, HEADS), COMPARISONS, st.lists(st.integers(1, 9), min_size=TEXTS, max_size=TEXTS))
def test_overall_accuracy_is_the_weighted_mean_of_the_heads_and_comparisons_of_no_weight_are_not_there(
    scores, rows, lengths
):
    report = report_of(scores, rows, lengths=lengths)
    weights = {name: sum(w for (_, _, h), w, *_ in rows if "abc"[h] == name) for name in report.heads}
    for key in ("accuracy", "margin", "length_accuracy"):
        expected = sum(weights[name] * metrics[key] for name, metrics in report.heads.items()) / sum(weights.values())
        assert report.overall[key] == pytest.approx(expected)
    weightless = [*rows, ((0, 1, 2), 0.0)]
    assert report_of(scores, weightless, lengths=lengths).overall == report.overall


# ---- Rows and batches ----

HEAD_NAMES = ["a", "b"]
RATINGS = st.lists(st.none() | st.integers(1, 5), min_size=2, max_size=4)


@given(RATINGS, st.floats(0, 3), st.booleans())
def test_a_rated_list_is_one_unit_for_each_pair_that_both_have_a_rating(ratings, weight, use_margin):
    row = {"completions": [f"text {n}" for n in range(len(ratings))], "ratings": {"a": ratings}, "weight": weight}
    known = [value for value in ratings if value is not None]
    if len(known) < 2:
        with pytest.raises(ValueError, match="rates two completions"):
            parse_row(row, HEAD_NAMES)
        return
    parsed = parse_row(row, HEAD_NAMES, use_margin_magnitude=use_margin)
    pairs = len(known) * (len(known) - 1) / 2
    assert sum(parsed.unit) == pytest.approx(pairs)
    assert sum(parsed.weight) == pytest.approx(weight * pairs)
    for winner, loser, margin in zip(parsed.winner, parsed.loser, parsed.margin, strict=True):
        assert ratings[winner] >= ratings[loser]
        assert margin == (ratings[winner] - ratings[loser] if use_margin else 0)


@given(st.sampled_from(HEAD_NAMES), st.floats(-5, 5), st.booleans())
def test_a_pair_by_its_sign_is_the_pair_written_the_other_way_round(head, difference, use_margin):
    def parsed(chosen, rejected, value):
        row = {"chosen": chosen, "rejected": rejected, "head_margins": {head: value}}
        found = parse_row(row, HEAD_NAMES, use_margin_magnitude=use_margin)
        columns = zip(found.winner, found.loser, found.weight, found.margin, found.unit, strict=True)
        return sorted((found.texts[winner], found.texts[loser], *rest) for winner, loser, *rest in columns)

    assert parsed("x", "y", difference) == parsed("y", "x", -difference)


@given(st.text(min_size=1).filter(str.strip), st.sampled_from(HEAD_NAMES), st.text(min_size=1))
def test_the_texts_of_rows_come_back_as_they_are(text, head, tier):
    assert parse_row({"text": text, "head": head}, HEAD_NAMES).texts == [text]
    assert parse_row({"chosen": text, "rejected": "other", "head": head}, HEAD_NAMES).texts == [text, "other"]
    assert parse_negative({"text": text, "tier": tier, "heads": [head]}, HEAD_NAMES) == (
        text,
        tier,
        [HEAD_NAMES.index(head)],
    )


@given(
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=6), min_size=1, max_size=5),
    st.none() | st.integers(1, 8),
    st.integers(0, 99),
)
def test_padded_texts_are_read_back_by_their_mask(texts, multiple, pad):
    batch = pad_texts(texts, pad, pad_to_multiple_of=multiple)
    longer = pad_length(**batch, length=batch["input_ids"].shape[1] + 3, pad_token_id=pad)
    for padded in (batch, longer):
        rows = zip(padded["input_ids"], padded["attention_mask"].bool(), strict=True)
        assert [ids[mask].tolist() for ids, mask in rows] == texts
        assert (padded["input_ids"][padded["attention_mask"] == 0] == pad).all()
    assert batch["input_ids"].shape[1] % (multiple or 1) == 0


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=2, max_size=6), ORDERS, SEEDS)
def test_a_batch_holds_each_text_once_and_the_order_of_rows_moves_comparisons_and_no_more(texts, order, seed):
    rows = [
        {
            "row": number,
            "text_key": [hash(tuple(first)), hash(tuple(second))],
            "input_ids": [first, second],
            **{"winner": [0], "loser": [1], "head": [seed % 2], "weight": [1.0], "margin": [0.0], "unit": [1.0]},
            **{"positive": [0], "positive_head": [seed % 2], "member": [], "member_head": []},
        }
        for number, (first, second) in enumerate(zip(texts, texts[1:], strict=False))
    ]

    def meaning(batch):
        keys = batch["text_key"].tolist()
        comparisons = batch["comparisons"]
        pairs = zip(comparisons.winner.tolist(), comparisons.loser.tolist(), strict=True)
        return sorted((keys[winner], keys[loser]) for winner, loser in pairs), sorted(keys)

    collate = ComparisonCollator(pad_token_id=9)
    batch = collate(rows)
    assert len(set(batch["text_key"].tolist())) == len(batch["text_key"]) == len({tuple(text) for text in texts})
    assert meaning(collate(shuffled(rows, order))) == meaning(batch)
