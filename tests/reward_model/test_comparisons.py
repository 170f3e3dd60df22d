"""Comparisons over a score matrix: defaults, renumbering, and what positives meet in the tiers of negatives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.reward_model.comparisons import Comparisons, tiered_comparisons

TIER_WEIGHTS = {"soft": 2.0, "semi_firm": 1.0, "furthest": 0.5}
NAMES = list(TIER_WEIGHTS)


def indices(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long)


def listed(comparisons: Comparisons) -> list[tuple[int, int, int, float, float]]:
    """(winner, loser, head, weight, unit) of each comparison."""
    fields = (comparisons.winner, comparisons.loser, comparisons.head, comparisons.weight, comparisons.unit)
    return sorted(zip(*(field.tolist() for field in fields), strict=True))


def test_what_is_not_given_is_weight_one_margin_zero_unit_one_and_no_tier():
    comparisons = Comparisons(indices(0, 2), indices(1, 3), indices(0, 0))
    assert comparisons.weight.tolist() == comparisons.unit.tolist() == [1.0, 1.0]
    assert comparisons.margin.tolist() == [0.0, 0.0]
    assert comparisons.tier.tolist() == [-1, -1]
    assert len(comparisons) == 2


def test_what_is_not_given_is_made_where_the_rest_is():
    there = torch.zeros(2, dtype=torch.long, device="meta")
    for comparisons in (Comparisons(there, there, there), Comparisons.empty("meta")):
        assert {tensor.device.type for tensor in vars(comparisons).values()} == {"meta"}


def test_no_comparisons_have_the_types_of_some():
    some = Comparisons(indices(0), indices(1), indices(0))
    types = {name: tensor.dtype for name, tensor in vars(some).items()}
    assert {name: tensor.dtype for name, tensor in vars(Comparisons.empty()).items()} == types
    assert types["tier"] == types["head"] == torch.int64 and types["weight"] == torch.float32


@pytest.mark.parametrize("place", [{"device": "meta"}, "meta"])
def test_all_fields_move_to_a_device_together(place):
    comparisons = Comparisons(indices(0, 2), indices(1, 3), indices(0, 0))
    moved = comparisons.to(**place) if isinstance(place, dict) else comparisons.to(place)
    assert {tensor.device.type for tensor in vars(moved).values()} == {"meta"}


def test_a_move_leaves_every_field_with_its_values():
    weights = torch.tensor([0.5, 2.0])
    comparisons = Comparisons(
        indices(0, 2), indices(1, 3), indices(4, 5), weights, weights + 1, weights + 2, indices(6, -1)
    )
    moved = comparisons.to("cpu")
    assert {name: tensor.tolist() for name, tensor in vars(moved).items()} == {
        "winner": [0, 2],
        "loser": [1, 3],
        "head": [4, 5],
        "weight": [0.5, 2.0],
        "margin": [1.5, 3.0],
        "unit": [2.5, 4.0],
        "tier": [6, -1],
    }


def test_a_move_keeps_the_type_of_every_field():
    comparisons = Comparisons(indices(0), indices(1), indices(0), weight=torch.ones(1, dtype=torch.float64))
    moved = comparisons.to("cpu")
    assert (moved.weight.dtype, moved.margin.dtype, moved.head.dtype) == (torch.float64, torch.float32, torch.int64)


@pytest.mark.parametrize("field", ["loser", "head", "weight", "margin", "unit", "tier"])
def test_a_field_of_another_length_is_refused_by_name(field):
    fields = {"winner": indices(0, 1), "loser": indices(1, 0), "head": indices(0, 0), field: torch.zeros(3).long()}
    with pytest.raises(ValueError, match=rf"Comparisons\.{field} has shape \(3,\).*winner.*\(2,\)"):
        Comparisons(**fields)


def test_a_matrix_of_comparisons_is_refused():
    square = torch.zeros(2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"shape \(2, 2\).*\(C,\)"):
        Comparisons(square, square, square)


def test_rows_renumbers_texts_and_leaves_the_rest():
    comparisons = Comparisons(indices(0, 2), indices(1, 0), indices(1, 0), weight=torch.tensor([2.0, 3.0]))
    moved = comparisons.rows(indices(7, 5, 9))
    assert listed(moved) == [(7, 5, 1, 2.0, 1.0), (9, 7, 0, 3.0, 1.0)]


def test_concatenating_keeps_every_field_in_order():
    first = Comparisons(indices(0), indices(1), indices(0), margin=torch.tensor([0.5]), tier=indices(2))
    both = Comparisons.concatenate([first, Comparisons.empty(), Comparisons(indices(3), indices(2), indices(1))])
    assert both.winner.tolist() == [0, 3]
    assert both.margin.tolist() == [0.5, 0.0]
    assert both.tier.tolist() == [2, -1]


# Two positives of head 0, one of head 1; rows 3 to 7 are negatives: two soft, one semi-firm, two furthest.
POSITIVE_HEADS = indices(0, 0, 1)
TIERS = ["soft", "soft", "semi_firm", "furthest", "furthest"]


def test_all_pairs_let_every_positive_meet_every_negative_with_the_tier_weight_shared_among_them():
    comparisons = tiered_comparisons(POSITIVE_HEADS, TIERS, tier_weights=TIER_WEIGHTS, pairing="all")
    expected = [
        (positive, negative, head, weight, pytest.approx(0.2))
        for positive, head in ((0, 0), (1, 0), (2, 1))
        for negative, weight in ((3, 1.0), (4, 1.0), (5, 1.0), (6, 0.25), (7, 0.25))
    ]
    assert listed(comparisons) == expected


def test_positional_pairs_are_the_first_of_each_tier_weighing_the_tier_weight_over_their_number():
    comparisons = tiered_comparisons(POSITIVE_HEADS, TIERS, tier_weights=TIER_WEIGHTS, pairing="positional")
    fifth, third = pytest.approx(1 / 5), pytest.approx(1 / 3)
    assert listed(comparisons) == [
        (0, 3, 0, 1.0, fifth),  # soft: two pairs, weight 2 / 2
        (0, 5, 0, 1.0, fifth),  # semi-firm: one pair
        (0, 6, 0, 0.25, fifth),  # furthest: two pairs, weight 0.5 / 2
        (1, 4, 0, 1.0, fifth),
        (1, 7, 0, 0.25, fifth),
        (2, 3, 1, 2.0, third),
        (2, 5, 1, 1.0, third),
        (2, 6, 1, 0.5, third),
    ]


def test_the_tier_of_a_comparison_is_its_place_among_the_weights():
    comparisons = tiered_comparisons(indices(0), ["furthest", "soft"], tier_weights=TIER_WEIGHTS, pairing="all")
    tier_of = dict(zip(comparisons.loser.tolist(), comparisons.tier.tolist(), strict=True))
    assert tier_of == {1: 2, 2: 0}


@pytest.mark.parametrize("pairing", ["all", "positional"])
def test_a_negative_is_not_used_against_a_head_its_mask_leaves_out(pairing):
    mask = torch.tensor([[True, False], [False, True], [True, True]])
    comparisons = tiered_comparisons(
        indices(0, 1), ["soft", "soft", "soft"], tier_weights={"soft": 1.0}, pairing=pairing, negative_heads=mask
    )
    met = {(winner, loser) for winner, loser, *_ in listed(comparisons)}
    # Rows 2, 3, 4 are the negatives. By position a single positive meets the first that may be used against its head.
    assert met == ({(0, 2), (0, 4), (1, 3), (1, 4)} if pairing == "all" else {(0, 2), (1, 3)})


@pytest.mark.parametrize("pairing", ["all", "positional"])
def test_a_negative_is_used_against_the_heads_of_its_list_and_without_a_list_against_all(pairing):
    options = {"tier_weights": {"soft": 1.0}, "pairing": pairing}
    heads = indices(0, 1).int()
    comparisons = tiered_comparisons(heads, ["soft"] * 3, negative_heads=[[0], [1], None], **options)
    met = {(winner, loser) for winner, loser, *_ in listed(comparisons)}
    assert met == ({(0, 2), (0, 4), (1, 3), (1, 4)} if pairing == "all" else {(0, 2), (1, 3)})
    assert comparisons.head.dtype == torch.int64
    assert len(tiered_comparisons(heads, [], negative_heads=[], **options)) == 0


@pytest.mark.parametrize("pairing", ["all", "positional"])
def test_a_tier_of_weight_zero_makes_no_comparison_and_takes_no_share(pairing):
    weights = {"soft": 1.0, "furthest": 0.0}
    comparisons = tiered_comparisons(indices(0), ["furthest", "soft"], tier_weights=weights, pairing=pairing)
    assert listed(comparisons) == [(0, 2, 0, 1.0, 1.0)]


@pytest.mark.parametrize("pairing", ["all", "positional"])
@pytest.mark.parametrize(("heads", "tiers"), [((), ["soft"]), ((0, 1), []), ((), [])])
def test_without_positives_or_without_negatives_there_is_no_comparison(heads, tiers, pairing):
    comparisons = tiered_comparisons(indices(*heads), tiers, tier_weights=TIER_WEIGHTS, pairing=pairing)
    assert len(comparisons) == 0


def test_no_tiers_at_all_make_no_comparison():
    assert len(tiered_comparisons(indices(0, 1), [], tier_weights={}, pairing="all")) == 0


heads_and_tiers = {
    "heads": st.lists(st.integers(0, 2), max_size=6),
    "tiers": st.lists(st.sampled_from(NAMES), max_size=8),
    "seed": st.integers(0, 1000),
}


@settings(max_examples=60, deadline=None)
@given(**heads_and_tiers)
def test_with_all_pairs_every_positive_gives_each_tier_it_meets_the_tiers_weight_and_one_unit_in_all(
    heads, tiers, seed
):
    mask = torch.rand(len(tiers), 3, generator=torch.Generator().manual_seed(seed)) < 0.7
    comparisons = tiered_comparisons(
        indices(*heads), tiers, tier_weights=TIER_WEIGHTS, pairing="all", negative_heads=mask
    )
    expected_count = 0
    for row, head in enumerate(heads):
        mine = comparisons.winner == row
        usable = [tier for tier, usable in zip(tiers, mask[:, head].tolist(), strict=True) if usable]
        expected_count += len(usable)
        for number, name in enumerate(NAMES):
            share = comparisons.weight[mine & (comparisons.tier == number)].sum().item()
            assert share == pytest.approx(TIER_WEIGHTS[name] if name in usable else 0.0, abs=1e-6)
        assert comparisons.unit[mine].sum().item() == pytest.approx(1.0 if usable else 0.0, abs=1e-6)
    assert len(comparisons) == expected_count


@settings(max_examples=60, deadline=None)
@given(**heads_and_tiers)
def test_positional_pairs_are_those_of_a_plain_loop_over_heads_and_tiers(heads, tiers, seed):
    mask = torch.rand(len(tiers), 3, generator=torch.Generator().manual_seed(seed)) < 0.7
    comparisons = tiered_comparisons(
        indices(*heads), tiers, tier_weights=TIER_WEIGHTS, pairing="positional", negative_heads=mask
    )
    expected = []
    for head in sorted(set(heads)):
        rows = [row for row, own in enumerate(heads) if own == head]
        pairs = []
        for name in NAMES:
            usable = [len(heads) + j for j, tier in enumerate(tiers) if tier == name and mask[j, head]]
            n_pairs = min(len(rows), len(usable))
            pairs += [(*pair, TIER_WEIGHTS[name] / n_pairs) for pair in zip(rows, usable, strict=False)]
        expected += [
            (winner, loser, head, pytest.approx(weight), pytest.approx(1 / len(pairs)))
            for winner, loser, weight in pairs
        ]
    assert listed(comparisons) == sorted(expected, key=lambda comparison: comparison[:3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negative_tiers": ["firm"]}, r"tier 'firm' has no weight: add it to tier_weights.*soft.*semi_firm"),
        ({"tier_weights": {"soft": -1.0}}, r"tier_weights\['soft'\] is -1.0.*finite and not negative"),
        ({"tier_weights": {"soft": float("nan")}}, r"tier_weights\['soft'\] is nan"),
        ({"tier_weights": {"soft": float("inf")}}, r"tier_weights\['soft'\] is inf"),
        ({"pairing": "random"}, r"pairing is 'random'; choose 'all' or 'positional'"),
        ({"negative_heads": torch.ones(3, 1)}, r"negative_heads has 3 rows for 1 negatives"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_with_their_value(arguments, message):
    arguments = {"negative_tiers": ["soft"], "tier_weights": TIER_WEIGHTS, "pairing": "all", **arguments}
    with pytest.raises(ValueError, match=message):
        tiered_comparisons(indices(0), **arguments)
