"""Lists of words and phrases to look for in a text, each with a severity.

How this differs from splitting at blanks and looking the pieces up, as simple toxicity rewards do:

1. A word is found whatever punctuation touches it, and phrases are found; of entries that overlap the one that begins
   first counts, and of those that begin together the longest.
2. Both sides are folded alike: case, accents, full-width and other compatibility forms, typographic quotes, dashes,
   runs of white space, and characters that do not show.
3. A letter repeated three times or more also stands for one or two of it. Nothing else is guessed: spellings such as
   `5h1t` are found where the list has them, because guessing finds them in innocent texts as well.
"""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = "toxic_word_lists"
"""Folder of the word lists below the one that ALIGNKIT_DATA names."""
FILES = ("profanity_en.csv", "en")
"""What is read from a folder: the first of these that it holds, the graded list before the plain one."""
HIGHEST_RATING = 3.0
"""Of `severity_rating` in a CSV."""

_NOT_SHOWN = {"Mn", "Me", "Cf"}  # combining marks, and format characters such as the zero-width space
_SPACES = re.compile(r"\s+")
_LONG_RUN = re.compile(r"([^\W\d_])\1{2,}")
_CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if not chr(code).isspace()]
_SAME = str.maketrans(dict.fromkeys("‘’ʼ`´", "'") | dict.fromkeys("-‐‑‒–—", " ") | dict.fromkeys(_CONTROLS))
_END: Any = None  # key of a node under which its entry is


class Match(NamedTuple):
    """An entry that was found, as it is in the list, and its severity."""

    entry: str
    severity: float


class WordList:
    """Words and phrases with severities, ready to be searched for.

    A search takes time proportional to the length of the text, however many entries there are.

    Args:
        severities (`Mapping[str, float]`): severity in (0, 1] of each entry. Where two entries are the same once
            folded, the higher one counts.

    Raises:
        ValueError: no entry, one that is blank or no string, or a severity outside (0, 1].
    """

    def __init__(self, severities: Mapping[str, float]):
        if not severities:
            raise ValueError("a word list is empty; give at least one word")
        self._root: dict[str, Any] = {}
        self.severities: dict[str, float] = {}
        for entry, severity in severities.items():
            if not isinstance(entry, str) or not fold(entry):
                raise ValueError(f"the entry {entry!r:.60} of a word list is blank or no string; leave it out")
            if not isinstance(severity, int | float) or not 0 < severity <= 1:
                raise ValueError(f"the severity of {entry!r:.60} is {severity!r}; it must lie above 0, at most 1")
            self.severities[entry] = float(severity)
            node = self._root
            for character in fold(entry):
                node = node.setdefault(character, {})
            if _END not in node or node[_END].severity < severity:
                node[_END] = Match(entry, float(severity))
        self._starts = re.compile("[" + "".join(map(re.escape, self._root)) + "]")

    def __repr__(self) -> str:
        return f"<WordList of {len(self)} entries>"

    def __reduce__(self) -> tuple[Any, ...]:
        return WordList, (self.severities,)  # the nodes of a long phrase are too deep for pickle and copy

    def __len__(self) -> int:
        return len(self.severities)

    def at_least(self, min_severity: float) -> "WordList":
        """The list of the entries of at least that severity; a milder one then hides none of them.

        Raises:
            ValueError: there is no such entry.
        """
        severities = {entry: severity for entry, severity in self.severities.items() if severity >= min_severity}
        if not severities:
            raise ValueError(f"min_severity={min_severity} leaves no entry of the word list; lower it")
        return WordList(severities)

    def find(self, text: str) -> list[Match]:
        """Entries in the text from left to right, without overlaps, one that comes twice as often as it comes.

        An entry counts where no letter or digit touches it. An edge that is neither letter, digit nor ASCII sign (an
        emoji) needs no such gap.
        """
        text = fold(text)
        runs = {run.start(): run.end() for run in _LONG_RUN.finditer(text)}
        found = []
        position = 0
        while start := self._starts.search(text, position):
            position = start.end()
            if is_separate(text, start.start() - 1, start.start()):
                end, match = self._longest(text, start.start(), runs)
                if match is not None:
                    found.append(match)
                    position = end
        return found

    def _longest(self, text: str, position: int, runs: Mapping[int, int]) -> tuple[int, Match | None]:
        """End and entry of the longest match that begins at the position; of equally long ones the severest."""
        end, match = position, None
        nodes = [self._root]
        while nodes and position < len(text):
            next_position = runs.get(position, position + 1)
            nodes = _steps(nodes, text[position], next_position - position)
            position = next_position
            here = [node[_END] for node in nodes if _END in node]
            if here and is_separate(text, position, position - 1):
                end, match = position, max(here, key=lambda entry: entry.severity)
        return end, match


