"""Rows that no trainer can learn from: one line that names split, row, column and value, before the first step."""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from alignkit import (
    ESLoRAConfig,
    ESLoRATrainer,
    KLBarrierConfig,
    KLBarrierTrainer,
    MultiHeadRewardConfig,
    MultiHeadRewardTrainer,
    ScheduledDPOConfig,
    ScheduledDPOTrainer,
)
from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer, tiny_sequence_classifier
from tests.dpo.conftest import QUIET as QUIET_DPO
from tests.es_lora.conftest import QUIET as QUIET_ES
from tests.es_lora.conftest import mean_code
from tests.kl_barrier.conftest import QUIET as QUIET_BARRIER
from tests.reward_model.conftest import QUIET as QUIET_REWARD
from tests.tiny_models import lively_lm

Row = dict[str, Any]
GOOD: dict[str, Row] = {
    "reward": {"prompt": "Say", "chosen": " yes", "rejected": " no"},
    "barrier": {"prompt": "Say", "completion": " yes"},
    "dpo": {"prompt": "Say", "chosen": " yes", "rejected": " no"},
    "es": {"prompt": "Say"},
}
ANSWERS = [
    ("reward", "chosen"),
    ("reward", "rejected"),
    ("barrier", "completion"),
    ("dpo", "chosen"),
    ("dpo", "rejected"),
]
COLUMNS = [*ANSWERS, ("barrier", "prompt"), ("dpo", "prompt"), ("es", "prompt")]
"""Columns of texts; a reward model takes a row without a prompt."""
NAME = {"es": "train_dataset"}
"""How messages call the training set, where that is not `train`."""
WITH_GRADIENTS = ["reward", "barrier", "dpo"]


def make(
    method: str, folder: Any, rows: Any, *, tokenizer: Any = None, eval_dataset: Any = None, **settings: Any
) -> Trainer:
    """A trainer of a tiny model for one step."""
    given: dict[str, Any] = {"train_dataset": rows, "processing_class": tokenizer or byte_tokenizer()}
    given["eval_dataset"] = eval_dataset
    if method == "reward":
        args: Any = MultiHeadRewardConfig(
            str(folder), head_names=["tidy"], **{**QUIET_REWARD, "max_steps": 1, **settings}
        )
        return MultiHeadRewardTrainer(tiny_sequence_classifier(["tidy"]), args, **given)
    if method == "barrier":
        args = KLBarrierConfig(str(folder), **{**QUIET_BARRIER, "max_steps": 1, **settings})
        return KLBarrierTrainer(lively_lm(1), args, **given)
    if method == "dpo":
        args = ScheduledDPOConfig(str(folder), **{**QUIET_DPO, "kl_steps": 0, "max_steps": 1, **settings})
        return ScheduledDPOTrainer(lively_lm(1), args=args, **given)
    args = ESLoRAConfig(str(folder), **{**QUIET_ES, "max_steps": 1, **settings})
    return ESLoRATrainer(lively_lm(1), mean_code, args, **given)


def four(method: str, **changes: Mapping[int, Any] | Sequence[Any]) -> dict[str, list[Any]]:
    """Columns of four good rows, with other values in some rows of a column, or in all."""
    columns = {name: [value] * 4 for name, value in GOOD[method].items()}
    for name, values in changes.items():
        columns[name] = (
            [values.get(n, columns[name][n]) for n in range(4)] if isinstance(values, Mapping) else list(values)
        )
    return columns


def stream(columns: Mapping[str, Sequence[Any]]) -> IterableDataset:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.fixture
def refused(tmp_path) -> Callable[..., None]:
    """Assert that a trainer is not made, by one line that has all the words, and that nothing is written."""

    def check(method: str, rows: Any, *words: str, **settings: Any) -> None:
        with pytest.raises(ValueError) as caught:
            make(method, tmp_path / "out", rows, **settings)
        message = str(caught.value)
        assert "\n" not in message and len(message) < 400
        assert all(word in message for word in words), message
        assert not list(tmp_path.rglob("*.*"))  # the Trainer makes an empty folder

    return check


