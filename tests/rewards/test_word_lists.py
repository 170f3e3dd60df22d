"""Which words are found in a text, and how lists are read."""

import copy
import pickle
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.rewards.word_lists import WordList, as_word_list, fold, read_word_list

WORDS = WordList({"darn": 0.5, "heck": 1.0, "what the heck": 0.25, "son of a gun": 0.5, "d!rn": 1.0, "🖕": 1.0})


def found(text: str, words: WordList = WORDS) -> list[str]:
    return [match.entry for match in words.find(text)]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "darn",
            "Darn!",
            "(DARN)",
            "oh,darn;no",
            "*darn*",
            "_darn_",
            '"darn"',
            "darn\n",
            "re-darn",
            "darn's",
            "dârn",
        ),
        *("da\u200brn", "da\x00rn", "ｄａｒｎ", "daaaaarn", "DARRRRN", "dar\u0336n\u0336", "𝐝𝐚𝐫𝐧"),
    ],
)
def test_a_word_is_found_whatever_surrounds_or_disguises_it(text: str) -> None:
    assert found(text) == ["darn"]


@pytest.mark.parametrize(
    "text", ["", "darning", "undarn", "darn2", "2darn", "daarn", "d a r n", "dar n", "dern", "d@rn"]
)
def test_a_word_is_not_found_inside_another_nor_guessed(text: str) -> None:
    assert found(text) == []


def test_of_entries_that_begin_together_the_longest_counts_alone() -> None:
    assert found("what the heck, heck") == ["what the heck", "heck"]
    assert found("what the hecks") == []


@pytest.mark.parametrize("text", ["Son of a gun", "son-of-a-gun", "son  of\na gun", "son–of\u00a0a gun"])
def test_a_phrase_is_found_across_any_blanks_and_dashes(text: str) -> None:
    assert found(text) == ["son of a gun"]


def test_a_phrase_is_not_found_across_other_punctuation() -> None:
    assert found("my son. Of a gun") == []


def test_an_entry_may_hold_signs_and_an_emoji_needs_no_gap() -> None:
    assert found("d!rn you🖕you") == ["d!rn", "🖕"]
    assert found("A$$! a$$et", WordList({"a$$": 1.0})) == ["a$$"]


def test_a_mild_entry_hides_a_severe_one_unless_it_is_left_out() -> None:
    assert found("what the heck") == ["what the heck"]
    assert found("what the heck", WORDS.at_least(0.5)) == ["heck"]
    assert len(WORDS.at_least(0.25)) == len(WORDS)
    with pytest.raises(ValueError, match=r"min_severity=1\.5 leaves no entry"):
        WORDS.at_least(1.5)


def test_a_list_with_a_long_phrase_survives_pickle_and_copy() -> None:
    words = WordList({"darn it " * 500: 0.5})
    for copied in (pickle.loads(pickle.dumps(words)), copy.deepcopy(words)):
        assert copied.find("darn it " * 500) == words.find("darn it " * 500) != []


def test_an_entry_that_comes_twice_is_found_twice() -> None:
    assert found("darn darn") == ["darn", "darn"]


def test_a_letter_three_times_stands_for_one_or_two_of_it_and_two_for_two_alone() -> None:
    words = WordList({"boob": 1.0, "ass": 1.0, "zzz": 0.5})
    assert found("booooob asssss zzz zzzz", words) == ["boob", "ass", "zzz"]
    assert found("bob as zz", words) == []


def test_of_entries_that_a_long_run_may_stand_for_the_severer_counts() -> None:
    for severities in ({"bob": 1.0, "boob": 0.5}, {"bob": 0.5, "boob": 1.0}):
        (match,) = WordList(severities).find("boooob")
        assert match.severity == 1.0


def test_the_german_sharp_s_is_not_two_letters() -> None:
    assert found("Er aß viel.", WordList({"ass": 1.0})) == []


def test_of_entries_that_fold_alike_the_severer_counts() -> None:
    (match,) = WordList({"Darn": 0.25, "darn": 1.0, "DARN": 0.5}).find("darn")
    assert match == ("darn", 1.0)


