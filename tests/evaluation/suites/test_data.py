"""Rows of suites: found where they should be, read with errors in words, and drawn alike for every model."""

import gzip
import json
from pathlib import Path

import pytest

from alignkit.evaluation.suites.data import Source, load_rows, read_rows, take

FIELDS = {"question": str, "answer": str}
ROWS = [{"question": f"q{number}", "answer": f"a{number}"} for number in range(3)]
SOURCE = Source("sums", "test.jsonl")


def lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_limit_takes_items_in_their_order_and_the_same_every_time() -> None:
    taken = take(range(1000), 50)
    assert len(taken) == 50 and taken == sorted(set(taken)) == take(range(1000), 50)
    assert taken != take(range(1000), 50, seed=1) and taken != list(range(50))


def test_a_larger_limit_takes_what_a_smaller_one_takes() -> None:
    assert set(take(range(100), 10)) < set(take(range(100), 20))
    assert take("abc", None) == take("abc", 9) == ["a", "b", "c"]


def test_a_limit_below_one_and_no_items_are_errors() -> None:
    with pytest.raises(ValueError, match="limit=0 must be at least 1"):
        take("abc", 0)
    with pytest.raises(ValueError, match="no items"):
        take([], 3)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.csv.gz"])
def test_every_form_of_a_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    text = {"jsonl": lines(ROWS), "json": json.dumps(ROWS), "csv": "question,answer\nq0,a0\nq1,a1\nq2,a2\n"}
    content = text[name.removesuffix(".gz").rpartition(".")[2]].encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read_rows(path, FIELDS) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", lines(ROWS) + '{"question": "q3"}\n', r"a\.jsonl, line 4 has no 'answer'; it has question"),
        ("a.jsonl", '{"question": "q", "answer": 3}\n', r"line 1: answer is 3; it must be of type str"),
        ("a.jsonl", lines(ROWS) + "{broken\n", r"a\.jsonl, line 4 is no JSON"),
        ("a.jsonl", "[1]\n", r"line 1 holds \[1\] where an object with question, answer should be"),
        ("a.jsonl", "\n", "holds no rows"),
        ("a.json", '{"question": "q"}', "where a list of rows should be"),
        ("a.csv", "question,answer\nq0,a0,extra\n", r"a\.csv, line 2 has more cells than the header"),
        ("a.csv", "question,answer\nq0\n", r"a\.csv, line 2 has no 'answer'"),
        ("a.csv", 'question,answer\n"q0,a0\n', r"a\.csv, line \d is no CSV"),
        ("a.csv.gz", "no gzip", r"a\.csv\.gz is no whole gzip file"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x07", r"a\.csv\.gz is no whole gzip file"),
        ("a.txt", "text", "ends in none of .jsonl"),
        ("a.jsonl", b"\xff\xfe", "is no UTF-8 at byte 0"),
    ],
)
def test_a_wrong_file_is_an_error_with_file_line_and_field(
    name: str, content: str | bytes, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=complaint):
        read_rows(path, FIELDS)


def test_rows_come_from_a_file_a_folder_or_the_folder_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "test.jsonl").write_text(lines(ROWS))
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))
    for data in (folder / "test.jsonl", folder, None):
        assert load_rows(data, SOURCE, FIELDS) == ROWS


def test_data_that_is_not_there_is_an_error_that_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALIGNKIT_DATA", raising=False)
    with pytest.raises(ValueError, match=r"there is no sums/test\.jsonl; set ALIGNKIT_DATA"):
        load_rows(None, SOURCE, FIELDS)
    with pytest.raises(FileNotFoundError, match=r"test\.jsonl does not exist"):
        load_rows(tmp_path, SOURCE, FIELDS)
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="correct ALIGNKIT_DATA"):
        load_rows(None, SOURCE, FIELDS)


def test_a_hub_that_cannot_be_reached_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_DATA", "elsewhere")
    hub = {"path": "nobody/nothing-of-this-name", "split": "test"}
    with pytest.raises(OSError, match="nobody/nothing-of-this-name cannot be had from the hub") as error:
        load_rows(None, Source("sums", "test.jsonl", hub), FIELDS)
    assert "no sums/test.jsonl in ALIGNKIT_DATA=elsewhere" in str(error.value)