def _steps(nodes: list[dict[str, Any]], character: str, length: int) -> list[dict[str, Any]]:
    """Nodes after a run of a character: as long as it is, or of length 1 or 2 where it is 3 or longer."""
    reached = []
    for node in nodes:
        for step in range(1, length + 1):
            if character not in node:
                break
            node = node[character]
            if step <= 2 or step == length:
                reached.append(node)
    return reached


def is_separate(text: str, outside: int, edge: int) -> bool:
    """Whether what has its edge at one place of a folded text may end there, seen from the place beside it."""
    if not 0 <= outside < len(text) or not text[outside].isalnum():
        return True
    return not text[edge].isalnum() and not text[edge].isascii()


def fold(text: str) -> str:
    """The form in which texts and entries are compared, see the head of this module."""
    if not text.isascii():
        # Marks go first: the time of normalisation grows with the square of how many stand in a row.
        text = "".join(character for character in text if unicodedata.category(character) not in _NOT_SHOWN)
        text = unicodedata.normalize("NFKD", text)
        text = "".join(character for character in text if unicodedata.category(character) not in _NOT_SHOWN)
    # Not casefold, which makes "ss" of the German "ß", and so an insult of an innocent word.
    return _SPACES.sub(" ", text.lower().translate(_SAME)).strip()


def read_word_list(path: str | Path | None = None) -> WordList:
    """Read a word list from a file; the format is recognised by the content.

    A plain list has one entry on each line; every severity is 1. A CSV has a header with the columns `text` and
    `severity_rating`, from above 0 to 3; the severity is a third of it. Other columns are not read. Blank lines are
    skipped.

    Args:
        path: the file, or a folder with `profanity_en.csv` or `en`. By default `$ALIGNKIT_DATA/toxic_word_lists`.

    Raises:
        FileNotFoundError: no such file, no list in the folder, or ALIGNKIT_DATA is not set.
        ValueError: a file that is not UTF-8, or a line that cannot be read; the message has file and line.
    """
    file = _file(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{file}, line {number}: no UTF-8 text ({error.reason}); save the file as UTF-8") from error
    is_table = text.partition("\n")[0].strip().startswith("text,")
    severities = _read_table(file, text) if is_table else _read_lines(file, text)
    if not severities:
        raise ValueError(f"{file} holds no words; give a file with at least one")
    return WordList(severities)


def as_word_list(words: "WordList | Mapping[str, float] | Iterable[str] | Path | None") -> WordList:
    """A word list as it is, from severities, from words of severity 1, or read from a file.

    Raises:
        TypeError: one string, which could be a word or the name of a file.
        FileNotFoundError, ValueError: as [`read_word_list`] and [`WordList`] say.
    """
    if isinstance(words, WordList):
        return words
    if isinstance(words, str):
        raise TypeError(f"words is the string {words!r:.80}; give a list of words, or a pathlib.Path to a file")
    if words is None or isinstance(words, Path):
        return read_word_list(words)
    return WordList(words if isinstance(words, Mapping) else dict.fromkeys(words, 1.0))


def _file(path: str | Path | None) -> Path:
    if path is None:
        folder = os.environ.get("ALIGNKIT_DATA")
        if not folder:
            raise FileNotFoundError(
                f"there is no word list: give words or a path, or set ALIGNKIT_DATA to a folder with {FOLDER}"
            )
        path = Path(folder) / FOLDER
    path = Path(path)
    if not path.is_dir():
        return path
    files = [path / name for name in FILES if (path / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{path} holds neither {' nor '.join(FILES)}; give the path of a word list")
    return files[0]


def _read_lines(file: Path, text: str) -> dict[str, float]:
    entries = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not fold(line):
            raise ValueError(f"{file}, line {number}: {line!r:.60} has no character that shows; remove the line")
        if line.strip():
            entries[line.strip()] = 1.0
    return entries


def _read_table(file: Path, text: str) -> dict[str, float]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    severities: dict[str, float] = {}
    try:
        if "severity_rating" not in (rows.fieldnames or ()):
            raise ValueError(f"{file}, line 1: the header {rows.fieldnames} has no severity_rating; add that column")
        for row in rows:
            entry, rating = (row["text"] or "").strip(), row["severity_rating"] or ""
            severity = _severity(f"{file}, line {rows.line_num}", entry, rating)
            severities[entry] = max(severity, severities.get(entry, 0.0))
    except csv.Error as error:
        raise ValueError(f"{file}, line {rows.reader.line_num}: {error}; see the quotes of that line") from error
    return severities


def _severity(where: str, entry: str, rating: str) -> float:
    if not fold(entry):
        raise ValueError(f"{where}: the text {entry!r:.60} is blank; remove the line")
    try:
        severity = float(rating) / HIGHEST_RATING
    except ValueError as error:
        raise ValueError(f"{where}: severity_rating is {rating!r:.60}; give a number from above 0 to 3") from error
    if not 0 < severity <= 1:
        raise ValueError(f"{where}: severity_rating is {rating!r:.60}; give a number from above 0 to 3")
    return severity
