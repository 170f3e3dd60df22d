"""Rows that are cut, and rows without a label: counted and said, or an error that names the length that is needed."""

import logging
import re

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from alignkit.tasks.toy import byte_tokenizer
from tests.faults.rows import GOOD, four, make
from tests.kl_barrier.conftest import QUIET as QUIET_BARRIER
from tests.tiny_models import lively_lm


def test_rows_that_max_length_cuts_are_counted_and_said(tmp_path, caplog):
    rows = Dataset.from_dict(four("barrier", completion={1: " and yes" * 9}, prompt={3: "long " * 9}))
    trainer = make("barrier", tmp_path, rows, max_length=16)
    assert trainer.data_report["train"] == {"rows": 4, "longest": 77, "cut": 2, "dropped": 1, "needed": 5}
    assert len(trainer.train_dataset) == 3
    words = "train: 2 of 4 rows (50.0 %) are longer than max_length=16 and are cut, 1 of them are dropped because no"
    assert words in caplog.text and "the longest has 77 tokens" in caplog.text


@pytest.mark.parametrize(
    "more", [{}, {"max_length": 6}, {"packing": True}, {"packing": True, "packing_strategy": "bfd_split"}], ids=str
)
def test_what_is_counted_does_not_change_what_is_trained_on(tmp_path, more):
    rows = Dataset.from_dict(four("barrier", completion=["a", "bb" * 20, "c", "d" * 30]))
    settings = {"max_length": 12, "shuffle_dataset": True, **more}
    ours = make("barrier", tmp_path, rows, **settings).train_dataset
    theirs_only = {name: value for name, value in QUIET_BARRIER.items() if name != "pressure_steps"}
    args = SFTConfig(str(tmp_path), **{**theirs_only, **settings})
    theirs = SFTTrainer(lively_lm(1), args, train_dataset=rows, processing_class=byte_tokenizer()).train_dataset
    assert ours["input_ids"] == theirs["input_ids"] and ours["labels"] == theirs["labels"]


def test_a_max_length_that_leaves_no_label_names_the_one_that_is_needed(tmp_path):
    rows = Dataset.from_dict(four("barrier"))
    words = "none of the 4 rows of train has a labelled token within max_length=3; raise it to 5 at least, and to 9 to"
    with pytest.raises(ValueError, match=words):
        make("barrier", tmp_path, rows, max_length=3)


def test_rows_without_a_label_are_refused_as_a_whole(tmp_path):
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 4, "labels": [[-100] * 3] * 4})
    with pytest.raises(ValueError, match="no token of the 4 rows of train has a label, so there is nothing to learn"):
        make("barrier", tmp_path, rows)


def test_pairs_that_max_length_cuts_are_counted_and_said(tmp_path, caplog):
    rows = Dataset.from_dict(four("dpo", chosen={1: " and yes" * 9}))
    make("dpo", tmp_path, rows, max_length=16)
    assert (
        "1 of 4 pairs of the train dataset (25.0 %) are cut to max_length=16 and max_prompt_length=None" in caplog.text
    )


@pytest.mark.parametrize("method", ["barrier", "dpo"])
def test_a_tokenizer_without_a_pad_token_of_its_own_trains_alike_and_keeps_the_end_in_the_labels(tmp_path, method):
    columns = four(method, **{next(reversed(GOOD[method])): [" a", " bcd", " efghijk", " l"]})
    losses = []
    for pad in ("<pad>", "<eos>", None):
        tokenizer = byte_tokenizer()
        tokenizer.pad_token = pad
        trainer = make(method, tmp_path, Dataset.from_dict(columns), tokenizer=tokenizer)
        if method == "barrier":
            assert {row["labels"][-1] for row in trainer.train_dataset} == {tokenizer.eos_token_id}
        trainer.train()
        losses.append(trainer.state.log_history[0]["grad_norm"])
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)


def test_nothing_here_warns_of_its_own(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        for method in GOOD:
            make(method, tmp_path, Dataset.from_dict(four(method)))
    assert not re.findall("are cut|not counted|no chat_template", caplog.text)
