"""Pools of negatives: what a step draws, conflicts with positives, and how the draw joins a micro-batch."""

import logging
from collections import Counter

import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.reward_model.batching import ComparisonCollator
from alignkit.reward_model.data import RowEncoder
from alignkit.reward_model.negatives import NegativePool
from alignkit.reward_model.preparation import DataPreparation, DataSettings
from alignkit.tasks.toy import byte_tokenizer

PAD = 256
HEADS = ["verse", "prose"]
TOKENIZER = byte_tokenizer()
TIER_WEIGHTS = {"soft": 2.0, "far": 0.5}


def negative(text: str, tier: str = "soft", heads: list[str] | None = None) -> dict:
    return {"text": text, "tier": tier, "heads": heads}


def pool_of(*rows: dict, **settings) -> NegativePool:
    columns = {name: [row[name] for row in rows] for name in ("text", "tier", "heads")}
    encoder = RowEncoder(TOKENIZER, HEADS, "negatives", **settings)
    return NegativePool.from_dataset(Dataset.from_dict(columns), encoder)


def numbered(n_soft: int, n_far: int) -> NegativePool:
    return pool_of(*(negative(f"s{i}") for i in range(n_soft)), *(negative(f"f{i}", "far") for i in range(n_far)))


def texts_of(pool: NegativePool) -> list[str]:
    return [TOKENIZER.decode(ids, skip_special_tokens=True) for ids in pool.input_ids]


def members(*rows: tuple[str, str]) -> dict:
    """A batch of positives (text, head)."""
    encode = RowEncoder(TOKENIZER, HEADS, "train")
    return ComparisonCollator(PAD)([encode({"text": t, "head": h}, i) for i, (t, h) in enumerate(rows)])


def join(pool: NegativePool, batch: dict, **changes) -> dict:
    arguments = {"tier_weights": TIER_WEIGHTS, "pairing": "all", "on_conflict": "raise", "pad_token_id": PAD}
    return pool.join(batch, **{**arguments, **changes})


def batch_texts(batch: dict) -> list[str]:
    rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    return [TOKENIZER.decode(ids[mask], skip_special_tokens=True) for ids, mask in rows]


def compared(batch: dict) -> set[tuple[str, str, str, float]]:
    texts, comparisons = batch_texts(batch), batch["comparisons"]
    fields = (comparisons.winner, comparisons.loser, comparisons.head, comparisons.weight)
    return {
        (texts[winner], texts[loser], HEADS[head], weight)
        for winner, loser, head, weight in zip(*(field.tolist() for field in fields), strict=True)
    }


# ---- Encoding ----


def test_a_pool_keeps_tier_heads_and_row_of_each_text():
    pool = pool_of(negative("a"), negative("b", "far", ["prose"]))
    assert texts_of(pool) == ["a", "b"]
    assert pool.tiers == ["soft", "far"]
    assert pool.heads.tolist() == [[True, True], [False, True]]
    assert pool.rows == [0, 1]


def test_too_long_negatives_are_dropped_and_counted_per_tier():
    long = "x" * 50
    pool = pool_of(negative("a"), negative(long), negative(long, "far"), negative("b"), max_length=9, overflow="drop")
    assert pool.dropped == {"soft": 1, "far": 1}
    assert texts_of(pool) == ["a", "b"]
    assert pool.rows == [0, 3]


def test_a_bad_negative_is_named_by_its_row():
    with pytest.raises(
        ValueError, match=r"negatives row 1: column 'heads' names the head 'poem'; use one of \['verse'"
    ):
        pool_of(negative("a"), negative("b", heads=["poem"]))
    with pytest.raises(ValueError, match=r"negatives row 0: a text has 52 tokens, 43 more than max_length=9"):
        pool_of(negative("x" * 50), max_length=9)


def test_an_empty_pool_is_refused():
    with pytest.raises(ValueError, match="the negatives dataset is empty; give it at least one row"):
        pool_of()


# ---- Drawing ----


def test_a_draw_is_a_function_of_seed_and_step_alone():
    draws = [texts_of(numbered(9, 7).draw(seed=1, step=step, per_tier=2)) for step in (0, 1, 5, 100)]
    used = numbered(9, 7)
    for step in (100, 3, 5):  # in another order, after other draws
        used.draw(seed=1, step=step, per_tier=2)
    again = [texts_of(used.draw(seed=1, step=step, per_tier=2)) for step in (0, 1, 5, 100)]
    assert draws == again
    assert len({tuple(draw) for draw in draws}) == 4
    assert texts_of(used.draw(seed=2, step=0, per_tier=2)) != draws[0]


