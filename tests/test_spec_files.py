"""YAML files: what is written is read as it was, and a value becomes what its field holds, or is refused."""

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from alignkit import spec_files
from alignkit.spec_files import (
    check_number,
    construct,
    field_names,
    fitted,
    fitted_value,
    known_mapping,
    of_file_or_flag,
    read_spec_file,
    read_value,
    required,
    to_yaml,
)


@pytest.mark.parametrize("text", ["\x85", "a\u2028b", "\u2029", "a\rb", "a\r\nb", "5e-5", "yes", " a", "- a", "#", ""])
def test_a_text_comes_back_whatever_breaks_its_lines_or_looks_like_something_else(tmp_path, text):
    path = tmp_path / "spec.yaml"
    path.write_text(to_yaml({"key": text, f"x{text}": [text]}), encoding="utf-8", newline="")
    assert read_spec_file(path, lambda content: content) == {"key": text, f"x{text}": [text]}


@pytest.mark.parametrize("text", ["5e-5", "+5E-5", ".5e-4", "50.e-6", "0.00005"])
def test_a_number_with_an_exponent_is_a_number(text):
    assert read_value(text) == 5e-5


def test_a_file_keeps_its_order_and_writes_plain_texts_as_they_are():
    assert to_yaml({"b": "é c", "a": "d\u2028e"}) == 'b: é c\na: "d\\Le"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: !!int " + "x" * 50, f"line 2: {'x' * 40!r} cannot be read: invalid literal for int()"),
        ('"\\ud800"', "line 1: '\\ud800' cannot be read: half of a surrogate pair"),
        ("a: 1\n[b]: 2\n", "line 2: a key is a list or a mapping; write a word"),
        ("a: 1\nb: 2\na: 3\n", "line 3: a is given twice; remove one of them"),
        ("a: 1\nb: &b [*b]\n", "line 2: an anchor holds an alias of itself; write the values out"),
    ],
)
def test_what_has_no_one_meaning_is_refused_with_its_line_and_the_file(tmp_path, text, words):
    path = tmp_path / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    for read, start in ((lambda: read_value(text), ""), (lambda: read_spec_file(path, dict), f"{path}: ")):
        with pytest.raises(ValueError) as caught:
            read()
        assert str(caught.value).startswith(start + words)


@pytest.mark.parametrize(
    ("text", "value_words", "file_words"),
    [
        ("a: [", "'a: [' is no YAML: while parsing", " is no YAML: while parsing"),
        ("[" * 3000, f"'{'[' * 59} ... is nested too deeply", " is nested too deeply"),
    ],
)
def test_what_is_no_yaml_or_too_deep_is_called_so(tmp_path, text, value_words, file_words):
    path = tmp_path / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    for read, words in ((lambda: read_value(text), value_words), (lambda: read_spec_file(path, dict), file_words)):
        with pytest.raises(ValueError) as caught:
            read()
        assert str(caught.value).removeprefix(str(path)).startswith(words)


