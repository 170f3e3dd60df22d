"""Distinct tokens of rows, and the index maths around them."""

import pickle
from typing import Any

import pytest
import torch

from alignkit.shared_prefix import PackedRows, RowCost, pack_rows
from tests.shared_prefix.completions import tokens

P, Q = tokens(40, 1), tokens(30, 2)
SQUARE = RowCost(linear=1.0, attention=1.0)


def pack(rows: list[list[int]], **settings: Any) -> PackedRows:
    packed = pack_rows(rows, [0] * len(rows), width=max(map(len, rows)), **settings)
    assert packed is not None
    return packed


def allowed(packed: PackedRows) -> torch.Tensor:
    """The dense mask `(R * W, R * W)` that the docstring of `PackedRows` states."""
    paths, owner, positions = packed.paths, packed.owner.flatten(), packed.position_ids.flatten()
    on_path = paths[owner][:, positions] == torch.arange(len(positions))
    return on_path & (positions <= positions[:, None]) & (owner[:, None] >= 0)


def test_a_pair_of_five_and_four_tokens_with_three_in_common_worked_by_hand():
    packed = pack_rows([[7, 8, 9, 1, 2], [7, 8, 9, 3]], [2, 2], width=3)
    assert packed is not None
    assert packed.input_ids.tolist() == [[7, 8, 9, 1, 2, 3]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert packed.owner.tolist() == [[0, 0, 0, 0, 0, 1]]
    assert packed.paths.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 5, 5]]
    assert (packed.n_first, packed.n_whole, packed.lengths, packed.own) == (1, 1, (5, 4), (5, 1))
    assert packed.own_queries.tolist() == [[5]]
    assert packed.index.tolist() == [[2, 3, 4], [2, 5, 5]]
    assert {tensor.dtype for tensor in vars(packed).values() if isinstance(tensor, torch.Tensor)} == {torch.int64}


def test_rows_stand_by_how_much_of_them_is_their_own_and_half_is_enough_to_be_taken_whole():
    alone, last = [1, 1, 1, 1, 1, 1], [2, 2, 2]  # share nothing with one before them
    most, half = [1, 1, 3, 3, 3, 3], [1, 1, 7, 7]
    few = [1, 1, 1, 1, 1, 2], [1, 1, 3, 3, 4, 4], [1, 1, 5]
    packed = pack([last, half, *few, most, alone])
    assert packed.lengths == (6, 3, 6, 4, 6, 6, 3)
    assert packed.own == (6, 3, 4, 2, 1, 2, 1)
    assert (packed.n_first, packed.n_whole) == (2, 4)
    assert packed.own_queries.shape == (5, 4)


def test_the_cost_of_a_row_is_linear_and_square_in_its_tokens():
    assert RowCost(linear=2.0, attention=3.0)(4) == 8 + 48


def test_tokens_of_one_prompt_are_the_prompt_and_every_completion():
    completions = [[50 + number, *tokens(5 + number, number)] for number in range(4)]
    packed = pack([P + completion for completion in completions])
    assert sum(packed.own) == len(P) + sum(map(len, completions))
    assert packed.input_ids.shape == (1, sum(packed.own))


def test_the_number_of_tokens_is_that_of_distinct_beginnings():
    rows = [P + [9, 9, 1], P + [9, 9, 2], P + [9, 3], P[:5] + Q, Q + [1], Q + [2]]
    packed = pack(rows)
    assert sum(packed.own) == len({tuple(row[: end + 1]) for row in rows for end in range(len(row))})


def test_pairs_with_one_prompt_share_one_prefix_wherever_they_stand_in_the_batch():
    rows = [P + [1, 1], Q + [3], P + [2], P + [4], Q + [5, 5], P + [6]]
    packed = pack(rows)
    assert sum(packed.own) == len(P) + 5 + len(Q) + 3


@pytest.mark.parametrize("settings", [{}, {"max_packed_tokens": 60}, {"cost": SQUARE}])
def test_a_token_attends_to_exactly_the_beginnings_of_its_row(settings):
    rows = [P + [1, 1], Q + [3], P + [1, 2, 2], Q + [3, 5], P[:20] + [9] * 30]
    packed = pack(rows, **settings)
    ids, mask = packed.input_ids.flatten(), allowed(packed)
    for row, index in zip(rows, packed.index, strict=True):
        for position, token in enumerate(index[: len(row)]):
            attended = mask[token].nonzero().flatten()
            by_position = attended[packed.position_ids.flatten()[attended].argsort()]
            assert ids[by_position].tolist() == row[: position + 1]
            assert attended.max() == token  # what a token builds on stands before it


def test_index_names_the_positions_asked_for_and_repeats_the_last():
    rows = [P + [1, 2, 3], P + [4]]
    packed = pack_rows(rows, [39, 40], width=4)
    assert packed is not None
    assert packed.input_ids.flatten()[packed.index].tolist() == [[P[-1], 1, 2, 3], [4, 4, 4, 4]]


