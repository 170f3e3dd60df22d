"""What each row format says: texts, comparisons, positives. And what is refused, by name and value."""

from typing import Any

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from alignkit.reward_model.rows import ParsedRow, parse_negative, parse_row

HEADS = ["tidy", "short"]
PAIR = {"chosen": "good", "rejected": "bad", "head": "short"}


def compared(parsed: ParsedRow) -> list[tuple[int, int, str, float, float, float]]:
    """(winner, loser, head, weight, margin, unit) of each comparison."""
    heads = [HEADS[head] for head in parsed.head]
    columns = (parsed.winner, parsed.loser, heads, parsed.weight, parsed.margin, parsed.unit)
    return list(zip(*columns, strict=True))


def positives(parsed: ParsedRow) -> list[tuple[Any, str]]:
    pairs = zip(parsed.positive, parsed.positive_head, strict=True)
    return [(parsed.texts[text], HEADS[head]) for text, head in pairs]


# ---- Pairs ----


def test_a_pair_is_one_comparison_and_its_chosen_text_a_positive_of_its_head():
    parsed = parse_row(PAIR, HEADS)
    assert parsed.texts == ["good", "bad"]
    assert compared(parsed) == [(0, 1, "short", 1.0, 0.0, 1.0)]
    assert positives(parsed) == [("good", "short")]
    assert parsed.member == []


def test_a_prompt_stands_before_both_texts_of_a_pair():
    assert parse_row({"prompt": "Q: ", **PAIR}, HEADS).texts == ["Q: good", "Q: bad"]


def test_a_pair_may_have_a_margin_and_a_weight():
    parsed = parse_row({**PAIR, "margin": 1.5, "weight": 2.0}, HEADS)
    assert compared(parsed) == [(0, 1, "short", 2.0, 1.5, 1.0)]


def test_a_tie_is_two_opposite_halves_without_a_margin_and_has_no_positive():
    parsed = parse_row({**PAIR, "tie": True, "weight": 3.0}, HEADS)
    assert compared(parsed) == [(0, 1, "short", 1.5, 0.0, 0.5), (1, 0, "short", 1.5, 0.0, 0.5)]
    assert positives(parsed) == []


def test_a_tie_that_is_false_is_a_pair():
    assert compared(parse_row({**PAIR, "tie": False}, HEADS)) == compared(parse_row(PAIR, HEADS))


def test_a_tie_with_a_margin_is_refused():
    with pytest.raises(ValueError, match=r"margin is 1\.0 in a row with tie=true.*make one of the two null"):
        parse_row({**PAIR, "tie": True, "margin": 1.0}, HEADS)


@pytest.mark.parametrize(("head", "number"), [("tidy", 0), ("short", 1), (0, 0), (1, 1), (1.0, 1), (np.int64(1), 1)])
def test_a_head_is_given_by_name_or_by_number(head, number):
    assert parse_row({**PAIR, "head": head}, HEADS).head == [number]


def test_with_a_single_head_the_head_may_be_left_out():
    assert parse_row({"chosen": "good", "rejected": "bad"}, ["reward"]).head == [0]


def test_chat_messages_follow_the_messages_of_the_prompt():
    question = {"role": "user", "content": "2 + 2?"}
    right, wrong = ({"role": "assistant", "content": content} for content in ("4", "5"))
    parsed = parse_row({"prompt": [question], "chosen": [right], "rejected": [wrong], "head": "tidy"}, HEADS)
    assert parsed.texts == [[question, right], [question, wrong]]


def test_token_ids_are_taken_as_they_are_without_the_prompt():
    row = {"prompt": "not used", "chosen_ids": [1, 2, 3], "rejected_ids": [1, 2, 4], "head": "tidy"}
    assert parse_row(row, HEADS).texts == [[1, 2, 3], [1, 2, 4]]


# ---- Multi-attribute pairs ----

ATTRIBUTES = {"chosen": "a", "rejected": "b", "head_margins": {"tidy": 0.5, "short": -2.0}}


def test_the_sign_of_a_head_margin_says_which_side_wins_on_that_head():
    parsed = parse_row(ATTRIBUTES, HEADS)
    assert compared(parsed) == [(0, 1, "tidy", 1.0, 0.0, 1.0), (1, 0, "short", 1.0, 0.0, 1.0)]
    assert positives(parsed) == [("a", "tidy"), ("b", "short")]


def test_the_size_of_a_head_margin_becomes_the_margin_only_on_request():
    parsed = parse_row({**ATTRIBUTES, "weight": 3.0}, HEADS, use_margin_magnitude=True)
    assert compared(parsed) == [(0, 1, "tidy", 3.0, 0.5, 1.0), (1, 0, "short", 3.0, 2.0, 1.0)]


def test_a_head_margin_of_zero_is_a_tie_and_null_is_missing():
    parsed = parse_row({**ATTRIBUTES, "head_margins": {"tidy": 0.0, "short": None}}, HEADS)
    assert compared(parsed) == [(0, 1, "tidy", 0.5, 0.0, 0.5), (1, 0, "tidy", 0.5, 0.0, 0.5)]


