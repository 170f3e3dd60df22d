"""Rows that no trainer can learn from: one line that names split, row, column and value, before the first step."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from alignkit.cli import main
from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer, tiny_causal_lm
from tests.faults.rows import GOOD, Row, four, make, stream

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
def test_a_bad_row_of_an_evaluation_set_is_named_by_the_sets_name(refused, method):
    column = next(reversed(GOOD[method]))
    rows, good = Dataset.from_dict(four(method, **{column: {3: None}})), Dataset.from_dict(four(method))
    refused(method, good, "eval", "row 3: ", column, eval_dataset=rows)
    refused(method, good, "hard", "row 3: ", column, eval_dataset={"easy": good, "hard": rows})


@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_a_bad_row_of_a_streamed_evaluation_set_is_named_when_it_is_read(tmp_path, method):
    column = next(reversed(GOOD[method]))
    sets = {"hard": stream(four(method, **{column: {2: "a\ud800b"}}))}
    trainer = make(method, tmp_path, Dataset.from_dict(four(method)), eval_dataset=sets)
    with pytest.raises(ValueError, match=rf"^hard row 2: {column} has '.ud800' at character 1"):
        trainer.evaluate()


COMMAND = {"reward": ["--head_names", "tidy"], "es": ["--reward_funcs", "LengthReward(shortest=1,longest=9)"]}


@pytest.mark.parametrize("method", GOOD)
def test_a_command_names_a_bad_row_of_a_file_and_leaves_no_folder(tmp_path, monkeypatch, capsys, method):
    monkeypatch.chdir(tmp_path)
    for part in (tiny_causal_lm(), byte_tokenizer()):
        part.save_pretrained("model")
    column = next(reversed(GOOD[method]))
    Dataset.from_dict(four(method)).to_json("good.jsonl")
    Dataset.from_dict(four(method, **{column: {2: None}})).to_json("bad.jsonl")
    command = [method, "--model_name_or_path", "model", "--output_dir", "out", *COMMAND.get(method, [])]
    capsys.readouterr()
    for split, train, test in (("train", "bad", "good"), ("eval", "good", "bad")):
        assert main([*command, "--dataset_name", f"{train}.jsonl", "--dataset_test_name", f"{test}.jsonl"]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alignkit")]
        assert len(lines) == 1 and split in lines[0] and " row 2: " in lines[0] and column in lines[0]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "good.jsonl", "model"]


# ---- Token ids ----

NO_IDS = {"null": None, "empty": [], "text": "abc", "texts": ["a"], "number": 7}


@pytest.mark.parametrize("kind", NO_IDS)
def test_what_is_no_list_of_token_ids_is_named(refused, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("alignkit.row_checks.ROWS_PER_CHUNK", 2)
    value = NO_IDS[kind]
    if kind in ("null", "empty"):
        ids, words = [[65, 66], [66], value, [67]], f"train row 2: column 'input_ids' is {value}; drop the row"
    else:
        ids, words = [value] * 4, "train: column 'input_ids' holds "
    refused("barrier", Dataset.from_dict({"input_ids": ids}), words)
    trainer = make("barrier", tmp_path, stream({"input_ids": [[65, 66], value]}))
    with pytest.raises(ValueError, match=r"^train row 1: column 'input_ids' is .*; give it a list of token ids"):
        trainer.train()


def test_a_token_below_zero_is_named(refused):
    ids = [[65, 66], [66, -5]]
    refused("barrier", Dataset.from_dict({"input_ids": ids}), "train row 1: -5 is no token, of which the first is 0")
    rows = {"chosen_ids": ids, "rejected_ids": [[67]] * 2}
    refused("reward", Dataset.from_dict(rows), "train row 1: -5 is no token")
    rows = {"chosen_ids": [[True, False]], "rejected_ids": [[67]]}
    refused(
        "reward", Dataset.from_dict(rows), "train row 0: column 'chosen_ids' must be a non-empty list of token ids"
    )


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
    rows = Dataset.from_dict(four(method))
    no_rows = rows.select([])
    words = "{}_dataset has no rows" if method == "es" else "the {} dataset is empty; give it at least one row"
    refused(method, no_rows, words.format("train"))
    refused(method, rows, words.format("eval"), eval_dataset=no_rows)
    refused(method, rows, "hard", "rows" if method == "es" else "is empty", eval_dataset={"hard": no_rows})


@pytest.mark.parametrize("method", ["barrier", "dpo"])
def test_a_stream_without_rows_is_refused(refused, method):
    no_rows = IterableDataset.from_generator(lambda: iter(()))
    refused(method, no_rows, "the train stream is empty")
    refused(method, stream(four(method)), "the hard stream is empty", eval_dataset={"hard": no_rows})


def test_evolution_strategies_refuse_a_stream(refused):
    refused(
        "es", stream(four("es")), "train_dataset is a IterableDataset without a length; steps cycle through a known"
    )


@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_fewer_rows_than_a_batch_train_unless_they_would_be_dropped(refused, tmp_path, method):
    rows, size = Dataset.from_dict(four(method)), {"per_device_train_batch_size": 8}
    words = "train has 4 rows, a batch takes 8 and dataloader_drop_last=True drops what is smaller: no step would be"
    refused(method, rows, words, **size, dataloader_drop_last=True)
    trainer = make(method, tmp_path, rows, **size)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("method", GOOD)
def test_tokens_of_another_models_tokenizer_are_named(refused, monkeypatch, method):
    monkeypatch.setattr("alignkit.row_checks.ROWS_PER_CHUNK", 2)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["new"])
    rows = Dataset.from_dict(four(method, prompt={2: "a new one"}))
    words = "row 2: token 259 ('new') has no embedding, of which the model has 259 and the tokenizer 260"
    refused(method, rows, f"{NAME.get(method, 'train')} {words}", tokenizer=tokenizer)