def test_rows_that_are_equal_have_their_tokens_once():
    packed = pack([P, P, P])
    assert sum(packed.own) == len(P) and len(packed.paths) == 1
    assert packed.own_queries.shape == (0, 0) and packed.own_queries.dtype == torch.int64
    assert packed.index.tolist() == [list(range(40))] * 3


def test_a_row_that_is_the_beginning_of_another_has_no_tokens_of_its_own_to_add():
    packed = pack([P, P + [1, 2]])
    assert sum(packed.own) == 42
    assert packed.index[0].tolist() == [*range(40), 39, 39]


def test_a_common_prefix_may_reach_into_the_completions():
    chosen, rejected = P + [5, 6, 7, 1], P + [5, 6, 7, 2]
    packed = pack_rows([chosen, rejected], [39, 39], width=5)
    assert packed is not None and sum(packed.own) == 45
    assert packed.index[:, :4].unique(dim=0).shape == (1, 4)


def test_a_common_prefix_may_end_before_the_prompt_does():
    # "... a" + "b" and "... a" + "c", where the tokenizer merges "ab" and "ac".
    packed = pack_rows([P[:38] + [3, 4], P[:38] + [5]], [38, 38], width=2)
    assert packed is not None and sum(packed.own) == 41
    assert packed.input_ids.flatten()[packed.index].tolist() == [[3, 4], [5, 5]]


def test_no_common_token_and_a_saving_below_a_twentieth_are_not_worth_it():
    assert pack_rows([P, Q], [0, 0], width=40) is None
    assert pack_rows([[1] + P, [1] + P[::-1]], [0, 0], width=41) is None
    assert pack_rows([[1], [1]], [0, 0], width=1) is None


@pytest.mark.parametrize("limit", [1, 41, 45, 70, 90, 1000])
def test_no_packed_row_is_longer_than_the_limit_except_for_single_rows(limit):
    rows = [P + [number] * 5 for number in range(6)] + [Q + [number] for number in range(4)]
    packed = pack_rows(rows, [0] * 10, width=1, max_packed_tokens=limit)
    if limit < 70:  # pairs of rows of 45 tokens with 40 in common need 50
        assert packed is None or packed.input_ids.shape[1] <= max(limit, 45)
    else:
        assert packed is not None and packed.input_ids.shape[1] <= limit


def test_a_packed_row_may_be_exactly_as_long_as_the_limit():
    assert pack([P + [1], P + [2]], max_packed_tokens=42).input_ids.shape == (1, 42)


def pairs_of(sizes: list[int]) -> list[list[int]]:
    """Two rows for each size, which are so many distinct tokens together; in the order in which rows are sorted."""
    return [[100 + number] * (size - 2) + [end] for number, size in enumerate(sizes) for end in (1, 2)]


def test_the_largest_groups_are_placed_first():
    # Smallest first, 20 + 30 | 40 | 50 would take three rows; so would groups that join without a common token.
    assert pack(pairs_of([20, 30, 40, 50]), max_packed_tokens=70).input_ids.shape == (2, 70)


def test_an_odd_number_of_tokens_is_halved_upwards():
    # 30 + 21 | 28 + 22: one row of 101 tokens costs more than two of 51, and three of 50 cost most.
    packed = pack(pairs_of([21, 22, 28, 30]), cost=RowCost(linear=1.0, attention=1e-3))
    assert packed.input_ids.shape == (2, 51)


def test_where_attention_is_square_prompts_do_not_stand_in_one_row_and_completions_do():
    rows = [P + [1], P + [2], Q + [1], Q + [2], [*Q[:2], *P[::-1], 1], [*Q[:2], *P[::-1], 2]]
    packed = pack(rows, cost=SQUARE)
    assert packed.input_ids.shape == (3, 44)
    assert pack(rows).input_ids.shape[0] == 1


def test_where_attention_is_cheap_short_groups_fill_up_rows():
    rows = [tokens(size, seed) + [end] for seed, size in enumerate([200, 90, 90]) for end in (1, 2)]
    packed = pack(rows, cost=RowCost(linear=1.0, attention=1e-3))
    assert packed.input_ids.shape == (2, 202)
    assert (packed.owner == -1).sum() == 2 * 202 - sum(packed.own) == 18


def test_packed_rows_travel_between_processes_and_devices():
    packed = pack([P + [1], P + [2]])
    copy = pickle.loads(pickle.dumps(packed)).to("cpu")
    assert copy.lengths == packed.lengths and torch.equal(copy.paths, packed.paths)
    assert packed.to("meta").input_ids.device.type == packed.to(device="meta").paths.device.type == "meta"


def test_bad_rows_starts_and_limits_are_named():
    with pytest.raises(ValueError, match="row 1 has 0 tokens; its start 0 must be one of them"):
        pack_rows([P, []], [0, 0], width=1)
    with pytest.raises(ValueError, match="row 0 has 40 tokens; its start 40 must be one of them"):
        pack_rows([P, P], [40, 0], width=1)
    with pytest.raises(ValueError, match="max_packed_tokens is 0"):
        pack_rows([P, P], [0, 0], width=1, max_packed_tokens=0)
