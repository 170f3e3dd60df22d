"""Encoded rows to a batch: distinct texts once, comparisons and positives between them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.reward_model.batching import ROW_STRIDE, ComparisonCollator, pad_length, pad_texts
from alignkit.reward_model.data import RowEncoder, encoded_row, text_key
from alignkit.reward_model.rows import ParsedRow
from alignkit.tasks.toy import byte_tokenizer

PAD, BOS, EOS = 256, 257, 258
HEADS = ["tidy", "short"]
TOKENIZER = byte_tokenizer()
ENCODE = RowEncoder(TOKENIZER, HEADS, "train")


def collate(*rows: dict, start: int = 0, **arguments) -> dict:
    return ComparisonCollator(PAD, **arguments)([ENCODE(row, start + index) for index, row in enumerate(rows)])


def pair(chosen: str, rejected: str, head: str = "tidy") -> dict:
    return {"chosen": chosen, "rejected": rejected, "head": head}


def texts_of(batch: dict) -> list[str]:
    rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    return [TOKENIZER.decode(ids[mask], skip_special_tokens=True) for ids, mask in rows]


def compared(batch: dict) -> list[tuple[str, str, str, float, float, float]]:
    """(winner, loser, head, weight, margin, unit) with texts and head names in place of numbers."""
    texts, comparisons = texts_of(batch), batch["comparisons"]
    fields = (comparisons.winner, comparisons.loser, comparisons.head)
    numbers = (comparisons.weight, comparisons.margin, comparisons.unit)
    rows = zip(*(field.tolist() for field in (*fields, *numbers)), strict=True)
    return [(texts[winner], texts[loser], HEADS[head], *rest) for winner, loser, head, *rest in rows]


def positives(batch: dict) -> list[tuple[str, str]]:
    texts = texts_of(batch)
    rows = zip(batch["positive"].tolist(), batch["positive_head"].tolist(), strict=True)
    return [(texts[text], HEADS[head]) for text, head in rows]


def test_texts_are_padded_on_the_right_and_the_mask_says_what_is_real():
    batch = collate(pair("a", "bcd"))
    assert batch["input_ids"].tolist() == [[BOS, 97, EOS, PAD, PAD], [BOS, 98, 99, 100, EOS]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_the_chosen_texts_come_first_and_the_rejected_after_as_in_trl():
    assert texts_of(collate(pair("a", "b"), pair("c", "d"))) == ["a", "c", "b", "d"]


def test_a_text_is_in_the_batch_once_however_many_rows_and_comparisons_name_it():
    batch = collate(
        pair("good", "bad"),
        pair("best", "good", "short"),
        {"completions": ["bad", "best", "good"], "ratings": {"tidy": [0.0, 2.0, 1.0]}},
        {"text": "good", "head": "short"},
    )
    assert sorted(texts_of(batch)) == ["bad", "best", "good"]
    assert compared(batch) == [
        ("good", "bad", "tidy", 1.0, 0.0, 1.0),
        ("best", "good", "short", 1.0, 0.0, 1.0),
        ("best", "bad", "tidy", 1.0, 0.0, 1.0),
        ("good", "bad", "tidy", 1.0, 0.0, 1.0),
        ("best", "good", "tidy", 1.0, 0.0, 1.0),
    ]


def test_a_positive_is_listed_once_per_head():
    batch = collate(pair("good", "bad"), pair("good", "worse"), pair("good", "bad", "short"))
    assert positives(batch) == [("good", "tidy"), ("good", "short")]


def test_keys_are_those_of_the_texts_in_the_order_of_the_rows():
    batch = collate(pair("a", "b"))
    assert batch["text_key"].tolist() == [text_key([BOS, 97, EOS]), text_key([BOS, 98, EOS])]


def test_weights_margins_and_ties_reach_the_comparisons():
    batch = collate({**pair("a", "b"), "weight": 2.5, "margin": 0.5}, {**pair("c", "d"), "tie": True})
    assert compared(batch) == [
        ("a", "b", "tidy", 2.5, 0.5, 1.0),
        ("c", "d", "tidy", 0.5, 0.0, 0.5),
        ("d", "c", "tidy", 0.5, 0.0, 0.5),
    ]


def test_ids_tell_the_row_and_the_number_of_a_comparison_and_of_a_member():
    attributes = {"chosen": "a", "rejected": "b", "head_margins": {"tidy": 1.0, "short": -1.0}}
    batch = collate(attributes, pair("c", "d"), {"text": "e", "head": "tidy"}, start=5)
    assert batch["comparison_id"].tolist() == [5 * ROW_STRIDE, 5 * ROW_STRIDE + 1, 6 * ROW_STRIDE]
    assert batch["member_id"].tolist() == [7 * ROW_STRIDE]


def test_members_are_positives_that_compare_nothing_yet():
    batch = collate({"text": "verse", "head": "short"}, {"text": "prose", "head": "tidy"})
    assert texts_of(batch) == ["verse", "prose"]
    assert len(batch["comparisons"]) == 0
    assert (batch["member"].tolist(), batch["member_head"].tolist()) == ([0, 1], [1, 0])
    assert positives(batch) == [("verse", "short"), ("prose", "tidy")]


def test_a_batch_of_negatives_alone_has_texts_and_nothing_else():
    batch = ComparisonCollator(PAD)([encoded_row(-1, [[BOS, 120, EOS]], ParsedRow(["x"]))])
    empty = ("comparison_id", "positive", "positive_head", "member", "member_head", "member_id")
    assert [len(batch[name]) for name in empty] == [0] * 6
    assert all(batch[name].dtype == torch.long for name in empty)
    assert texts_of(batch) == ["x"]


@pytest.mark.parametrize(("multiple", "length"), [(None, 5), (1, 5), (4, 8), (5, 5), (8, 8)])
def test_the_length_is_padded_to_a_multiple_on_request(multiple, length):
    batch = collate(pair("a", "bcd"), pad_to_multiple_of=multiple)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, length)
    assert texts_of(batch) == ["a", "bcd"]
    assert (batch["input_ids"][:, 5:] == PAD).all()


def test_a_pad_token_that_is_also_in_a_text_stays_real():
    batch = pad_texts([[PAD, 5, PAD], [7]], PAD)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_padding_further_keeps_the_texts():
    batch = pad_texts([[1, 2], [3]], PAD)
    longer = pad_length(**batch, length=4, pad_token_id=PAD)
    assert longer["input_ids"].tolist() == [[1, 2, PAD, PAD], [3, PAD, PAD, PAD]]
    assert longer["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]


word = st.text("abc", min_size=1, max_size=3)
pairs = st.tuples(word, word, st.sampled_from(HEADS)).filter(lambda row: row[0] != row[1]).map(lambda row: pair(*row))
members = st.builds(lambda text, head: {"text": text, "head": head}, word, st.sampled_from(HEADS))


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(pairs | members, min_size=1, max_size=8))
def test_a_batch_says_exactly_what_its_rows_say_each_on_its_own(rows):
    batch, alone = collate(*rows), [collate(row) for row in rows]
    assert sorted(texts_of(batch)) == sorted({text for one in alone for text in texts_of(one)})
    assert compared(batch) == [comparison for one in alone for comparison in compared(one)]
    assert positives(batch) == list(dict.fromkeys(positive for one in alone for positive in positives(one)))
    texts = texts_of(batch)
    assert [texts[text] for text in batch["member"].tolist()] == [row["text"] for row in rows if "text" in row]
