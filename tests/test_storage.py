"""Files that are whole or absent: what stands in them byte for byte, and errors that name the file and the line."""

import hashlib
import math
from pickle import UnpicklingError

import pytest

from alignkit.storage import (
    digest,
    read_json,
    read_lines,
    refused_pickles_named,
    whole_folder,
    write_json,
    write_lines,
    write_text,
)


def test_an_object_is_indented_by_two_with_its_letters_as_they_are(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"é": [1], "half": "\ud800"})
    assert path.read_bytes() == '{\n  "é": [\n    1\n  ],\n  "half": "\\ud800"\n}\n'.encode()
    assert read_json(path) == {"é": [1], "half": "\ud800"}


def test_lines_hold_one_object_each(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_lines(path, [{"a": 1, "b": "ü"}, {}])
    assert path.read_bytes() == '{"a": 1, "b": "ü"}\n{}\n'.encode()
    assert read_lines(path) == [{"a": 1, "b": "ü"}, {}]


def test_nothing_but_the_file_is_left(tmp_path):
    write_text(tmp_path / "a", "first")
    write_text(tmp_path / "a", "é")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == "é".encode()


def test_what_json_has_not_is_an_error_that_names_the_file_and_shows_the_beginning_of_the_value(tmp_path):
    path = tmp_path / "value"
    with pytest.raises(ValueError, match=rf"^{path} cannot hold {{'x': nan}}: Out of range float"):
        write_json(path, {"x": math.nan})
    with pytest.raises(ValueError, match=rf"^{path} cannot hold .{{200}}: Out of range float"):
        write_lines(path, [{}, {"x" * 300: math.inf}])
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"{", " is damaged: Expecting property name"),
        (b"[" * 100_000, " is damaged: maximum recursion depth"),
        (b"[1, 2]", r" holds \[1, 2\] where a JSON object should be"),
        (b"{}\xff", " is no UTF-8 at byte 2"),
    ],
)
def test_no_object_in_a_file_is_an_error_that_names_it(tmp_path, text, complaint):
    path = tmp_path / "value.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f"^{path}{complaint}"):
        read_json(path)


@pytest.mark.parametrize(("line", "complaint"), [("{", "is damaged"), ("1" * 50, f"holds {'1' * 40} where")])
def test_a_bad_line_is_named_by_its_number(tmp_path, line, complaint):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "line\u2028separator"}\n' + line + "\n")
    with pytest.raises(ValueError, match=f"^{path}, line 2 {complaint}"):
        read_lines(path)


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path):
    folder = tmp_path / "runs" / "folder"
    with pytest.raises(ZeroDivisionError), whole_folder(folder) as partial:
        (partial / "half").touch()
        _ = 1 / 0
    assert partial == tmp_path / "runs" / "folder.partial" and not folder.exists()
    with whole_folder(folder) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "whole").write_text("x")
        assert not folder.exists()
    assert [path.name for path in folder.iterdir()] == ["sub"] and not partial.exists()
    with (
        pytest.raises(FileExistsError, match=f"^{folder} exists already; remove it to make it again"),
        whole_folder(folder),
    ):
        pytest.fail("the block ran")


def test_a_refused_pickle_is_named_with_the_files_it_may_be_in(tmp_path):
    for name in ("b.bin", "a.bin", "c.txt"):
        (tmp_path / name).touch()
    for names, found in ((("*.bin", "*.txt"), ("a.bin", "b.bin", "c.txt")), (("*.pt",), ("",))):
        stated = " or ".join(str(tmp_path / name) for name in found)
        with (
            pytest.raises(ValueError, match=f"^{stated} is refused: it holds more than tensors"),
            refused_pickles_named(tmp_path, *names),
        ):
            raise UnpicklingError
    with refused_pickles_named(None, "*"):
        pass


def test_the_digest_is_sha_256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert digest(tmp_path / "a").startswith("ba7816bf8f01cfea")