# ---- Values ----

NO_TEXT = {
    "int": 7,
    "nan": math.nan,
    "bool": True,
    "bytes": b"a",
    "nested": [["a"]],
    "dict": {"x": "a"},
    "words": ["a"],
}


@pytest.mark.parametrize("kind", ["int", *(pytest.param(kind, marks=pytest.mark.slow) for kind in [*NO_TEXT][1:])])
@pytest.mark.parametrize(("method", "column"), COLUMNS)
def test_a_column_that_holds_no_texts_is_named(refused, method, column, kind):
    rows = Dataset.from_dict(four(method, **{column: [NO_TEXT[kind]] * 4}))
    refused(method, rows, f"{NAME.get(method, 'train')} row 0: ", column, f"{NO_TEXT[kind]!r}")


@pytest.mark.parametrize(("method", "column"), COLUMNS)
def test_a_text_that_is_missing_is_named_by_its_row(refused, method, column):
    rows = Dataset.from_dict(four(method, **{column: {2: None}}))
    refused(method, rows, f"{NAME.get(method, 'train')} row 2: ", column, "None")


@pytest.mark.parametrize("text", ["", " \n\t"])
@pytest.mark.parametrize(("method", "column"), ANSWERS)
def test_an_answer_of_nothing_but_blanks_is_named_by_its_row(refused, method, column, text):
    rows = Dataset.from_dict(four(method, **{column: {2: text}}))
    refused(method, rows, f"train row 2: column '{column}' is empty ({text!r}); drop the row or give it a text")


@pytest.mark.parametrize("method", GOOD)
def test_an_empty_prompt_is_no_fault(method, tmp_path):
    make(method, tmp_path, Dataset.from_dict(four(method, prompt={2: ""})))


@pytest.mark.parametrize(("method", "column"), [pair for pair in COLUMNS if pair[0] != "es"])
@pytest.mark.parametrize("value", [pytest.param(None, marks=pytest.mark.slow), "a\ud800b"])
def test_a_bad_text_of_a_stream_is_named_when_it_is_read(tmp_path, method, column, value):
    trainer = make(method, tmp_path, stream(four(method, **{column: {2: value}})))
    with pytest.raises(
        ValueError, match=rf"^train row 2: .*{column}.*({value}|ud800' at character 1, half of a surr)"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_half_a_surrogate_pair_in_a_list_of_rows_is_named(refused):
    rows = [{"prompt": "Say"}, {"prompt": "x\udfff"}]
    refused("es", rows, "train_dataset row 1: prompt has '\\udfff' at character 1, half of a surrogate pair")


@pytest.mark.parametrize(("method", "column"), ANSWERS)
def test_a_column_that_is_missing_is_named_with_those_that_are_there(refused, method, column):
    columns = four(method)
    columns["answer"] = columns.pop(column)
    refused(method, Dataset.from_dict(columns), "train row 0: ", f"'{column}'")


def test_a_barrier_names_the_formats_it_takes(refused):
    words = (
        "only the columns ['question']; give it 'text' (dataset_text_field), 'messages', or 'prompt' and 'completion'"
    )
    refused("barrier", Dataset.from_dict({"question": ["a"]}), f"train row 0: the row has {words}")


@pytest.mark.parametrize("method", GOOD)
def test_a_bad_row_of_the_evaluation_set_is_named_as_one(refused, method):
    column = next(reversed(GOOD[method]))
    rows = Dataset.from_dict(four(method, **{column: {3: None}}))
    refused(method, Dataset.from_dict(four(method)), "eval", "row 3: ", column, eval_dataset=rows)


# ---- Chat messages ----

STRICT = "{% for message in messages %}{% if message.role not in ['user', 'assistant'] %}"
STRICT += "{{ raise_exception('who is ' + message.role) }}{% endif %}{{ message.content }}{% endfor %}"


def said(role: str, content: Any = "hello") -> list[Row]:
    return [{"role": role, "content": content}]


def talks(method: str, **changes: Any) -> Dataset:
    columns = {name: said("user" if name == "prompt" else "assistant", name) for name in GOOD[method]}
    rows = [columns, columns, columns | changes]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in columns})