@given(st.text(st.characters()), st.text(st.characters()))
@settings(max_examples=200, deadline=None)
def test_a_word_between_blanks_is_found_in_any_text(before: str, after: str) -> None:
    assert "heck" in [entry.split()[-1] for entry in found(f"{before} heck {after}")]


@given(st.text(st.characters(codec=None, exclude_categories=())))
@settings(max_examples=200, deadline=None)
def test_folding_twice_changes_nothing_more(text: str) -> None:
    # Lower-casing and compatibility forms may uncover each other once: entries are folded as often as texts are.
    assert fold(fold(fold(text))) == fold(fold(text))


@pytest.mark.parametrize("text", ["a\u0301\u0316" * 250_000, "darn " * 100_000, "d" * 10**6, "! " * 500_000])
def test_a_million_characters_take_seconds(text: str) -> None:
    start = time.process_time()
    WORDS.find(text)
    assert time.process_time() - start < 10


def test_a_plain_list_has_an_entry_on_each_line(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("\ufeffdarn\r\n\r\n  what the heck \n", encoding="utf-8")
    assert read_word_list(tmp_path / "list").severities == {"darn": 1.0, "what the heck": 1.0}


def test_a_table_has_ratings_out_of_three_and_may_quote(tmp_path: Path) -> None:
    (tmp_path / "list").write_text('text,kind,severity_rating\n"darn, it",x,1.5\nheck,,3\nheck,,1\n', encoding="utf-8")
    assert read_word_list(tmp_path / "list").severities == {"darn, it": 0.5, "heck": 1.0}


def test_a_folder_gives_its_graded_list_before_its_plain_one(tmp_path: Path) -> None:
    (tmp_path / "en").write_text("darn\n")
    assert list(read_word_list(tmp_path).severities) == ["darn"]
    (tmp_path / "profanity_en.csv").write_text("text,severity_rating\nheck,1.5\n")
    assert read_word_list(tmp_path).severities == {"heck": 0.5}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "holds no words"),
        (b"\n \n", "holds no words"),
        (b"darn\n\xff\n", r"list, line 2: no UTF-8 text"),
        ("darn\n\u200b\n".encode(), r"list, line 2: .* no character that shows"),
        (b"text,rating\ndarn,1\n", "line 1: .* no severity_rating"),
        (b"text,severity_rating\ndarn,mild\n", "line 2: severity_rating is 'mild'"),
        (b"text,severity_rating\ndarn,1\nheck,4\n", "line 3: severity_rating is '4'"),
        (b"text,severity_rating\ndarn,nan\n", "line 2: severity_rating is 'nan'"),
        (b"text,severity_rating\ndarn\n", "line 2: severity_rating is ''"),
        (b"text,severity_rating\n,1\n", "line 2: the text '' is blank"),
        (b'text,severity_rating\n"darn,1\n', "line 2: .*quote"),
        (b'text,"severity_rating\ndarn,1\n', "list, line 2: .*quote"),
    ],
)
def test_a_bad_list_is_an_error_with_file_and_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        read_word_list(tmp_path / "list")


def test_without_a_list_the_error_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNKIT_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="give words or a path, or set ALIGNKIT_DATA"):
        read_word_list()
    with pytest.raises(FileNotFoundError, match=r"profanity_en\.csv nor en"):
        read_word_list(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_word_list(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [({}, "is empty"), ({"a": 0.0}, "severity of 'a'"), ({"a": 1.5}, "severity of 'a'"), ({" ": 1.0}, "blank")],
)
def test_bad_severities_are_errors(words: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        WordList(words)


def test_one_string_is_refused_as_it_could_be_a_word_or_a_file() -> None:
    with pytest.raises(TypeError, match="list of words, or a"):
        as_word_list("darn")  # type: ignore[arg-type]


def test_the_real_lists_are_read_and_find_each_of_their_entries(data_dir: Path) -> None:
    folder = data_dir / "toxic_word_lists"
    graded, plain = read_word_list(folder), read_word_list(folder / "en")
    assert (len(graded), len(plain)) == (1598, 403)
    assert {round(3 * severity, 1) for severity in graded.severities.values()} == {x / 5 for x in range(5, 16)}
    for words in (graded, plain):
        assert [entry for entry in words.severities if not words.find(f"So, {entry}?")] == []
