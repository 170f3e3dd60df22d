"""The datasets of a training command: files, folders, columns, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from alignkit.command_line.config import DataArguments
from alignkit.command_line.data import load_splits, only_split, train_and_test
from alignkit.command_line.methods import METHODS

TEXTS = [{"text": "one"}, {"text": "two"}]


def rows_of(**arguments: Any) -> tuple[list[dict] | None, list[dict] | None]:
    """The rows to train and to evaluate on."""
    train, test = train_and_test(DataArguments(**arguments))
    return list(train), None if test is None else list(test)


def as_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "txt"])
def test_a_file_of_each_kind_gives_its_rows(tmp_path, suffix):
    path, dataset = str(tmp_path / f"data.{suffix}"), Dataset.from_list(TEXTS)
    if suffix == "txt":
        Path(path).write_text("one\ntwo\n")
    else:
        {"csv": dataset.to_csv, "parquet": dataset.to_parquet}.get(suffix, dataset.to_json)(path)
    assert rows_of(dataset_name=path) == (TEXTS, None)


def test_a_folder_that_datasets_saved_is_read_and_its_test_split_evaluated_on(tmp_path):
    train, test = Dataset.from_list(TEXTS), Dataset.from_list(TEXTS[:1])
    DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    train.save_to_disk(tmp_path / "one")
    assert rows_of(dataset_name=str(tmp_path / "both")) == (TEXTS, TEXTS[:1])
    swapped = {"dataset_train_split": "test", "dataset_test_split": "train"}
    assert rows_of(dataset_name=str(tmp_path / "both"), **swapped) == (TEXTS[:1], TEXTS)
    assert rows_of(dataset_name=str(tmp_path / "one")) == (TEXTS, None)


def test_the_set_to_evaluate_on_may_be_another_file(tmp_path):
    train, test = as_jsonl(tmp_path / "train.jsonl", TEXTS), as_jsonl(tmp_path / "test.jsonl", TEXTS[:1])
    assert rows_of(dataset_name=train, dataset_test_name=test) == (TEXTS, TEXTS[:1])


def test_columns_are_read_under_other_names_in_a_stream_too(tmp_path):
    path = as_jsonl(tmp_path / "data.jsonl", [{"question": "q", "good": "g"}])
    for streaming in (False, True):
        renamed = {"columns": {"prompt": "question", "chosen": "good"}, "dataset_streaming": streaming}
        assert rows_of(dataset_name=path, **renamed) == ([{"prompt": "q", "chosen": "g"}], None)


def test_two_columns_may_change_places(tmp_path):
    path = as_jsonl(tmp_path / "data.jsonl", [{"chosen": 1, "rejected": 2}])
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    assert rows_of(dataset_name=path, columns=swapped)[0] == [{"rejected": 1, "chosen": 2}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"columns": {"prompt": "txt"}},
            r"columns.prompt is 'txt', which is no column of the data; it has \['text', 'n'\]",
        ),
        ({"columns": {"text": "n"}}, "columns.text is 'n', but the data has a column 'text'"),
        ({"dataset_train_split": "trian"}, "has no split 'trian'; it has train"),
        ({"dataset_test_split": "test"}, "has no split 'test'; it has train"),
        ({"dataset_name": None}, "dataset_name is missing"),
    ],
)
def test_what_the_data_has_not_is_named(tmp_path, arguments, message):
    path = as_jsonl(tmp_path / "data.jsonl", [{"text": "one", "n": 1}])
    with pytest.raises(ValueError, match=message):
        rows_of(**{"dataset_name": path, **arguments})


def test_a_file_that_is_not_there_empty_or_no_json_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.jsonl in"):
        load_splits("nowhere.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}\n{"text":\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl cannot be read: .*JSON"):
        load_splits(str(tmp_path / "bad.jsonl"))
    for name, content in {"empty.csv": "text\n", "empty.jsonl": "", "blank.jsonl": "\n", "empty.json": "[]"}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=rf"{name} has no rows; give at least one"):
            rows_of(dataset_name=str(tmp_path / name))


def test_negatives_are_a_dataset_with_one_split(tmp_path):
    of_splits = DatasetDict(train=Dataset.from_list(TEXTS), test=Dataset.from_list(TEXTS))
    of_splits.save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match="both has the splits train, test; give a dataset with one"):
        only_split(str(tmp_path / "both"))
    path = as_jsonl(tmp_path / "negatives.jsonl", TEXTS)

    class Given:
        negatives, eval_negatives = path, None

    (negatives,) = METHODS["reward"].more(Given).values()
    assert list(negatives) == TEXTS


def test_a_reward_is_an_object_a_class_or_a_heuristic(files):
    class Given:
        reward_funcs = [f"{files / 'brief_rewards.py'}:brief", "alignkit.tasks.countdown:CountdownReward"]

    brief, countdown = METHODS["es"].more(Given)["reward_funcs"]
    Given.reward_funcs = ["LengthReward(shortest=2, longest=3)"]
    (length,) = METHODS["es"].more(Given)["reward_funcs"]
    assert (length.shortest, length.longest) == (2, 3)
    assert brief(["abc"]) == [-3.0] and type(countdown).__name__ == "CountdownReward"
    for names, message in [
        (None, "reward_funcs is missing"),
        (["nowhere.py:brief"], r"reward_funcs names the file nowhere\.py, and there is none"),
        ([f"{files / 'brief_rewards.py'}:breif"], "has no breif; it has brief"),
        (["LengthReward"], "reward_funcs: LengthReward: .*missing 2 required"),
        (["LengthReward(2, 3)"], "write values by name, such as"),
        (["LengthReward(shortest=open('x'), longest=3)"], "write values by name, such as"),
        (["LengthReward(shortest=2"], "write values by name, such as"),
        (["alignkit.tasks.countdown:answer_score(x=1)"], "answer_score is no class; leave the brackets out"),
        (["no_such_package.rewards:brief"], "reward_funcs names the module 'no_such_package.rewards'"),
    ]:
        Given.reward_funcs = names
        with pytest.raises(ValueError, match=message):
            METHODS["es"].more(Given)
