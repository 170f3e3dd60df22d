"""The head-indexed Bradley-Terry loss and the regularisers: hand-worked values, invariances, extremes, gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.reward_model.comparisons import Comparisons, tiered_comparisons
from alignkit.reward_model.losses import (
    bradley_terry_loss,
    center_penalty,
    head_weight_vector,
    positive_regularizer,
    reward_objective,
)

LN_2 = math.log(2.0)
TIER_WEIGHTS = {"soft": 2.0, "semi_firm": 1.0, "furthest": 0.5}
REDUCTIONS = ["comparisons", "active_heads"]
KINDS = ["log_square", "squared_log_square", "center"]


def indices(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long)


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def tie(first: int, second: int, head: int) -> Comparisons:
    half = torch.tensor([0.5, 0.5])
    return Comparisons(indices(first, second), indices(second, first), indices(head, head), weight=half, unit=half)


# ---- Hand-worked values ----

# Rows 0 to 2 are the positives, of heads 0, 0, 1; then two soft, one semi-firm and two furthest negatives.
WORKED_SCORES = torch.tensor(
    [[1.0, -0.5], [0.2, 0.4], [0.5, 2.0], [0.5, 0.0], [-1.0, 1.0], [0.0, 0.0], [-2.0, -2.0], [-1.0, -1.0]]
)
WORKED_HEADS = indices(0, 0, 1)


def worked_comparisons(pairing: str) -> Comparisons:
    tiers = ["soft", "soft", "semi_firm", "furthest", "furthest"]
    return tiered_comparisons(WORKED_HEADS, tiers, tier_weights=TIER_WEIGHTS, pairing=pairing)


def test_the_worked_example_of_tiers_by_position_over_active_heads():
    comparisons = worked_comparisons("positional")
    bt = bradley_terry_loss(WORKED_SCORES, comparisons, reduction="active_heads").loss
    regularizer = positive_regularizer(WORKED_SCORES[:3], WORKED_HEADS, kind="log_square")
    total = reward_objective(
        WORKED_SCORES,
        comparisons,
        indices(0, 1, 2),
        WORKED_HEADS,
        reduction="active_heads",
        regularizer="log_square",
        regularizer_weight=0.1,
    ).loss
    assert bt.item() == pytest.approx(0.759224, abs=5e-7)
    assert regularizer.item() == pytest.approx(-0.111565, abs=5e-7)
    assert total.item() == pytest.approx(0.748067, abs=1e-6)
    # The same by hand: 2 · mean over soft pairs + semi-firm + 0.5 · mean over furthest pairs, then over the two heads.
    head_0 = 2 * (softplus(-0.5) + softplus(-1.2)) / 2 + softplus(-1.0) + 0.5 * (softplus(-3.0) + softplus(-1.2)) / 2
    head_1 = 2 * softplus(-2.0) + softplus(-2.0) + 0.5 * softplus(-4.0)
    assert bt.item() == pytest.approx((head_0 + head_1) / 2, abs=1e-6)


def test_the_worked_example_with_all_pairs_is_the_weighted_mean_over_comparisons():
    loss = bradley_terry_loss(WORKED_SCORES, worked_comparisons("all")).loss
    gaps = {  # positive: gaps to the two soft, the semi-firm and the two furthest negatives on its own head
        0: [(0.5, 1.0), (2.0, 1.0), (1.0, 1.0), (3.0, 0.25), (2.0, 0.25)],
        1: [(-0.3, 1.0), (1.2, 1.0), (0.2, 1.0), (2.2, 0.25), (1.2, 0.25)],
        2: [(2.0, 1.0), (1.0, 1.0), (2.0, 1.0), (4.0, 0.25), (3.0, 0.25)],
    }
    expected = sum(weight * softplus(-gap) for pairs in gaps.values() for gap, weight in pairs) / (3 * 3.5)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_a_comparison_reads_its_own_head_only():
    scores = torch.tensor([[0.0, 3.0], [2.0, 1.0]])
    output = bradley_terry_loss(scores, Comparisons(indices(0, 0), indices(1, 1), indices(0, 1)))
    assert output.gap.tolist() == [-2.0, 2.0]
    torch.testing.assert_close(output.per_comparison, torch.tensor([softplus(2.0), softplus(-2.0)]))


def test_a_margin_is_taken_off_the_gap():
    scores = torch.tensor([[1.5], [0.5]])
    comparisons = Comparisons(indices(0, 0), indices(1, 1), indices(0, 0), margin=torch.tensor([1.0, -2.0]))
    per_comparison = bradley_terry_loss(scores, comparisons).per_comparison
    torch.testing.assert_close(per_comparison, torch.tensor([LN_2, softplus(-3.0)]))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equal_scores_cost_ln_2_whatever_the_weights_and_heads(reduction):
    comparisons = Comparisons(indices(0, 1, 2), indices(1, 2, 3), indices(0, 1, 1))
    loss = bradley_terry_loss(torch.full((4, 2), 0.7), comparisons, reduction=reduction).loss
    assert loss.item() == pytest.approx(LN_2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_tie_is_two_halves_that_cost_ln_2_at_equal_scores_and_pull_unequal_ones_together(reduction):
    equal = bradley_terry_loss(torch.tensor([[0.3], [0.3]]), tie(0, 1, 0), reduction=reduction).loss
    assert equal.item() == pytest.approx(LN_2)
    scores = torch.tensor([[1.0], [0.0]], requires_grad=True)
    loss = bradley_terry_loss(scores, tie(0, 1, 0), reduction=reduction).loss
    # Cross-entropy of p = sigmoid(1) against one half; its slope is p - 1/2.
    assert loss.item() == pytest.approx(0.5 * softplus(-1.0) + 0.5 * softplus(1.0))
    (gradient,) = torch.autograd.grad(loss, scores)
    slope = 1 / (1 + math.exp(-1.0)) - 0.5
    torch.testing.assert_close(gradient, torch.tensor([[slope], [-slope]]))


def test_weights_weigh_comparisons_in_the_mean():
    scores = torch.tensor([[1.0], [0.0]])
    comparisons = Comparisons(indices(0, 1), indices(1, 0), indices(0, 0), weight=torch.tensor([3.0, 1.0]))
    loss = bradley_terry_loss(scores, comparisons).loss
    assert loss.item() == pytest.approx((3 * softplus(-1.0) + softplus(1.0)) / 4)


def test_under_active_heads_weights_are_divided_by_units_and_heads_count_alike():
    scores = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    comparisons = Comparisons(
        indices(0, 0, 0), indices(1, 1, 1), indices(0, 0, 1), weight=torch.tensor([1.0, 2.0, 3.0])
    )
    loss = bradley_terry_loss(scores, comparisons, reduction="active_heads").loss
    head_0 = (1 + 2) * softplus(-1.0) / 2  # divided by its two pairs, not by their weight
    head_1 = 3 * softplus(-2.0)
    assert loss.item() == pytest.approx((head_0 + head_1) / 2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_head_weights_scale_the_losses_of_a_head_and_not_the_divisor(reduction):
    scores = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    comparisons = Comparisons(indices(0, 0), indices(1, 1), indices(0, 1))
    weights = torch.tensor([2.0, 0.5])
    loss = bradley_terry_loss(scores, comparisons, reduction=reduction, head_weights=weights).loss
    assert loss.item() == pytest.approx((2 * softplus(-1.0) + 0.5 * softplus(1.0)) / 2)
    alone = Comparisons(indices(0), indices(1), indices(0))
    loss = bradley_terry_loss(scores, alone, reduction=reduction, head_weights=weights).loss
    assert loss.item() == pytest.approx(2 * softplus(-1.0))


def test_the_total_weight_of_a_step_makes_the_losses_of_its_parts_add_up_to_the_whole():
    scores = torch.tensor([[1.0], [0.0], [-0.5]])
    first = Comparisons(indices(0), indices(1), indices(0), weight=torch.tensor([2.0]))
    second = Comparisons(indices(1, 0), indices(2, 2), indices(0, 0), weight=torch.tensor([0.5, 1.0]))
    whole = bradley_terry_loss(scores, Comparisons.concatenate([first, second])).loss
    parts = [bradley_terry_loss(scores, part, total_weight=3.5).loss for part in (first, second)]
    torch.testing.assert_close(sum(parts), whole)


def test_more_negatives_do_not_change_a_tiers_share_of_the_loss():
    def gradient_share(n_furthest: int) -> torch.Tensor:
        scores = torch.zeros(3 + n_furthest, 1, requires_grad=True)
        tiers = ["soft", "soft", *["furthest"] * n_furthest]
        comparisons = tiered_comparisons(indices(0), tiers, tier_weights=TIER_WEIGHTS, pairing="all")
        bradley_terry_loss(scores, comparisons).loss.backward()
        return torch.stack([scores.grad[1:3].sum(), scores.grad[3:].sum()])

    few, many = gradient_share(1), gradient_share(50)
    torch.testing.assert_close(few, torch.tensor([0.5 * 2.0 / 2.5, 0.5 * 0.5 / 2.5]))
    torch.testing.assert_close(many, few)


def test_a_positional_head_sum_is_the_weighted_sum_of_tier_means():
    scores = torch.randn(12, 1, generator=torch.Generator().manual_seed(0))
    tiers = ["soft"] * 3 + ["semi_firm"] * 5 + ["furthest"]
    comparisons = tiered_comparisons(indices(0, 0, 0), tiers, tier_weights=TIER_WEIGHTS, pairing="positional")
    output = bradley_terry_loss(scores, comparisons, reduction="active_heads")
    values = scores[:, 0].tolist()

    def mean(pairs: list[tuple[int, int]]) -> float:
        return sum(softplus(values[loser] - values[winner]) for winner, loser in pairs) / len(pairs)

    expected = 2 * mean([(0, 3), (1, 4), (2, 5)]) + mean([(0, 6), (1, 7), (2, 8)]) + 0.5 * mean([(0, 11)])
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


# ---- Extremes ----


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scores_of_a_thousand_give_finite_losses_and_gradients_in_every_dtype(dtype, reduction):
    scores = torch.tensor([[1e3, -1e3], [-1e3, 1e3]], dtype=dtype, requires_grad=True)
    comparisons = Comparisons(indices(0, 0), indices(1, 1), indices(0, 1))
    positive, heads = indices(0, 0), indices(0, 1)
    for regularizer in (None, *KINDS):
        output = reward_objective(
            scores,
            comparisons,
            positive,
            heads,
            reduction=reduction,
            regularizer=regularizer,
            regularizer_weight=0.1,
            center_coefficient=None if regularizer else 0.1,
        )
        (gradient,) = torch.autograd.grad(output.loss, scores)
        assert output.loss.dtype == torch.float32
        assert torch.isfinite(output.loss)
        assert torch.isfinite(gradient).all()
    exact = scores[0, 0].item() - scores[1, 0].item()
    assert output.per_comparison.tolist() == [0.0, pytest.approx(exact)]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_shows_in_the_loss_even_where_no_comparison_names_it(bad, reduction):
    comparisons = Comparisons(indices(0), indices(1), indices(0))
    named = torch.tensor([[1.0, 0.0], [bad, 0.0], [0.0, 0.0]])
    unnamed = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, bad]])
    for scores in (named, unnamed):
        assert not torch.isfinite(bradley_terry_loss(scores, comparisons, reduction=reduction).loss)
    assert not torch.isfinite(positive_regularizer(unnamed, indices(0, 0, 0), kind="center", reduction=reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("total_weight", [None, 0.0, 8.0])
def test_no_comparisons_give_a_finite_zero_with_a_gradient(reduction, total_weight):
    scores = torch.randn(3, 2, requires_grad=True)
    for objective in (
        bradley_terry_loss(scores, Comparisons.empty(), reduction=reduction, total_weight=total_weight).loss,
        positive_regularizer(scores[:0], indices(), kind="log_square", reduction=reduction),
        center_penalty(scores, Comparisons.empty(), total_weight=total_weight),
    ):
        assert objective.item() == 0.0
        (gradient,) = torch.autograd.grad(objective, scores)
        assert gradient.abs().max() == 0.0


def test_comparisons_that_all_weigh_zero_give_a_finite_zero():
    comparisons = Comparisons(indices(0), indices(1), indices(0), weight=torch.zeros(1))
    assert bradley_terry_loss(torch.tensor([[1.0], [2.0]]), comparisons).loss.item() == 0.0


def test_an_unknown_reduction_or_regularizer_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"reduction is 'mean'; choose 'comparisons' or 'active_heads'"):
        bradley_terry_loss(torch.zeros(2, 1), Comparisons(indices(0), indices(1), indices(0)), reduction="mean")
    with pytest.raises(ValueError, match=r"regularizer is 'l2'; choose 'log_square', 'squared_log_square' or"):
        positive_regularizer(torch.zeros(1, 1), indices(0), kind="l2")


# ---- Against a slow twin ----


def slow_bradley_terry_loss(scores, comparisons, reduction, head_weights) -> float:
    """The formula of `bradley_terry_loss` as a loop over Python numbers."""
    fields = (comparisons.winner, comparisons.loser, comparisons.head)
    numbers = (comparisons.weight, comparisons.margin, comparisons.unit)
    rows = list(zip(*(field.tolist() for field in (*fields, *numbers)), strict=True))
    losses: dict[int, float] = {}
    units: dict[int, float] = {}
    for winner, loser, head, weight, margin, unit in rows:
        gap = scores[winner][head].item() - scores[loser][head].item()
        losses[head] = losses.get(head, 0.0) + head_weights[head].item() * weight * softplus(margin - gap)
        units[head] = units.get(head, 0.0) + unit
    if reduction == "comparisons":
        return sum(losses.values()) / sum(weight for *_, weight, _, _ in rows)
    return sum(losses[head] / units[head] for head in losses) / len(losses)


def slow_regularizer(scores, heads, kind, reduction) -> float:
    """The formula of `positive_regularizer` as a loop over Python numbers."""
    values: dict[int, list[float]] = {}
    for row, head in enumerate(heads.tolist()):
        score = scores[row][head].item()
        log = math.log(score * score + 1e-6)
        values.setdefault(head, []).append(
            {"log_square": log, "squared_log_square": log * log, "center": score * score}[kind]
        )
    if reduction == "comparisons":
        return sum(sum(of_head) for of_head in values.values()) / len(heads)
    return sum(sum(of_head) / len(of_head) for of_head in values.values()) / len(values)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n_texts=st.integers(2, 6),
    n_heads=st.integers(1, 4),
    n_pairs=st.integers(0, 6),
    n_ties=st.integers(0, 3),
    tiers=st.lists(st.sampled_from(list(TIER_WEIGHTS)), min_size=1, max_size=5),
    pairing=st.sampled_from(["all", "positional"]),
)
def test_any_mixture_of_pairs_ties_and_tiers_equals_a_plain_loop_under_both_reductions(
    seed, n_texts, n_heads, n_pairs, n_ties, tiers, pairing
):
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *size: int) -> torch.Tensor:
        return torch.randint(high, size, generator=generator)

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(size, generator=generator)

    scores = 3 * torch.randn(n_texts + len(tiers), n_heads, generator=generator, dtype=torch.float64)
    first = draw(n_texts, n_pairs)
    pairs = Comparisons(
        first,
        (first + 1 + draw(n_texts - 1, n_pairs)) % n_texts,
        draw(n_heads, n_pairs),
        weight=uniform(n_pairs) + 0.1,
        margin=uniform(n_pairs),
    )
    ties = [tie(0, 1, int(draw(n_heads, 1))) for _ in range(n_ties)]
    tiered = tiered_comparisons(draw(n_heads, n_texts), tiers, tier_weights=TIER_WEIGHTS, pairing=pairing)
    comparisons = Comparisons.concatenate([pairs, *ties, tiered])
    head_weights = uniform(n_heads) + 0.5
    for reduction in REDUCTIONS:
        loss = bradley_terry_loss(scores, comparisons, reduction=reduction, head_weights=head_weights).loss
        assert loss.item() == pytest.approx(slow_bradley_terry_loss(scores, comparisons, reduction, head_weights))
        heads = draw(n_heads, len(scores))
        for kind in KINDS:
            value = positive_regularizer(scores, heads, kind=kind, reduction=reduction)
            assert value.item() == pytest.approx(slow_regularizer(scores, heads, kind, reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("regularizer", [None, *KINDS])
def test_gradients_are_those_of_finite_differences(reduction, regularizer):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(8, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    comparisons = Comparisons.concatenate([worked_comparisons("all"), tie(1, 4, 1)])
    head_weights = torch.tensor([1.5, 0.5], dtype=torch.float64)

    def objective(scores: torch.Tensor) -> torch.Tensor:
        return reward_objective(
            scores,
            comparisons,
            indices(0, 1, 2),
            WORKED_HEADS,
            reduction=reduction,
            head_weights=head_weights,
            regularizer=regularizer,
            regularizer_weight=0.3,
            center_coefficient=None if regularizer else 0.3,
        ).loss

    assert torch.autograd.gradcheck(objective, [scores])


# ---- Regularisers ----


def minimiser(kind: str) -> torch.Tensor:
    """Scores from 0 to 3 where the penalty of a single positive is least."""
    grid = torch.linspace(0.0, 3.0, 3001, dtype=torch.float64)
    return grid[
        torch.stack([positive_regularizer(score[None, None], indices(0), kind=kind) for score in grid]).argmin()
    ]


@pytest.mark.parametrize(("kind", "where", "value"), [("log_square", 0.0, math.log(1e-6)), ("center", 0.0, 0.0)])
def test_log_square_and_center_are_least_at_a_score_of_zero(kind, where, value):
    assert minimiser(kind).item() == where
    assert positive_regularizer(torch.zeros(1, 1), indices(0), kind=kind).item() == pytest.approx(value)


def test_squared_log_square_is_least_at_a_score_of_plus_or_minus_one():
    assert minimiser("squared_log_square").item() == pytest.approx(1.0)
    for score in (1.0, -1.0):
        value = positive_regularizer(torch.tensor([[score]]), indices(0), kind="squared_log_square")
        assert value.item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_regularizer_has_no_gradient_outside_a_positives_own_head(kind, reduction):
    scores = torch.tensor([[0.5, 2.0, -1.0], [1.5, -0.3, 0.7]], requires_grad=True)
    positive_regularizer(scores, indices(2, 0), kind=kind, reduction=reduction).backward()
    own = torch.tensor([[False, False, True], [True, False, False]])
    assert scores.grad[~own].abs().max() == 0.0
    assert scores.grad[own].abs().min() > 0.0


def test_over_active_heads_a_regularizer_is_the_mean_of_head_means():
    scores = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 4.0]])
    value = positive_regularizer(scores, indices(0, 0, 1), kind="center", reduction="active_heads")
    assert value.item() == pytest.approx(((1 + 4) / 2 + 16) / 2)
    value = positive_regularizer(scores, indices(0, 0, 1), kind="center", reduction="comparisons")
    assert value.item() == pytest.approx((1 + 4 + 16) / 3)


def test_given_weights_replace_the_mean_over_positives():
    weights = torch.tensor([0.25, 0.5])
    value = positive_regularizer(
        torch.tensor([[1.0], [2.0]]), indices(0, 0), kind="center", reduction="comparisons", weights=weights
    )
    assert value.item() == pytest.approx(0.25 * 1 + 0.5 * 4)


def test_the_centring_term_is_the_weighted_mean_square_of_the_sum_of_two_scores():
    scores = torch.tensor([[1.0, 9.0], [0.5, 9.0], [-2.0, 9.0]])
    comparisons = Comparisons(indices(0, 1), indices(1, 2), indices(0, 0), weight=torch.tensor([1.0, 3.0]))
    assert center_penalty(scores, comparisons).item() == pytest.approx((1.5**2 + 3 * 1.5**2) / 4)
    assert center_penalty(scores, comparisons, total_weight=8.0).item() == pytest.approx((1.5**2 + 3 * 1.5**2) / 8)


# ---- Weights of the heads ----


def test_heads_without_a_setting_or_uniform_ones_have_no_weights():
    for setting in (None, "uniform"):
        assert head_weight_vector(setting, ["a", "b"], {"a": 1.0, "b": 3.0}) is None


def test_inverse_counts_give_every_head_the_same_say():
    # W / (K W_h) with W = 4 and K = 2.
    assert head_weight_vector("inverse_count", ["a", "b"], {"b": 3.0, "a": 1.0}).tolist() == pytest.approx([2, 2 / 3])


def test_weights_by_name_stand_in_the_order_of_the_heads():
    assert head_weight_vector({"b": 3, "a": 0.5}, ["a", "b"], {}).tolist() == [0.5, 3.0]


def test_head_weights_that_name_other_heads_or_need_unknown_counts_are_refused():
    with pytest.raises(ValueError, match=r"names \['a', 'c'\]; it must name exactly the heads \['a', 'b'\]"):
        head_weight_vector({"c": 1.0, "a": 1.0}, ["a", "b"], {})
    with pytest.raises(ValueError, match="head_weights='inverse_count' needs counts"):
        head_weight_vector("inverse_count", ["a", "b"], {"a": 0.0, "b": 3.0})


# ---- What is trained ----


def test_the_objective_hands_on_every_weight_that_it_is_given():
    scores = torch.tensor([[1.0, -0.5], [0.25, 2.0], [-1.0, 0.5]])
    comparisons = Comparisons(indices(0, 1), indices(1, 2), indices(0, 1))
    heads, head_weights, weights = indices(0, 1), torch.tensor([2.0, 3.0]), torch.tensor([0.5, 0.125])
    whole = reward_objective(
        scores,
        comparisons,
        indices(0, 1),
        heads,
        head_weights=head_weights,
        regularizer="center",
        regularizer_weight=0.1,
        center_coefficient=0.01,
        total_weight=8.0,
        positive_weight=weights,
    )
    # Gaps 0.75 and 1.5; positives' own scores 1 and 2; sums of the pairs' scores 1.25 and 2.5.
    bradley_terry = (2 * softplus(-0.75) + 3 * softplus(-1.5)) / 8
    regularizer, centre = 0.5 * 1 + 0.125 * 4, (1.25**2 + 2.5**2) / 8
    assert whole.loss.item() == pytest.approx(bradley_terry + 0.1 * regularizer + 0.01 * centre, rel=1e-6)


def test_a_regularizer_without_a_weight_adds_nothing_and_follows_the_reduction():
    scores = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    comparisons = Comparisons(indices(0, 2), indices(3, 3), indices(0, 1))
    positive, heads = indices(0, 1, 2), indices(0, 0, 1)
    alone = bradley_terry_loss(scores, comparisons).loss
    assert reward_objective(scores, comparisons, positive, heads, regularizer="center").loss == alone
    # The squares 1, 9 and 4: their mean, and the mean of the heads' means 5 and 4.
    for reduction, mean in (("comparisons", 14 / 3), ("active_heads", 4.5)):
        alone = bradley_terry_loss(scores, comparisons, reduction=reduction).loss
        whole = reward_objective(
            scores,
            comparisons,
            positive,
            heads,
            reduction=reduction,
            regularizer="center",
            regularizer_weight=1.0,
        )
        assert (whole.loss - alone).item() == pytest.approx(mean)
