"""Token ids are looked at by columns, whatever kind of list Arrow keeps them in."""

import pytest
from datasets import Dataset, Features, LargeList, List, Value

from alignkit.row_checks import check_token_ids, check_tokenised
from alignkit.tasks.toy import byte_tokenizer, tiny_causal_lm

KINDS = {"list": List(Value("int32")), "large": LargeList(Value("int64")), "fixed": List(Value("int64"), length=2)}


def of_kind(kind: str, rows: list[list[int]]) -> Dataset:
    return Dataset.from_dict({"input_ids": rows}, features=Features({"input_ids": KINDS[kind]}))


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_are_found_in_every_kind_of_list(kind):
    rows = [[1, 2], [3, 2**20], [2**20, 4]]
    check_tokenised(of_kind(kind, rows), "input_ids", "train")
    with pytest.raises(ValueError, match=rf"train row 1: token {2**20} .* has no embedding"):
        check_token_ids(of_kind(kind, rows), ["input_ids"], tiny_causal_lm(), byte_tokenizer(), "train")
    check_token_ids(of_kind(kind, rows[:1]), ["input_ids"], tiny_causal_lm(), byte_tokenizer(), "train")
