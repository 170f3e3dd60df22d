"""A batch is TRL's where nothing is cut; what is added to it agrees with it; bad pairs are found by columns."""

import logging
import random
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from trl.trainer.dpo_trainer import DataCollatorForPreference

from alignkit.dpo.collator import PairCollator, cut_to_completions
from alignkit.dpo.pairs import check_pairs, pair_keys
from alignkit.row_cache import row_key

PAD = 99


def random_pairs(n: int, seed: int, longest: int = 12, shortest_prompt: int = 1) -> list[dict]:
    numbers = random.Random(seed)

    def ids(shortest: int) -> list[int]:
        return [numbers.randrange(90) for _ in range(numbers.randint(shortest, longest))]

    return [{"prompt_ids": ids(shortest_prompt), "chosen_ids": ids(1), "rejected_ids": ids(1)} for _ in range(n)]


def assert_same_tensors(ours: dict, theirs: dict) -> None:
    assert list(theirs) == ["input_ids", "attention_mask", "completion_mask"]
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor)


@pytest.mark.parametrize("multiple", [None, 8])
def test_where_nothing_is_cut_the_tensors_are_those_of_trl(multiple):
    for seed in range(30):
        rows = random_pairs(1 + seed % 5, seed, shortest_prompt=seed % 2)
        theirs = DataCollatorForPreference(PAD, pad_to_multiple_of=multiple)(rows)
        for limits in ({}, {"max_length": 24, "max_prompt_length": 12}):
            batch = PairCollator(PAD, pad_to_multiple_of=multiple, **limits)(rows)
            assert_same_tensors(batch, theirs)
            assert set(batch) == {*theirs, "n_cut"} and not batch["n_cut"].any()


def test_where_only_completions_are_cut_the_tensors_are_those_of_trl_too():
    for seed in range(30):
        rows = [row for row in random_pairs(6, seed) if len(row["prompt_ids"]) < 8]
        if rows:
            theirs = DataCollatorForPreference(PAD, max_length=8, truncation_mode="keep_start")(rows)
            assert_same_tensors(PairCollator(PAD, max_length=8)(rows), theirs)


def test_cut_tokens_are_counted_by_prompt_and_completions_of_each_pair():
    rows = [
        {"prompt_ids": [1, 2, 3, 4], "chosen_ids": [5, 6, 7, 8], "rejected_ids": [9, 10, 11]},
        {"prompt_ids": [1], "chosen_ids": [5], "rejected_ids": [9]},
    ]
    batch = PairCollator(PAD, max_length=4, max_prompt_length=2)(rows)
    assert batch["n_cut"].tolist() == [[2, 3], [0, 0]]
    assert batch["input_ids"].tolist() == [[3, 4, 5, 6], [1, 5, PAD, PAD], [3, 4, 9, 10], [1, 9, PAD, PAD]]
    batch = PairCollator(PAD, max_length=4, max_prompt_length=2, prompt_truncation="keep_start")(rows)
    assert batch["input_ids"][:, :2].tolist() == [[1, 2], [1, 5], [1, 2], [1, 9]]


def test_a_column_of_betas_becomes_a_float32_vector():
    rows = [row | {"beta": beta} for row, beta in zip(random_pairs(2, 0), (0.1, 3), strict=True)]
    beta = PairCollator(PAD)(rows)["beta"]
    assert beta.dtype == torch.float32 and torch.equal(beta, torch.tensor([0.1, 3.0]))


def test_a_key_is_made_of_the_tokens_that_are_left_and_of_where_the_completion_starts():
    rows = [
        {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]},
        {"prompt_ids": [0, 2, 3], "chosen_ids": [4], "rejected_ids": [6, 7]},
        {"prompt_ids": [2], "chosen_ids": [3, 4], "rejected_ids": [3]},
    ]
    keys = PairCollator(PAD, max_length=3, max_prompt_length=2, with_keys=True)(rows)["row_keys"]
    assert keys[:3] == [row_key([2, 3], [4]), row_key([2, 3], [4]), row_key([2], [3, 4])]
    assert keys[3:] == [row_key([2, 3], [6]), row_key([2, 3], [6]), row_key([2], [3])]


