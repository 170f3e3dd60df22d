"""Putting an evaluation together: rows count once, and the split into batches and ranks changes nothing."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.reward_model.batching import ComparisonCollator
from alignkit.reward_model.data import RowEncoder
from alignkit.reward_model.evaluation import EvaluationRecord, EvaluationSet
from alignkit.reward_model.negatives import NegativePool
from alignkit.tasks.toy import byte_tokenizer

HEADS = ["tidy", "short"]
TIER_WEIGHTS = {"soft": 2.0, "far": 0.5}
TOKENIZER = byte_tokenizer()
ENCODE = RowEncoder(TOKENIZER, HEADS, "eval")

ROWS = [
    {"chosen": "good", "rejected": "bad", "head": "tidy", "margin": 0.5},
    {"chosen": "bad", "rejected": "good", "head": "short"},
    {"chosen": "good", "rejected": "fair", "head": "tidy", "weight": 3.0},
    {"chosen": "x", "rejected": "yy", "head": "short", "tie": True},
    {"completions": ["fair", "x", "good"], "ratings": {"tidy": [1.0, 2.0, 2.0], "short": [None, 1.0, 3.0]}},
    {"chosen": "good", "rejected": "x", "head_margins": {"tidy": -1.0, "short": 0.0}},
    {"text": "verse", "head": "tidy"},
    {"text": "good", "head": "short"},
]
NEGATIVES = [
    {"text": "prose", "tier": "soft", "heads": None},
    {"text": "list", "tier": "soft", "heads": ["tidy"]},
    {"text": "good", "tier": "far", "heads": None},
]


def negatives() -> NegativePool:
    return NegativePool.from_dataset(Dataset.from_list(NEGATIVES), RowEncoder(TOKENIZER, HEADS, "negatives"))


def scores_of(batch: dict) -> torch.Tensor:
    """Scores that depend on the text alone, as a model's do."""
    key = (batch["text_key"] % 1000).float()
    return torch.stack([key / 100, (key / 7).sin()], dim=1)


def assembled(batches: list[list[dict]], pool: NegativePool | None = None) -> EvaluationSet:
    """What is assembled from batches of encoded rows."""
    record = EvaluationRecord()
    for rows in batches:
        batch = ComparisonCollator(256)(rows)
        record.add(batch, scores_of(batch))
    return record.assemble(pool, tier_weights=TIER_WEIGHTS)


def encoded(rows: list[dict], start: int = 0) -> list[dict]:
    return [ENCODE(row, start + index) for index, row in enumerate(rows)]


def assert_same(first: EvaluationSet, second: EvaluationSet) -> None:
    """Equal in every array."""
    for name in ("scores", "lengths", "positive", "positive_head"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0, msg=name)
    for name, values in vars(first.comparisons).items():
        torch.testing.assert_close(values, getattr(second.comparisons, name), rtol=0, atol=0, msg=name)


def length_in_tokens(text: str) -> int:
    return len(text) + 2  # <bos> and <eos>


def test_distinct_texts_are_scored_once_with_their_lengths():
    evaluation = assembled([encoded(ROWS[:3])])
    assert sorted(evaluation.lengths.tolist()) == sorted(map(length_in_tokens, ["good", "bad", "fair"]))
    assert evaluation.scores.shape == (3, 2)


def test_comparisons_name_the_rows_of_their_own_texts():
    evaluation = assembled([encoded(ROWS[:1])])
    comparisons, lengths = evaluation.comparisons, evaluation.lengths
    assert lengths[comparisons.winner].tolist() == [length_in_tokens("good")]
    assert lengths[comparisons.loser].tolist() == [length_in_tokens("bad")]
    assert comparisons.margin.tolist() == [0.5]
    key = torch.tensor(encoded(ROWS[:1])[0]["text_key"])
    torch.testing.assert_close(evaluation.scores[comparisons.winner], scores_of({"text_key": key[:1]}))


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(len(ROWS))), cuts=st.sets(st.integers(1, len(ROWS) - 1)))
def test_any_split_into_batches_in_any_order_gives_equal_arrays(order, cuts):
    rows = encoded(ROWS)
    edges = [0, *sorted(cuts), len(ROWS)]
    batches = [[rows[i] for i in order[low:high]] for low, high in pairwise(edges)]
    pool = negatives()
    batches.append(pool.encoded_rows())
    assert_same(assembled(batches, pool), assembled([[*rows, *pool.encoded_rows()]], pool))


def test_rows_that_the_sampler_repeats_to_fill_the_ranks_count_once():
    rows, pool = encoded(ROWS), negatives()
    own = [*rows, *pool.encoded_rows()]
    assert_same(assembled([own, rows[:3], [rows[6], rows[6]]], pool), assembled([own], pool))


def test_two_rows_of_the_same_texts_are_not_taken_for_a_repetition():
    twice = assembled([encoded([ROWS[0], ROWS[0]])])
    assert len(twice.comparisons) == 2
    assert len(twice.scores) == 2


def test_every_member_meets_every_negative_that_may_be_used_against_it():
    pool = negatives()
    evaluation = assembled([encoded([ROWS[6]]), encoded([ROWS[7]], start=1), pool.encoded_rows()], pool)
    comparisons = evaluation.comparisons
    length = evaluation.lengths.tolist()
    met = sorted(
        (length[winner], length[loser], head, tier, weight)
        for winner, loser, head, tier, weight in zip(
            comparisons.winner.tolist(),
            comparisons.loser.tolist(),
            comparisons.head.tolist(),
            comparisons.tier.tolist(),
            comparisons.weight.tolist(),
            strict=True,
        )
    )
    verse, good, prose, listed = map(length_in_tokens, ["verse", "good", "prose", "list"])
    assert met == sorted(
        [
            (verse, prose, 0, 0, 1.0),
            (verse, listed, 0, 0, 1.0),
            (verse, good, 0, 1, 0.5),
            (good, prose, 1, 0, 2.0),  # `list` is for the head tidy alone, and `good` is never its own negative
        ]
    )


def test_without_a_pool_members_are_positives_that_compare_nothing():
    evaluation = assembled([encoded(ROWS[6:])])
    assert len(evaluation.comparisons) == 0
    assert len(evaluation.positive) == 2


def test_positives_are_distinct_pairs_of_text_and_head():
    evaluation = assembled([encoded(ROWS[:1]), encoded(ROWS[:3])])
    pairs = set(zip(evaluation.lengths[evaluation.positive].tolist(), evaluation.positive_head.tolist(), strict=True))
    assert pairs == {(length_in_tokens("good"), 0), (length_in_tokens("bad"), 1)}
    assert len(evaluation.positive) == 2


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_counted_over_the_assembled_set_is_the_accuracy_over_the_rows(seed):
    generator = np.random.default_rng(seed)
    pairs = [{"chosen": f"c{i}", "rejected": f"r{i}", "head": int(generator.integers(2))} for i in range(21)]
    rows = encoded(pairs)
    evaluation = assembled([rows[start : start + 8] for start in range(0, 21, 8)])  # a short last batch
    comparisons = evaluation.comparisons
    right = (
        evaluation.scores[comparisons.winner, comparisons.head]
        > evaluation.scores[comparisons.loser, comparisons.head]
    )
    expected = 0
    for row in rows:
        scores = scores_of({"text_key": torch.tensor(row["text_key"])})
        expected += bool(scores[0, row["head"][0]] > scores[1, row["head"][0]])
    assert right.sum().item() == expected
    assert len(right) == 21
