"""Blind sheets for people to rate answers on: CSV for a spreadsheet, HTML for a browser.

How this differs from handing out a table of answers:

1. Nobody sees which system wrote an answer: rows are numbered by chance, and the key that tells lies elsewhere.
2. Every rater gets an order of their own, so that neither fatigue nor what was read before favours a system.
3. A cell that a spreadsheet would take for a formula begins with an apostrophe: what a model writes is not run.
"""

import csv
import io
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from alignkit.evaluation.agreement import LEVELS, Level
from alignkit.evaluation.document import visible
from alignkit.evaluation.human_sheet_html import sheet_html
from alignkit.storage import write_json, write_text

ROW, PROMPT, ANSWER, NOTES = "row", "prompt", "answer", "notes"
FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")
PREFIX = "sheet_"


@dataclass(frozen=True)
class Scale:
    """What raters are asked of each answer, a whole number from `lowest` to `highest`.

    Args:
        name: the column, such as `"helpful"`.
        lowest, highest: the numbers.
        level: how agreement counts: `"nominal"` for mere names of classes, `"ordinal"`, `"interval"`.

    Raises:
        ValueError: a name that is no word or a column of the sheet, or numbers in the wrong order.
    """

    name: str
    lowest: int = 1
    highest: int = 5
    level: Level = "ordinal"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w ]*", self.name) or self.name in (ROW, PROMPT, ANSWER, NOTES):
            raise ValueError(
                f"the scale is called {self.name!r}; give a word other than row, prompt, answer and notes"
            )
        if not self.lowest < self.highest:
            raise ValueError(
                f"the scale {self.name} goes from {self.lowest} to {self.highest}; give a lower and a higher"
            )
        if self.level not in LEVELS:
            raise ValueError(f"the level of {self.name} is {self.level!r}; it must be one of {', '.join(LEVELS)}")

    @classmethod
    def parse(cls, text: str) -> "Scale":
        """A scale from `NAME:LOWEST-HIGHEST` or `NAME:LOWEST-HIGHEST:LEVEL`.

        Raises:
            ValueError: another form, or as for the constructor.
        """
        found = re.fullmatch(r"([^:]+):(-?\d+)-(-?\d+)(?::(\w+))?", text)
        if not found:
            raise ValueError(f"the scale {text!r} is not NAME:LOWEST-HIGHEST[:LEVEL]; write for example helpful:1-5")
        name, lowest, highest, level = found.groups()
        return cls(name, int(lowest), int(highest), level or "ordinal")  # type: ignore[arg-type]  # it is checked above


def write_sheets(
    answers: Mapping[str, Mapping[str, str]],
    prompts: Mapping[str, str],
    scales: Sequence[Scale],
    *,
    folder: Path,
    key: Path,
    raters: Sequence[str],
    n_items: int | None = None,
    seed: int = 0,
) -> list[Path]:
    """Write `sheet_<rater>.csv` and `.html` for every rater into `folder`, and the key.

    Args:
        answers: by system, then by item; the same items of every system.
        prompts: by item.
        scales: at least one.
        key: JSON that tells item and system of every row. It must not lie in `folder`, which raters get.
        raters: names of the sheets.
        n_items: that many items, drawn by the seed; None for all.
        seed: of the draw and of every order.

    Returns:
        The sheets.

    Raises:
        ValueError: systems with other items, an item without a prompt, names that are there twice or no words.
        FileExistsError: there is a key already, for which sheets may be out.
        OSError: a file that cannot be written.
    """
    items = _items(answers, prompts, n_items, seed)
    _check_names(scales, raters)
    if key.exists():
        raise FileExistsError(f"{key} exists already, and sheets may be out for it; give another name")
    if folder.resolve() in key.resolve().parents:
        raise ValueError(f"{key} lies in {folder}, which raters get; put the key elsewhere")
    units = [(item, system) for item in items for system in answers]
    random.Random(f"numbers:{seed}").shuffle(units)
    rows = {f"r{number:04}": unit for number, unit in enumerate(units, 1)}
    folder.mkdir(parents=True, exist_ok=True)
    written = {row: {"item": item, "system": system} for row, (item, system) in rows.items()}
    write_json(key, {"seed": seed, "scales": [asdict(scale) for scale in scales], "rows": written})
    sheets = []
    for rater in raters:
        order = list(rows)
        random.Random(f"order:{seed}:{rater}").shuffle(order)
        shown = [(row, prompts[rows[row][0]], answers[rows[row][1]][rows[row][0]]) for row in order]
        for ending, text in (
            ("csv", sheet_csv(shown, scales)),
            ("html", sheet_html(shown, [(one.name, one.lowest, one.highest) for one in scales], rater)),
        ):
            sheets.append(folder / f"{PREFIX}{rater}.{ending}")
            write_text(sheets[-1], text)
    return sheets


def sheet_csv(rows: Sequence[tuple[str, str, str]], scales: Sequence[Scale]) -> str:
    """The sheet as CSV with the mark that tells spreadsheets it is UTF-8; `rows` are (row, prompt, answer)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([ROW, PROMPT, ANSWER, *(scale.name for scale in scales), NOTES])
    for row, prompt, answer in rows:
        writer.writerow([row, *map(without_formula, map(visible, (prompt, answer))), *[""] * len(scales), ""])
    return "\ufeff" + text.getvalue()


def without_formula(text: str) -> str:
    """The text with an apostrophe in front if a spreadsheet would take it for a formula."""
    return f"'{text}" if FORMULA.match(text) else text


def _items(
    answers: Mapping[str, Mapping[str, str]], prompts: Mapping[str, str], n_items: int | None, seed: int
) -> list[str]:
    if not answers or not all(answers.values()):
        raise ValueError("there are no answers to rate; give those of at least one system")
    first = next(iter(answers))
    for system, of_system in answers.items():
        alone = sorted(of_system.keys() ^ answers[first].keys())
        if alone:
            raise ValueError(f"{system} and {first} answered other items, such as {alone[0]!r}; give the same of each")
    missing = next((item for item in answers[first] if item not in prompts), None)
    if missing is not None:
        raise ValueError(f"the item {missing!r} has no prompt; give one for each")
    items = sorted(answers[first])
    if n_items is None:
        return items
    if not 1 <= n_items <= len(items):
        raise ValueError(f"n_items={n_items} must be at least 1 and at most the {len(items)} that were answered")
    return random.Random(f"items:{seed}").sample(items, n_items)


def _check_names(scales: Sequence[Scale], raters: Sequence[str]) -> None:
    for what, names in (("scales", [scale.name for scale in scales]), ("raters", list(raters))):
        if not names or len(set(names)) < len(names):
            raise ValueError(f"the {what} are {names}; give at least one, each with a name of its own")
    wrong = next((rater for rater in raters if not re.fullmatch(r"[\w-]+", rater)), None)
    if wrong is not None:
        raise ValueError(f"a rater is called {wrong!r}; use letters, digits, - and _, since it names a file")