@pytest.mark.parametrize("method", GOOD)
@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (said("usre"), "the role of prompt[0] is 'usre'; the nearest role is 'user'"),
        (said("User "), "the role of prompt[0] is 'User '; the nearest role is 'user'"),
        (said(""), "the role of prompt[0] is ''; name who speaks"),
        (said("user", None), "prompt[0] has no content"),
        (said("narrator"), "the chat template refuses the messages: who is narrator"),
    ],
    ids=["misspelt", "capital", "no-role", "no-content", "unknown"],
)
def test_a_message_that_cannot_be_is_named_by_its_row(refused, method, prompt, words):
    tokenizer = byte_tokenizer(chat_template=STRICT)
    refused(method, talks(method, prompt=prompt), f"{NAME.get(method, 'train')} row 2: {words}", tokenizer=tokenizer)


@pytest.mark.parametrize(("method", "column"), [pair for pair in ANSWERS if pair[0] != "reward"])
def test_an_answer_that_the_assistant_does_not_give_is_named(refused, method, column):
    words = f"train row 2: column '{column}' has no message of the role 'assistant', only of ['user']"
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    refused(method, talks(method, **{column: said("user")}), words, tokenizer=tokenizer)


@pytest.mark.parametrize("method", GOOD)
def test_messages_for_a_tokenizer_without_a_template_are_refused(refused, method):
    refused(method, talks(method), NAME.get(method, "train"), "chat messages", "no chat_template; set one")


# ---- Data sets ----


@pytest.mark.parametrize("method", GOOD)
def test_a_data_set_without_rows_is_refused(refused, method):
    words = "train_dataset has no rows" if method == "es" else "the train dataset is empty; give it at least one row"
    refused(method, Dataset.from_dict(four(method)).select([]), words)


@pytest.mark.parametrize("method", ["barrier", "dpo"])
def test_a_stream_without_rows_is_refused(refused, method):
    refused(method, IterableDataset.from_generator(lambda: iter(())), "the train stream is empty")


@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_fewer_rows_than_a_batch_train_unless_they_would_be_dropped(refused, tmp_path, method):
    rows, size = Dataset.from_dict(four(method)), {"per_device_train_batch_size": 8}
    words = "train has 4 rows, a batch takes 8 and dataloader_drop_last=True drops what is smaller: no step would be"
    refused(method, rows, words, **size, dataloader_drop_last=True)
    trainer = make(method, tmp_path, rows, **size)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("method", GOOD)
def test_tokens_of_another_models_tokenizer_are_named(refused, method):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["new"])
    rows = Dataset.from_dict(four(method, prompt={2: "a new one"}))
    words = "row 2: token 259 ('new') has no embedding, of which the model has 259 and the tokenizer 260"
    refused(method, rows, f"{NAME.get(method, 'train')} {words}", tokenizer=tokenizer)


# ---- Lengths and labels ----


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


def test_a_max_length_that_leaves_no_label_names_the_one_that_is_needed(refused):
    rows = Dataset.from_dict(four("barrier"))
    words = "none of the 4 rows of train has a labelled token within max_length=3; raise it to 5 at least, and to 9 to"
    refused("barrier", rows, words, max_length=3)


def test_rows_without_a_label_are_refused_as_a_whole(refused):
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 4, "labels": [[-100] * 3] * 4})
    refused("barrier", rows, "no token of the 4 rows of train has a label, so there is nothing to learn from")


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
