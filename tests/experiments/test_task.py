"""The object that a specification names."""

from pathlib import Path

import pytest
from datasets import Dataset

from alignkit.experiments.data import load_datasets, materialise, rows_digest
from alignkit.experiments.task import datasets_of, load_task
from tests.experiments.tiny_task import TinyTask

TINY = Path(__file__).parent / "tiny_task.py"


def test_a_task_is_an_object_of_a_file_or_of_a_module(tmp_path):
    (tmp_path / "beside.py").write_text("LIMIT = 3\n")
    (tmp_path / "own_task.py").write_text(TINY.read_text() + "\nfrom beside import LIMIT\ntask.limit = LIMIT\n")
    assert load_task(f"{tmp_path}/own_task.py:task").limit == 3
    assert isinstance(load_task("tests.experiments.tiny_task:task"), TinyTask)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("examples/none.py:task", "task names the file examples/none.py, and there is none in /"),
        ("no_such_package.tasks:task", "task names the module 'no_such_package.tasks', and there is none"),
        ("tests.experiments.tiny_task:tusk", "tests.experiments.tiny_task has no tusk; it has task"),
        ("tests.experiments.tiny_task:TinyTask", "it must be an object with methods train_dataset, eval_dataset"),
        ("tests.experiments.tiny_task:os", "it must be an object with methods"),
        ("tests.experiments.tiny_task", "write file.py:name or package.module:name"),
        ("a.py:", "write file.py:name"),
    ],
)
def test_a_reference_that_leads_nowhere_is_named(reference, message):
    with pytest.raises(ValueError) as error:
        load_task(reference)
    assert message in str(error.value)


class Given(TinyTask):
    def __init__(self, train, held_out):
        self.train, self.held_out = train, held_out

    def train_dataset(self, tokenizer):
        return self.train

    def eval_dataset(self, tokenizer):
        return self.held_out


PAIRS = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])


def test_held_out_sets_may_be_none_one_or_several(tmp_path):
    assert list(datasets_of(Given(PAIRS, None), None)) == ["train"]
    assert list(datasets_of(Given(PAIRS, PAIRS), None)) == ["train", "eval"]
    several = datasets_of(Given(PAIRS, {"a": PAIRS, "b": PAIRS}), None)
    materialise(several, tmp_path / "cache")
    assert {name: data[:] for name, data in load_datasets(tmp_path / "cache").items()} == {
        name: PAIRS[:] for name in ("train", "eval/a", "eval/b")
    }


@pytest.mark.parametrize(
    ("train", "held_out", "message"),
    [
        ([{"prompt": "a"}], None, "the task's train set is .*; it must be a datasets.Dataset"),
        (PAIRS.remove_columns("rejected"), None, "the task's train set lacks the column 'rejected'; it has"),
        (PAIRS.select([]), None, "the task's train set has no rows"),
        (PAIRS, {"dev": PAIRS.select([])}, "the task's eval/dev set has no rows"),
    ],
)
def test_data_that_nothing_can_be_trained_on_is_named(train, held_out, message):
    with pytest.raises(ValueError, match=message):
        datasets_of(Given(train, held_out), None)


def test_the_digest_of_rows_depends_on_what_they_hold_and_on_their_order():
    rows = [{"prompt": "a", "chosen": str(number), "rejected": "c"} for number in range(4)]
    data = Dataset.from_list(rows)
    assert rows_digest(Dataset.from_list(rows + rows).select(range(4))) == rows_digest(data)
    assert rows_digest(data.select([1, 0, 2, 3])) != rows_digest(data) != rows_digest(data.select(range(3)))


def test_a_folder_that_was_left_half_written_is_written_again(tmp_path):
    (tmp_path / "cache" / "train").mkdir(parents=True)
    materialise({"train": PAIRS}, tmp_path / "cache")
    assert load_datasets(tmp_path / "cache")["train"][:] == PAIRS[:]