# ---- Rated lists ----


def rated(**ratings: list[float | None] | None) -> dict[str, Any]:
    return {"prompt": "Q ", "completions": ["x", "y", "z"], "ratings": ratings}


def test_a_rated_list_compares_all_pairs_per_head_with_ties_and_without_the_unrated():
    parsed = parse_row(rated(tidy=[2.0, 1.0, 2.0], short=[None, 4, 1.5]), HEADS)
    assert parsed.texts == ["Q x", "Q y", "Q z"]
    assert compared(parsed) == [
        (0, 1, "tidy", 1.0, 0.0, 1.0),
        (0, 2, "tidy", 0.5, 0.0, 0.5),
        (2, 0, "tidy", 0.5, 0.0, 0.5),
        (2, 1, "tidy", 1.0, 0.0, 1.0),
        (1, 2, "short", 1.0, 0.0, 1.0),
    ]
    assert positives(parsed) == [("Q x", "tidy"), ("Q z", "tidy"), ("Q y", "short")]


def test_the_difference_of_two_ratings_becomes_the_margin_only_on_request():
    row = {**rated(tidy=[2.0, 1.0, 4.5], short=None), "weight": 0.5}
    expected = [(0, 1, "tidy", 0.5, 1.0, 1.0), (2, 0, "tidy", 0.5, 2.5, 1.0), (2, 1, "tidy", 0.5, 3.5, 1.0)]
    assert compared(parse_row(row, HEADS, use_margin_magnitude=True)) == expected
    assert [comparison[4] for comparison in compared(parse_row(row, HEADS))] == [0.0, 0.0, 0.0]


def test_a_text_that_wins_twice_on_a_head_is_one_positive():
    assert positives(parse_row(rated(tidy=[3.0, 2.0, 1.0]), HEADS)) == [("Q x", "tidy"), ("Q y", "tidy")]


def test_completions_may_be_token_ids():
    row = {"completions_ids": [[1], [2]], "ratings": {"tidy": [0.0, 1.0]}}
    parsed = parse_row(row, HEADS)
    assert parsed.texts == [[1], [2]]
    assert compared(parsed) == [(1, 0, "tidy", 1.0, 0.0, 1.0)]


# ---- Tiered texts ----


def test_a_text_is_a_positive_and_a_member_of_its_head_and_compares_nothing_yet():
    parsed = parse_row({"text": "verse", "head": "short"}, HEADS)
    assert parsed.texts == ["verse"]
    assert compared(parsed) == []
    assert (parsed.positive, parsed.positive_head) == (parsed.member, parsed.member_head) == ([0], [1])


def test_a_negative_has_a_tier_and_serves_all_heads_unless_it_names_some():
    assert parse_negative({"text": "prose", "tier": "soft", "heads": None}, HEADS) == ("prose", "soft", [0, 1])
    assert parse_negative({"text": "prose", "tier": "soft"}, HEADS) == ("prose", "soft", [0, 1])
    assert parse_negative({"text_ids": [5], "tier": "far", "heads": ["short"]}, HEADS) == ([5], "far", [1])


# ---- Mixtures ----


def test_a_dataset_may_mix_all_formats_with_nulls_in_the_columns_a_row_does_not_use():
    parts = [
        [{"prompt": "Q ", **PAIR, "margin": 1.0, "tie": None}],
        [ATTRIBUTES, {**ATTRIBUTES, "head_margins": {"tidy": None, "short": 1.0}}],
        [rated(tidy=[1.0, 2.0, None], short=None), rated(tidy=None, short=[1.0, 1.0, None])],
        [{"text": "verse", "head": "tidy"}],
    ]
    mixed = concatenate_datasets([Dataset.from_list(rows) for rows in parts])
    assert [parse_row(row, HEADS) for row in mixed] == [parse_row(row, HEADS) for rows in parts for row in rows]


def test_a_struct_of_nulls_is_a_column_that_the_row_does_not_use():
    nulls = dict.fromkeys(HEADS)
    assert parse_row({**PAIR, "head_margins": nulls, "ratings": nulls}, HEADS) == parse_row(PAIR, HEADS)


