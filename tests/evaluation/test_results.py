"""Results on disk: nothing is lost, cut or accepted that is wrong."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.evaluation.results import Result, append_result, failed_result, origin, read_results
from tests.evaluation.records import ORIGIN, baseline, result

APPEND_MANY = """
import sys
from alignkit.evaluation.results import append_result
from tests.evaluation.records import result
for number in range(int(sys.argv[3])):
    append_result(sys.argv[1], result(f"{sys.argv[2]}-{number}", items={str(i): 0.5 for i in range(50)}))
"""

FILL_THE_DISK = """
import resource, sys
from alignkit.evaluation.results import append_result
from tests.evaluation.records import result
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    append_result(sys.argv[1], result("long", items={str(i): 0.5 for i in range(1000)}))
except OSError as error:
    print(error)
"""

# Writes half a line under the lock, as a writer that is killed midway has.
WRITE_HALF = """
import sys, time
from alignkit.evaluation import whole_lines
from alignkit.evaluation.results import append_result
from tests.evaluation.records import result
import os
def half(descriptor, content):
    os.write(descriptor, content[: len(content) // 2])
    print("half", flush=True)
    time.sleep(60)
whole_lines._write_all = half
append_result(sys.argv[1], result("killed"))
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def test_a_result_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    written = [
        baseline(3, decoding={"do_sample": True, "temperature": 0.2, "seed": 3}),
        result(config={"beta": 0.02, "lora_targets": ["q_proj", "ü\u2028"]}, history=[{"step": 1, "loss": 0.7}]),
        result("summary", mean=0.489, n=1668),
        failed_result(run="dead", error="CUDA out of memory", config={"beta": 1}, seed=0, wall_time_s=3.0, **ORIGIN),
    ]
    for one in written:
        append_result(path, one)
    assert read_results(path) == written
    assert read_results([path, path]) == written * 2
    assert [one.summary for one in written] == [False, False, True, True]


def test_mean_and_n_are_those_of_the_items() -> None:
    assert (result().mean, result().n) == (2 / 3, 3)
    with pytest.raises(ValueError, match=r"mean is 0\.5, but that of the items is 0\.666"):
        result(items={"a": 1, "b": 1, "c": 0}, mean=0.5)


def test_the_origin_names_versions_and_device() -> None:
    here = origin(torch.device("cpu"))
    assert here["versions"]["torch"] == torch.__version__
    assert here["device"].startswith("cpu, ")
    assert here["commit"] is None or len(here["commit"].removesuffix("-dirty")) == 40


def test_two_processes_that_append_at_once_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with start(APPEND_MANY, str(path), "left", "200") as left, start(APPEND_MANY, str(path), "right", "200") as right:
        pass
    assert (left.returncode, right.returncode) == (0, 0)
    runs = [one.run for one in read_results(path)]
    assert sorted(runs) == sorted(f"{name}-{number}" for name in ("left", "right") for number in range(200))
    assert [run for run in runs if run.startswith("left")] == [f"left-{number}" for number in range(200)]


def test_a_file_whose_writer_was_killed_is_readable_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, result("first"))
    with start(WRITE_HALF, str(path)) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "half\n"
        writer.send_signal(signal.SIGKILL)
    with caplog.at_level(logging.WARNING):
        assert [one.run for one in read_results(path)] == ["first"]
    assert f"{path}: left out its last line" in caplog.text
    append_result(path, result("second"))
    assert [one.run for one in read_results(path)] == ["first", "second"]
    assert "removed a last line of" in caplog.text
    assert len(path.read_bytes().splitlines()) == 2


def test_a_writer_waits_for_the_lock_of_another(tmp_path: Path) -> None:
    import fcntl

    path = tmp_path / "results.jsonl"
    append_result(path, result("first"))
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with start(APPEND_MANY, str(path), "late", "1") as writer:
            time.sleep(0.5)
            assert writer.poll() is None
            assert len(path.read_bytes().splitlines()) == 1
            fcntl.flock(file, fcntl.LOCK_UN)
    assert writer.returncode == 0
    assert [one.run for one in read_results(path)] == ["first", "late-0"]


def test_a_last_line_without_a_line_break_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, result("first"))
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    append_result(path, result("second"))
    assert [one.run for one in read_results(path)] == ["first", "second"]