def test_keys_by_columns_are_the_keys_of_the_batches_also_in_a_filtered_and_shuffled_dataset():
    dataset = Dataset.from_list(random_pairs(40, 1, shortest_prompt=0)).shuffle(seed=3)
    dataset = dataset.filter(lambda row: row["prompt_ids"][:1] != [7])
    limits = {"max_length": 9, "max_prompt_length": 4, "prompt_truncation": "keep_start"}
    batch = PairCollator(PAD, with_keys=True, **limits)(list(dataset))
    keys, n_tokens = pair_keys(dataset, **limits)
    assert [chosen for chosen, _ in keys] + [rejected for _, rejected in keys] == batch["row_keys"]
    lengths = batch["attention_mask"].sum(1).view(2, -1).amax(0)
    assert n_tokens.tolist() == lengths.tolist()


def test_packed_rows_hold_every_row_and_their_index_starts_at_the_last_prompt_token():
    for seed in range(10):
        rows = random_pairs(4, seed, longest=40)
        batch = PairCollator(PAD, share_prefix=True)(rows)
        packed = batch["packed"]
        if packed is None:
            continue
        first = batch["completion_mask"].argmax(1) - 1
        n_returned = batch["attention_mask"].sum(1) - first
        assert packed.index.shape == (8, 1 + int(batch["completion_mask"].sum(1).max()))
        for row, (start, count) in enumerate(zip(first.tolist(), n_returned.tolist(), strict=True)):
            found = packed.input_ids.flatten()[packed.index[row, :count]]
            assert torch.equal(found, batch["input_ids"][row, start : start + count])


def shared_pairs() -> list[dict]:
    """Long prompts, so that sharing pays."""
    rows = random_pairs(3, 5, longest=6)
    return [row | {"prompt_ids": [*range(50), *row["prompt_ids"]]} for row in rows]


def test_a_prompt_without_tokens_is_not_shared():
    rows = shared_pairs()
    assert PairCollator(PAD, share_prefix=True)(rows)["packed"] is not None
    assert PairCollator(PAD, share_prefix=True)([*rows, rows[0] | {"prompt_ids": []}])["packed"] is None


def test_a_cut_batch_is_the_last_prompt_token_and_the_completion_and_counts_all_tokens():
    rows = [
        {"prompt_ids": [*range(60), 1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]},
        {"prompt_ids": [*range(60), 7], "chosen_ids": [8], "rejected_ids": [9, 10, 11]},
    ]
    batch = PairCollator(PAD, share_prefix=True)(rows)
    cut = cut_to_completions(batch)
    assert cut["completion_mask"].tolist() == [[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]]
    assert cut["attention_mask"].tolist() == [[63, 1, 1, 0], [61, 1, 0, 0], [63, 1, 0, 0], [61, 1, 1, 1]]
    labels = cut["input_ids"].masked_fill(cut["completion_mask"] == 0, -100)
    assert labels[:, 1:].tolist() == [[4, 5, -100], [8, -100, -100], [6, -100, -100], [9, 10, 11]]
    assert cut["input_ids"][:, 0].tolist() == [3, 7, 3, 7]
    assert cut["attention_mask"].sum() == batch["attention_mask"].sum()
    assert cut["packed"] is batch["packed"] and cut["n_cut"] is batch["n_cut"]