def test_the_draw_of_step_three_is_this_one_on_every_machine():
    assert texts_of(numbered(9, 7).draw(seed=1, step=3, per_tier=2)) == ["f2", "f5", "s5", "s0"]


@settings(max_examples=40, deadline=None)
@given(n_soft=st.integers(1, 12), n_far=st.integers(1, 12), per_tier=st.integers(1, 14), step=st.integers(0, 50))
def test_a_draw_takes_so_many_of_each_tier_or_all_and_none_twice(n_soft, n_far, per_tier, step):
    texts = texts_of(numbered(n_soft, n_far).draw(seed=0, step=step, per_tier=per_tier))
    assert len(set(texts)) == len(texts)
    assert Counter(text[0] for text in texts) == {"s": min(per_tier, n_soft), "f": min(per_tier, n_far)}


@pytest.mark.parametrize(("n_texts", "per_tier"), [(8, 2), (6, 3), (5, 5), (3, 8), (4, 1)])
def test_every_text_is_used_equally_often_over_whole_passes(n_texts, per_tier):
    pool = numbered(n_texts, 1)
    steps_per_pass = max(n_texts // per_tier, 1)
    used = Counter(text for step in range(3 * steps_per_pass) for text in texts_of(pool.draw(7, step, per_tier)))
    assert {count for text, count in used.items() if text != "f0"} == {3}
    assert len(used) == n_texts + 1


def test_texts_left_over_at_the_end_of_a_pass_get_their_turn_in_others():
    pool = numbered(7, 1)  # three steps of two per pass, one text left over
    used = Counter(text for step in range(300) for text in texts_of(pool.draw(0, step, 2)))
    counts = [used[f"s{i}"] for i in range(7)]
    assert sum(counts) == 600
    assert max(counts) - min(counts) <= 20  # 600 / 7 = 86 each; the left-over texts are binomial around 100 / 7


def test_passes_go_in_different_orders():
    pool = numbered(8, 1)
    orders = {tuple(t for step in range(4) for t in texts_of(pool.draw(0, 4 * epoch + step, 2))) for epoch in range(5)}
    assert len(orders) == 5


# ---- Conflicts ----


def test_a_text_that_is_also_a_positive_is_refused_by_row_tier_and_head():
    pool = pool_of(negative("a"), negative("b", "far"))
    positives = [(pool.keys[1], 1)]
    message = (
        r"negatives row 1 \(tier 'far'\) is also a positive of head 'prose'.*its 'heads', or set on_conflict='drop'"
    )
    with pytest.raises(ValueError, match=message):
        pool.without_conflicts(positives, on_conflict="raise")


def test_a_conflict_that_is_dropped_takes_the_text_from_that_head_only_and_is_counted():
    pool = pool_of(negative("a"), negative("b", "far"))
    clean = pool.without_conflicts([(pool.keys[1], 1), (pool.keys[1], 1), (123, 0)], on_conflict="drop")
    assert clean.heads.tolist() == [[True, True], [True, False]]
    assert clean.conflicts == {"far": 1}
    assert pool.heads.all()  # the original is as it was


def test_a_positive_of_another_head_is_no_conflict():
    pool = pool_of(negative("a", heads=["prose"]))
    assert pool.without_conflicts([(pool.keys[0], 0)], on_conflict="raise").conflicts == {}


def test_every_copy_of_a_text_is_in_conflict():
    pool = pool_of(negative("a"), negative("a", "far"))
    clean = pool.without_conflicts([(pool.keys[0], 0)], on_conflict="drop")
    assert clean.heads.tolist() == [[False, True], [False, True]]
    assert clean.conflicts == {"soft": 1, "far": 1}


def data_settings(**changes) -> DataSettings:
    plain = {
        "max_length": 16,
        "overflow": "drop",
        "on_conflict": "drop",
        "use_margin_magnitude": False,
        "tier_weights": TIER_WEIGHTS,
        "dataset_num_proc": None,
        "dataloader_num_workers": 0,
        "stream_retries": 3,
    }
    return DataSettings(**{**plain, **changes})


POSITIVES = Dataset.from_list([{"text": "ode", "head": "verse"}, {"text": "essay", "head": "prose"}])
NEGATIVES = [negative("list"), negative("ode"), negative("noise", "far"), negative("n" * 50, "far")]


def test_preparing_data_counts_negatives_used_dropped_and_in_conflict_and_logs_the_losses(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("alignkit"), "propagate", True)
    preparation = DataPreparation(HEADS, Dataset.from_list(NEGATIVES))
    preparation.prepare(POSITIVES, TOKENIZER, data_settings(), "train")
    report = preparation.report["train"]
    assert report["positives"] == {"verse": 1, "prose": 1}
    assert report["negatives"] == {"soft": 2, "far": 1}
    assert report["negatives_dropped"] == {"far": 1}
    assert report["negatives_in_conflict"] == {"soft": 1}
    assert "train: 2 rows; negatives dropped: far 1; negatives in conflict: soft 1" in caplog.text
    assert preparation.negatives.heads.tolist() == [[True, True], [False, True], [True, True]]


def test_an_evaluation_uses_the_training_negatives_or_its_own_and_scores_their_texts():
    own = Dataset.from_list([negative("own soft"), negative("own far", "far")])
    for eval_negatives, expected in ((None, ["list", "ode", "noise"]), (own, ["own soft", "own far"])):
        preparation = DataPreparation(HEADS, Dataset.from_list(NEGATIVES), eval_negatives)
        preparation.prepare(POSITIVES, TOKENIZER, data_settings(), "train")
        encoded = preparation.prepare(POSITIVES, TOKENIZER, data_settings(), "eval")
        texts = [TOKENIZER.decode(row["input_ids"][0], skip_special_tokens=True) for row in encoded]
        assert texts == ["ode", "essay", *expected]
        assert encoded["row"] == [0, 1, *[-1] * len(expected)]


def test_a_streams_conflicts_are_found_when_they_are_read_counted_once_and_the_text_is_drawn_no_more(
    caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("alignkit"), "propagate", True)
    rows = [*POSITIVES, {"text": "list", "head": "prose"}]

    def generate():
        yield from rows

    preparation = DataPreparation(HEADS, Dataset.from_list(NEGATIVES))
    stream = preparation.prepare(IterableDataset.from_generator(generate), TOKENIZER, data_settings(), "train")
    for _ in range(2):
        assert [row["row"] for row in stream] == [0, 1, 2]
        report = preparation.report["train"]
        assert report["rows"] == 3
        assert report["positives"] == {"verse": 1, "prose": 2}
        assert report["negatives_in_conflict"] == {"soft": 2}
    assert preparation.negatives.heads.tolist() == [[True, False], [False, True], [True, True]]
    assert "train: 1 rows so far; negatives dropped: far 1; negatives in conflict: soft 1" in caplog.text
    refusing = DataPreparation(HEADS, Dataset.from_list(NEGATIVES))
    settings = data_settings(on_conflict="raise")
    stream = refusing.prepare(IterableDataset.from_generator(generate), TOKENIZER, settings, "train")
    with pytest.raises(ValueError, match=r"negatives row 1 \(tier 'soft'\) is also a positive of head 'verse'"):
        list(stream)


def test_an_evaluation_stream_scores_its_negatives_after_its_own_rows():
    def generate():
        yield from POSITIVES

    preparation = DataPreparation(HEADS, Dataset.from_list(NEGATIVES))
    stream = preparation.prepare(IterableDataset.from_generator(generate), TOKENIZER, data_settings(), "eval")
    assert [row["row"] for row in stream] == [0, 1, -1, -1, -1]
    assert preparation.report["eval"]["negatives_in_conflict"] == {"soft": 1}


def test_an_evaluation_set_that_is_called_train_leaves_the_training_data_alone():
    preparation = DataPreparation(HEADS, Dataset.from_list(NEGATIVES))
    preparation.prepare(POSITIVES, TOKENIZER, data_settings(), "train")
    report, negatives = preparation.report["train"], preparation.negatives
    encoded = preparation.prepare(POSITIVES.select([0]), TOKENIZER, data_settings(), "train")
    assert encoded["row"] == [0, -1, -1, -1]
    assert preparation.negatives is negatives
    assert preparation.report["train"] is report
    assert preparation.report["train_again"]["positives"] == {"verse": 1, "prose": 0}


def test_the_heads_a_pool_meets_are_those_of_texts_in_tiers_that_weigh_something():
    pool = pool_of(negative("a", heads=["verse"]), negative("b", "far"))
    assert pool.heads_met({"soft": 1.0, "far": 0.0}) == {"verse"}
    assert pool.heads_met({"soft": 1.0, "far": 0.1}) == {"verse", "prose"}


# ---- Joining ----


def test_every_member_of_a_batch_meets_every_negative_of_the_draw():
    pool = pool_of(negative("s1"), negative("s2"), negative("f1", "far"))
    joined = join(pool, members(("ode", "verse"), ("essay", "prose")))
    assert batch_texts(joined) == ["ode", "essay", "s1", "s2", "f1"]
    assert compared(joined) == {
        (positive, text, head, weight)
        for positive, head in (("ode", "verse"), ("essay", "prose"))
        for text, weight in (("s1", 1.0), ("s2", 1.0), ("f1", 0.5))
    }


def test_by_position_the_first_members_of_a_head_meet_the_first_negatives_of_a_tier():
    pool = pool_of(negative("s1"), negative("s2"), negative("f1", "far"))
    batch = members(("ode", "verse"), ("hymn", "verse"), ("essay", "prose"))
    assert compared(join(pool, batch, pairing="positional")) == {
        ("ode", "s1", "verse", 1.0),
        ("hymn", "s2", "verse", 1.0),
        ("ode", "f1", "verse", 0.5),
        ("essay", "s1", "prose", 2.0),
        ("essay", "f1", "prose", 0.5),
    }


def test_a_member_meets_only_the_negatives_meant_for_its_head():
    pool = pool_of(negative("s1", heads=["verse"]), negative("s2", heads=["prose"]))
    joined = join(pool, members(("ode", "verse"), ("essay", "prose")))
    assert compared(joined) == {("ode", "s1", "verse", 2.0), ("essay", "s2", "prose", 2.0)}


def test_a_text_that_the_batch_already_has_is_not_encoded_again():
    pool = pool_of(negative("essay", heads=["verse"]), negative("a much longer negative"), negative("s", "far"))
    joined = join(pool, members(("ode", "verse"), ("essay", "prose")))
    assert batch_texts(joined) == ["ode", "essay", "a much longer negative", "s"]
    assert ("ode", "essay", "verse", 1.0) in compared(joined)
    assert ("essay", "essay", "prose", 1.0) not in compared(joined)


def test_two_negatives_of_the_same_text_are_encoded_once_and_both_met():
    joined = join(pool_of(negative("s"), negative("s", "far")), members(("ode", "verse")))
    assert batch_texts(joined) == ["ode", "s"]
    assert compared(joined) == {("ode", "s", "verse", 2.0), ("ode", "s", "verse", 0.5)}


def test_joining_keeps_the_comparisons_of_the_batch_and_the_batch_as_it_was():
    encode = RowEncoder(TOKENIZER, HEADS, "train")
    rows = [{"chosen": "good", "rejected": "bad", "head": "prose"}, {"text": "ode", "head": "verse"}]
    batch = ComparisonCollator(PAD)([encode(row, index) for index, row in enumerate(rows)])
    joined = join(pool_of(negative("s")), batch)
    assert compared(joined) == {("good", "bad", "prose", 1.0), ("ode", "s", "verse", 2.0)}
    assert len(batch["comparisons"]) == 1
    assert len(batch["input_ids"]) == 3


def test_a_batch_without_members_is_left_alone():
    encode = RowEncoder(TOKENIZER, HEADS, "train")
    batch = ComparisonCollator(PAD)([encode({"chosen": "good", "rejected": "bad", "head": "prose"}, 0)])
    assert join(pool_of(negative("s")), batch) is batch


def test_a_conflict_inside_a_batch_is_refused_or_dropped():
    pool = pool_of(negative("ode"), negative("s"))
    batch = members(("ode", "verse"), ("essay", "prose"))
    with pytest.raises(ValueError, match=r"negatives row 0 \(tier 'soft'\) is also a positive of head 'verse'"):
        join(pool, batch)
    assert compared(join(pool, batch, on_conflict="drop")) == {
        ("ode", "s", "verse", 2.0),
        ("essay", "ode", "prose", 1.0),
        ("essay", "s", "prose", 1.0),
    }


def test_splitting_the_positives_of_a_step_changes_no_comparison_of_theirs():
    pool = numbered(4, 3).draw(seed=0, step=2, per_tier=3)
    rows = [("ode", "verse"), ("essay", "prose"), ("hymn", "verse"), ("note", "prose")]
    whole = compared(join(pool, members(*rows)))
    parts = [compared(join(pool, members(*part))) for part in (rows[:1], rows[1:])]
    assert whole == parts[0] | parts[1]
    assert len(whole) == 4 * 6


def test_a_subset_keeps_masks_with_their_texts():
    pool = pool_of(negative("a", heads=["verse"]), negative("b"), negative("c", "far", ["prose"]))
    subset = pool.subset([2, 0])
    assert texts_of(subset) == ["c", "a"]
    torch.testing.assert_close(subset.heads, torch.tensor([[False, True], [True, False]]))