# ---- What is refused ----


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x"}, r"only the columns \['question'\]; give it either \(chosen, rejected\).*\(text, head\)"),
        ({**PAIR, "text": "x"}, "has both 'text' and 'chosen'"),
        ({"chosen": "x", "head": "tidy"}, "column 'rejected' must be a string.*got NoneType None"),
        ({**PAIR, "rejected": 3}, "column 'rejected' must be a string or a list of messages.*got int 3"),
        ({**PAIR, "chosen": "  "}, r"column 'chosen' is empty \('  '\); drop the row or give it a text"),
        ({**PAIR, "chosen": []}, r"column 'chosen' has no message with content \(\[\]\); drop the row"),
        ({**PAIR, "chosen": [{"role": "user", "content": ""}]}, "column 'chosen' has no message with content"),
        ({**PAIR, "chosen": [{"content": "hi"}]}, "list of messages with 'role' and 'content'.*'hi'"),
        ({**PAIR, "prompt": [{"role": "user", "content": "q"}]}, "'prompt' is a list and 'chosen' a str; make both"),
        ({"chosen_ids": [], "rejected_ids": [1], "head": 0}, r"'chosen_ids' must be a non-empty list.*got \[\]"),
        ({"chosen_ids": [1.5], "rejected_ids": [1], "head": 0}, r"list of token ids, got \[1.5\]"),
        ({**PAIR, "head": "tiddy"}, r"'head' names the head 'tiddy'; use one of \['tidy', 'short'\].* 0 to 1"),
        ({**PAIR, "head": None}, r"column 'head' names the head None; use one of"),
        ({**PAIR, "head": 2}, r"column 'head' names the head 2; use one of .* 0 to 1"),
        ({**PAIR, "head": -1}, r"column 'head' names the head -1"),
        ({**PAIR, "head": True}, r"column 'head' names the head True"),
        ({**PAIR, "margin": float("nan")}, "margin is nan; it must be a finite number"),
        ({**PAIR, "margin": "1"}, "margin is '1'; it must be a finite number"),
        ({**PAIR, "weight": float("inf")}, "weight is inf; it must be a finite number"),
        ({**PAIR, "weight": -0.5}, "weight is -0.5; it must be 0 or more"),
        ({**PAIR, "tie": "yes"}, "column 'tie' is 'yes'; it must be true or false"),
        (
            {**ATTRIBUTES, "head_margins": {"tidy": float("nan")}},
            r"head_margins\['tidy'\] is nan; it must be a finite",
        ),
        ({**ATTRIBUTES, "head_margins": {"tiddy": 1.0}}, "'head_margins' names the head 'tiddy'; use one of"),
        ({**ATTRIBUTES, "head_margins": dict.fromkeys(HEADS)}, "every entry of 'head_margins' is null; give at least"),
        ({**ATTRIBUTES, "head_margins": [1.0, 2.0]}, r"'head_margins' is \[1.0, 2.0\]; it must map each head"),
        ({**ATTRIBUTES, "head": "tidy"}, "column 'head' is 'tidy' in a row with 'head_margins', which replaces it"),
        ({**ATTRIBUTES, "margin": 1.0}, "column 'margin' is 1.0 in a row with 'head_margins'"),
        (rated(tidy=[1.0, float("inf"), None]), r"ratings\['tidy'\]\[1\] is inf; it must be a finite number"),
        (rated(tidy=[1.0, 2.0]), r"ratings\['tidy'\] is \[1.0, 2.0\]; it must have one entry for each completion"),
        (rated(tiddy=[1.0, 2.0, 3.0]), "'ratings' names the head 'tiddy'; use one of"),
        (rated(tidy=[1.0, None, None]), "no head of 'ratings' rates two completions.*drop it"),
        ({**rated(), "ratings": None}, "column 'ratings' is None; it must map each head to a list"),
        ({**rated(tidy=[1.0]), "completions": ["x"]}, r"'completions' is \['x'\]; it must be a list of at least two"),
        ({**rated(tidy=[1.0, 2.0]), "completions": ["x", None]}, "column 'completion' must be a string"),
        (
            {**rated(tidy=[1.0, 2.0, 3.0]), "head": "tidy"},
            "'head' is 'tidy', but a row with 'completions' does not use",
        ),
        ({"text": "x", "head": None}, "column 'head' names the head None"),
        ({"text": "x", "head": "tidy", "weight": 2.0}, "'weight' is 2.0, but a row with 'text' does not use it; make"),
        ({"text": "x", "head": "tidy", "prompt": "q"}, "'prompt' is 'q', but a row with 'text' does not use it"),
    ],
)
def test_a_bad_row_is_refused_with_its_column_its_value_and_what_is_wanted(row, message):
    with pytest.raises(ValueError, match=message):
        parse_row(row, HEADS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "column 'tier' is None; name the tier of this negative"),
        ({"text": "x", "tier": 3}, "column 'tier' is 3; name the tier"),
        ({"text": "", "tier": "soft"}, "column 'text' is empty"),
        ({"text": "x", "tier": "soft", "heads": []}, r"column 'heads' is \[\]; give a list of head names, or null"),
        ({"text": "x", "tier": "soft", "heads": "tidy"}, "column 'heads' is 'tidy'; give a list of head names"),
        ({"text": "x", "tier": "soft", "heads": ["tiddy"]}, "column 'heads' names the head 'tiddy'; use one of"),
        ({"text": "x", "tier": "soft", "head": "tidy"}, "'head' is 'tidy', but a row with 'tier' does not use it"),
    ],
)
def test_a_bad_negative_is_refused_with_its_column_its_value_and_what_is_wanted(row, message):
    with pytest.raises(ValueError, match=message):
        parse_negative(row, HEADS)