def test_limits_and_empty_completions_are_refused_by_the_collator():
    with pytest.raises(ValueError, match="max_prompt_length is 9"):
        PairCollator(PAD, max_length=9, max_prompt_length=9)
    with pytest.raises(ValueError, match="rejected completion after the prompt of 1 tokens"):
        PairCollator(PAD)([{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": []}])


def good_pairs(n: int = 5) -> list[dict]:
    return [{"prompt_ids": [1, 2], "chosen_ids": [3, row], "rejected_ids": [4, row]} for row in range(n)]


def test_good_pairs_pass(caplog):
    check_pairs(Dataset.from_list([row | {"beta": 1} for row in good_pairs()]), "train dataset")
    assert not caplog.records
    check_pairs(Dataset.from_list(good_pairs()), "train dataset", max_length=3, max_prompt_length=2)
    assert "are cut to max_length=3" in caplog.text and "differ only" not in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected_ids": []}, "the rejected completion in row 3 of the train dataset has no tokens"),
        ({"chosen_ids": None}, "the chosen completion in row 3 of the train dataset has no tokens"),
        ({"rejected_ids": [3, 3]}, "row 3 of the train dataset has the same tokens as chosen and as rejected"),
        ({"prompt_ids": [], "chosen_ids": [5]}, "chosen completion in row 3 of the train dataset is one token after"),
    ],
)
def test_a_pair_without_a_preference_is_refused_with_its_row(change, message, monkeypatch):
    rows = good_pairs()
    rows[3] |= change
    for rows_per_chunk in (2, 10_000):
        monkeypatch.setattr("alignkit.dpo.pairs.ROWS_PER_CHUNK", rows_per_chunk)
        with pytest.raises(ValueError, match=message):
            check_pairs(Dataset.from_list(rows), "train dataset")
    rows = [rows[3], *rows]
    with pytest.raises(ValueError, match="row 1 of"):
        check_pairs(Dataset.from_list(rows).select(range(1, 6)).select([0, 3, 1]), "train dataset")


def test_pairs_that_differ_only_where_they_are_cut_are_counted_in_a_warning(caplog):
    rows = good_pairs()
    for row in (2, 4):
        rows[row] |= {"chosen_ids": [7, 8, 9, 1], "rejected_ids": [7, 8, 9, 2, 3]}
    caplog.set_level(logging.WARNING)
    check_pairs(Dataset.from_list(rows), "eval dataset", max_length=6, max_prompt_length=2)
    assert "differ only" not in caplog.text
    check_pairs(Dataset.from_list(rows), "eval dataset", max_length=5, max_prompt_length=2)
    assert (
        "2 of 5 pairs of the eval dataset, the first of them row 2, differ only in tokens that are cut" in caplog.text
    )
    assert "raise max_length, which is 5" in caplog.text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "row 2 of the train dataset has no beta"),
        (0.0, "beta in row 2 of the train dataset is 0.0; give every row a finite number above 0"),
        (-0.1, "beta in row 2 of the train dataset is -0.1"),
        (float("nan"), "beta in row 2 of the train dataset is nan"),
        (float("inf"), "beta in row 2 of the train dataset is inf"),
        (1e-60, "beta in row 2 of the train dataset is 1e-60"),
        (1e60, r"beta in row 2 of the train dataset is 1e\+60"),
    ],
)
def test_a_beta_that_is_missing_or_not_a_positive_number_is_refused_with_its_row(value, message):
    betas = [0.1, 0.2, value, 0.3, value]
    rows = [row | {"beta": beta} for row, beta in zip(good_pairs(), betas, strict=True)]
    with pytest.raises(ValueError, match=message):
        check_pairs(Dataset.from_list(rows), "train dataset")


@pytest.mark.parametrize(("value", "shown"), [("0.1", "'0.1'"), (True, "True"), ([0.1], r"\[0.1\]")])
def test_a_beta_that_is_no_number_is_refused(value, shown):
    rows = [row | {"beta": value} for row in good_pairs()]
    with pytest.raises(ValueError, match=f"beta in row 0 of the train dataset is {shown}, which is not a number"):
        check_pairs(Dataset.from_list(rows), "train dataset")


def test_a_column_without_any_beta_is_refused():
    rows = [row | {"beta": None} for row in good_pairs()]
    with pytest.raises(ValueError, match="row 0 of the train dataset has no beta"):
        check_pairs(Dataset.from_list(rows), "train dataset")


def test_a_hundred_thousand_pairs_are_checked_in_less_than_a_second():
    numbers = np.random.default_rng(0)

    def lists(shortest: int, longest: int) -> pa.Array:
        offsets = np.cumsum([0, *numbers.integers(shortest, longest + 1, 100_000)])
        return pa.LargeListArray.from_arrays(offsets, numbers.integers(0, 1000, offsets[-1]))

    columns = {"prompt_ids": lists(50, 100), "chosen_ids": lists(10, 50), "rejected_ids": lists(10, 50)}
    dataset = Dataset(pa.table(columns | {"beta": pa.array(np.full(100_000, 0.1))}))
    start_s = time.process_time()
    check_pairs(dataset, "train dataset", max_length=100, max_prompt_length=80)
    assert time.process_time() - start_s < 1