# ---- Values of fields ----


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "hint", "found"),
    [
        (3, float, 3.0),
        (3, int | float, 3),
        (True, bool, True),
        (None, int | None, None),
        ([1, 2], list[int], [1, 2]),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, 2], list[int] | tuple[int, ...], [1, 2]),
        ([], set[str] | None, ()),
        ([1, "a"], list, [1, "a"]),
        ([1, "a"], list[int | str], [1, "a"]),
        ("a", Any, "a"),
        ({"a": 1}, dict[str, Any], {"a": 1}),
        ({"a": 1}, Mapping[str, Any], {"a": 1}),
        ("b", Literal["a", "b"], "b"),
        ("red", Colour, "red"),
    ],
)
def test_a_value_becomes_what_its_field_holds(value, hint, found):
    fitted = fitted_value(value, hint, "x")
    assert fitted == found and type(fitted) is type(found)


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        (2.5, int, "x is 2.5; it must be a whole number"),
        (True, int, "x is True; it must be a whole number"),
        (True, float, "x is True; it must be a number"),
        (1, bool, "x is 1; it must be true or false"),
        (1, str | None, "x is 1; it must be a text"),
        (1.5, int | str, "x is 1.5; it must be a whole number or a text"),
        ([1.5], list[int | str], "x is [1.5]; it must be a list"),
        ("c", Literal["a", "b"], "x is 'c'; it must be one of ['a', 'b']"),
        ([1, "a"], list[int], "it must be a list"),
        ("ab", list[str], "x is 'ab'; it must be a list"),
        ([], dict[str, int], "it must be keys with values"),
        (1, Literal["a", 1.0], "x is 1; it must be one of ['a', 1.0]"),
        ("blue", Colour, "it must be one of ['red']"),
        ("a", Path, "x is 'a'; it must be a <class"),
        (10**400, float, "x has more than 300 digits; give a smaller number"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_it_must_be(value, hint, words):
    with pytest.raises(ValueError) as caught:
        fitted_value(value, hint, "x")
    assert words in str(caught.value)


@dataclasses.dataclass
class Run:
    rate: float
    layers: tuple[int, ...] = ()
    steps: int = dataclasses.field(default=0, init=False)


def test_values_become_what_the_fields_of_a_class_hold_and_a_wrong_one_is_called_by_its_place():
    assert field_names(Run) == ["rate", "layers"]
    assert field_names(Run, left_out=["rate"]) == ["layers"]
    values = fitted(Run, {"rate": 1, "layers": [2, 3]}, "run")
    assert values == {"rate": 1.0, "layers": (2, 3)} and type(values["rate"]) is float
    assert construct(Run, "run", values) == Run(1.0, (2, 3))
    with pytest.raises(ValueError, match=r"^run\.rate is 'a'; it must be a number$"):
        fitted(Run, {"rate": "a"}, "run")
    with pytest.raises(ValueError, match=r"^run: .*missing 1 required positional argument: 'rate'$"):
        construct(Run, "run", {})


def test_a_number_need_not_be_whole_unless_it_must():
    check_number("x", 2.5)
    check_number("x", 2, whole=True)
    with pytest.raises(ValueError, match=r"x is 2\.5; it must be a whole number"):
        check_number("x", 2.5, whole=True)


# ---- Keys ----


def test_a_key_is_called_by_its_place_and_answered_with_the_nearest():
    assert known_mapping(None, "sft", ["beta"]) == {}
    assert known_mapping({"beta": 1}, "sft", ["seed", "beta"]) == {"beta": 1}
    for value, where, words in (
        (None, "", "the file holds None where keys with values should be"),
        ([1], "sft", "sft holds [1] where keys with values should be"),
        ({"bta": 1}, "", "bta is no known key; the nearest is 'beta'"),
        ({"bta": 1}, "sft", "sft.bta is no known key; the nearest is 'beta'"),
        ({"": 1}, "", "'' is no known key; the nearest is "),
    ):
        with pytest.raises(ValueError) as caught:
            known_mapping(value, where, ["seed", "beta"])
        assert str(caught.value).startswith(words)


def test_the_first_key_without_a_value_is_named():
    required({"a": 0, "b": ""}, ["a", "b"], "a run")
    with pytest.raises(ValueError, match=r"^b is missing; a run needs a, b, c$"):
        required({"a": 0, "b": None}, ["a", "b", "c"], "a run")


def test_an_error_in_values_of_a_file_and_of_flags_names_the_file_where_there_is_one():
    for path, words in ((None, "^x is 1$"), ("a.yaml", "^a.yaml, or a flag: x is 1$")):
        with pytest.raises(ValueError, match=words), of_file_or_flag(path):
            raise ValueError("x is 1")


def test_aliases_are_counted_as_often_as_they_stand_up_to_the_most(monkeypatch):
    text = "a: &a [x, y]\nb: [*a, *a]\n"  # 1 + a: 1 + 3, b: 1 + 1 + 2 · 3
    monkeypatch.setattr(spec_files, "MOST_NODES", 13)
    assert read_value(text) == {"a": ["x", "y"], "b": [["x", "y"], ["x", "y"]]}
    monkeypatch.setattr(spec_files, "MOST_NODES", 12)
    with pytest.raises(ValueError, match="line 1: aliases make 13 values of it, and 12 are the most"):
        read_value(text)
