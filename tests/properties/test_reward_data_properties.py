"""The reward model's evaluation, rows and batches: no order, no unit, and texts that come back."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st

from alignkit.reward_model.batching import ComparisonCollator, pad_length, pad_texts
from alignkit.reward_model.comparisons import Comparisons
from alignkit.reward_model.losses import (
    bradley_terry_loss,
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
        for number, (first, second) in enumerate(pairwise(texts))
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