def test_a_file_of_something_else_is_never_cut(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes")
    with pytest.raises(ValueError, match=r"notes\.txt ends in b'my notes', which is no line of this kind"):
        append_result(path, result())
    assert path.read_text() == "my notes"


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, result("first"))
    before = path.read_bytes()
    with start(FILL_THE_DISK, str(path)) as writer:
        printed, _ = writer.communicate()
    assert str(path) in printed and "no line was added" in printed
    assert path.read_bytes() == before


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_is_refused_in_words(score: float) -> None:
    with pytest.raises(ValueError, match=rf"the score of 'b' in tatqa_dev of beta0\.02 is {score}.*finite"):
        result(items={"a": 1.0, "b": score})
    with pytest.raises(ValueError, match=r"mean is .*finite"):
        result(mean=score, n=3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kind": "base"}, "kind is 'base'; it must be one of run, baseline"),
        ({"items": {}}, "no items"),
        ({"items": {3: 1.0}}, "the item id 3"),
        ({"items": {"a": 1.5}}, "a of tatqa_dev is 1.5, and a proportion lies from 0 to 1"),
        ({"mean": None}, "neither items nor mean and n"),
        ({"mean": 43.5, "n": 1668}, "divide percent by 100"),
        ({"mean": 0.4, "n": 0}, "n is 0"),
        ({"metric": ""}, "metric is empty"),
        ({"seed": "3"}, "seed is '3'; it must be of type int"),
        ({"error": "late"}, "in a run that finished"),
        ({"status": "failed"}, "failed without an error"),
        ({"status": "failed", "error": "late"}, "has scores"),
        ({"train_loss": float("nan")}, "train_loss is nan"),
        ({"items": {"a": None}}, "the score of 'a' in tatqa_dev of beta0.02 is None; it must be a finite number"),
        ({"items": {"a": 10**400}, "unit": ""}, "it must be a finite number, at most 1e+300"),
        ({"items": {"a": 1.7e308, "b": 1.7e308}, "unit": ""}, "it must be a finite number, at most 1e+300"),
        ({"mean": [0.5]}, "mean is [0.5]; it must be a finite number"),
        ({"history": ["loss 2.0"]}, "history holds 'loss 2.0'; it must be a list of rows"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError) as error:
        result(**changes)
    assert complaint in str(error.value)


def test_a_config_that_is_no_json_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with pytest.raises(ValueError, match=r"config of beta0\.02 is no JSON"):
        append_result(path, result(config={"output_dir": tmp_path}))
    assert not path.exists()


def test_a_history_keeps_that_a_loss_was_no_number(tmp_path: Path) -> None:
    append_result(tmp_path / "results.jsonl", result(history=[{"step": 1, "loss": float("nan")}]))
    assert read_results(tmp_path / "results.jsonl")[0].history == [{"step": 1, "loss": None}]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda line: line.replace('"metric"', '"metrik"'), "unknown field 'metrik', did you mean 'metric'?"),
        (lambda line: line.replace('"seed": 0, ', ""), "it lacks seed"),
        (lambda line: line.replace('"a": 1.0', '"a": NaN'), "the score of 'a' in tatqa_dev of beta0.02 is nan"),
        (lambda line: line[:100], "it is damaged"),
        (lambda line: "[1, 2]", "it holds [1, 2]"),
        (lambda line: "", "it is damaged"),
    ],
)
def test_a_wrong_line_is_named_with_its_file_and_number(tmp_path: Path, change: Any, complaint: str) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, result())
    line = path.read_text().removesuffix("\n")
    path.write_text(f"{line}\n{change(line)}\n{line}\n")
    with pytest.raises(ValueError) as error:
        read_results(path)
    assert str(error.value).startswith(f"{path}, line 2: {complaint}")


def test_a_file_without_results_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").touch()
    with pytest.raises(ValueError, match="holds no results"):
        read_results(tmp_path / "results.jsonl")
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        read_results(tmp_path / "none.jsonl")


def test_every_line_begins_as_the_repair_expects(tmp_path: Path) -> None:
    append_result(tmp_path / "results.jsonl", result())
    assert json.loads((tmp_path / "results.jsonl").read_text()).keys() == {
        field.name for field in dataclasses.fields(Result)
    }
    assert (tmp_path / "results.jsonl").read_text().startswith('{"run": ')
    assert os.access(tmp_path / "results.jsonl", os.W_OK)
