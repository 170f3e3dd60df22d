"""What is written is read back: JSON lines, YAML, results, rating sheets, caches; and no text breaks a report."""

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st

from alignkit.evaluation.document import Bullets, Heading, Table, Text, to_markdown, visible
from alignkit.evaluation.human_ratings import read_ratings
from alignkit.evaluation.human_sheets import ROW, Scale, sheet_csv, without_formula, write_sheets
from alignkit.evaluation.judge.cache import VerdictCache, request_key
from alignkit.evaluation.report_html import to_html
from alignkit.evaluation.results import Result, append_result, read_results
from alignkit.evaluation.settings import gather
from alignkit.evaluation.suites.data import read_rows, take
from alignkit.evaluation.whole_lines import append_line, finished_lines
from alignkit.row_cache import RowCache, RowCacheWriter, row_key
from alignkit.spec_files import read_spec_file, read_value, to_yaml
from alignkit.storage import digest, read_json, read_lines, write_json, write_lines, write_text
from tests.properties.given import given
from tests.properties.strategies import ORDERS, SEEDS, TEXTS, WORDS, plain_values, shuffled

# ---- Storage ----

JSON_VALUES = plain_values().map(lambda values: json.loads(json.dumps(values).replace("Infinity", "1")))


@given(st.lists(JSON_VALUES, min_size=1, max_size=4))
def test_lines_come_back_whatever_the_characters_in_them(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    write_lines(path, rows)
    assert read_lines(path) == rows
    assert [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] == rows
    assert read_rows(path, {}) == rows
    before = digest(path)
    write_lines(path, rows)
    assert digest(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


@given(JSON_VALUES)
def test_an_object_comes_back_from_json(tmp_path, values):
    write_json(tmp_path / "x.json", values)
    assert read_json(tmp_path / "x.json") == values


@given(st.lists(JSON_VALUES, max_size=3), st.integers(1, 40))
def test_a_line_that_was_not_finished_is_left_out_and_removed_by_the_next_writer(tmp_path, rows, cut):
    path = tmp_path / "lines"
    path.unlink(missing_ok=True)
    lines = [json.dumps({"run": number, **row}) for number, row in enumerate(rows)]
    for line in lines:
        append_line(path, line, start='{"run": ')
    last = json.dumps({"run": 1, "text": "x" * 40})[:cut]
    with path.open("a") as file:
        file.write(last)
    assert [line.decode() for line in finished_lines(path) if line] == lines
    append_line(path, '{"run": 7}', start='{"run": ')
    assert [line.decode() for line in finished_lines(path) if line] == [*lines, '{"run": 7}']


# ---- YAML ----


@given(plain_values())
def test_what_is_written_as_yaml_is_read_as_it_was(tmp_path, values):
    path = tmp_path / "spec.yaml"
    write_text(path, to_yaml(values))
    assert read_spec_file(path, lambda content: content) == values
    assert list(read_value(to_yaml(values))) == list(values)


@given(st.floats(allow_nan=False), st.integers())
def test_a_number_in_any_notation_of_python_is_a_number_in_yaml(number, whole):
    assert read_value(repr(number)) == number or math.isinf(number)
    assert read_value(f"{number:.3e}") == float(f"{number:.3e}") or math.isinf(number)
    assert read_value(str(whole)) == whole


# ---- Results ----

ITEMS = st.dictionaries(TEXTS, st.floats(0, 1), min_size=1, max_size=4)


@st.composite
def results(draw, run="run"):
    return Result(
        run=draw(st.just(run)),
        item_set=draw(WORDS),
        metric=draw(WORDS),
        role=draw(st.sampled_from(["task", "general"])),
        higher_is_better=draw(st.booleans()),
        unit="proportion",
        items=draw(ITEMS),
        config=draw(JSON_VALUES),
        seed=draw(st.integers(0, 99)),
        commit=draw(st.none() | TEXTS),
        versions=draw(st.dictionaries(WORDS, TEXTS, max_size=2)),
        device=draw(TEXTS),
        wall_time_s=draw(st.floats(0, 1e6)),
        history=draw(st.none() | st.lists(st.dictionaries(WORDS, st.floats(), max_size=2), max_size=2)),
    )


@given(st.lists(results(), min_size=1, max_size=3))
def test_results_come_back_as_they_were_appended(tmp_path, written):
    path = tmp_path / "results.jsonl"
    path.unlink(missing_ok=True)
    for result in written:
        append_result(path, result)
    assert read_results(path) == written
    assert read_results([path, path]) == written * 2


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=8, unique=True), ORDERS)
def test_runs_that_differ_by_their_seed_alone_are_one_setting_in_any_order_of_the_lines(points, order):
    def result(value, seed):
        return Result(
            run=f"{value}-{seed}",
            **{"item_set": "s", "metric": "m", "role": "task", "higher_is_better": True, "unit": ""},
            **{"items": {"a": float(value)}, "config": {"beta": value, "same": 1}, "seed": seed},
            **{"commit": None, "versions": {}, "device": "cpu", "wall_time_s": 1.0},
        )

    lines = [result(*point) for point in points]
    experiment = gather(lines)
    values = sorted({value for value, _ in points})
    found = [(setting.runs[0].config["beta"], [run.seed for run in setting.runs]) for setting in experiment.settings]
    assert found == [(value, sorted(seed for other, seed in points if other == value)) for value in values]
    again = gather(shuffled(lines, order))
    assert [(one.label, [run.name for run in one.runs]) for one in again.settings] == [
        (one.label, [run.name for run in one.runs]) for one in experiment.settings
    ]


# ---- Rows that a limit takes ----


@given(st.lists(st.integers(), min_size=1, max_size=20), st.integers(1, 25), st.integers(0, 5), SEEDS)
def test_a_larger_limit_takes_what_a_smaller_one_takes_in_the_order_of_the_rows(items, limit, more, seed):
    rows = list(enumerate(items))
    few, many = take(rows, limit, seed=seed), take(rows, limit + more, seed=seed)
    assert len(few) == min(limit, len(rows))
    assert [row for row in many if row in few] == few
    assert few == sorted(few)
    assert take(rows, None) == rows


# ---- Sheets ----

SCALES = [Scale("helpful", 1, 5), Scale("safe", 0, 1)]


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_a_sheet_holds_texts_as_they_are_but_for_formulas_and_what_cannot_be_seen(rows):
    shown = [(f"r{number}", *texts) for number, texts in enumerate(rows)]
    read = list(csv.reader(io.StringIO(sheet_csv(shown, SCALES).removeprefix("\ufeff"), newline="")))
    expected = [[row, *(without_formula(visible(text)) for text in texts)] for row, *texts in shown]
    assert [row[:3] for row in read[1:]] == expected
    assert not any(text.lstrip().startswith(("=", "+", "-", "@")) for row in read[1:] for text in row[1:3])


@given(
    st.lists(st.lists(st.none() | st.integers(1, 5), min_size=4, max_size=4), min_size=1, max_size=2),
    st.sampled_from([",", ";", "\t"]),
    ORDERS,
    SEEDS,
)
def test_ratings_reach_their_answers_whatever_a_spreadsheet_does_to_the_sheet(
    tmp_path, given_ratings, mark, order, seed
):
    folder, key = tmp_path / "sheets", tmp_path / "key.json"
    key.unlink(missing_ok=True)
    answers = {system: {"i1": f"{system}, one", "i2": f"{system}; \n two"} for system in ("a", "b")}
    raters = [f"rater{number}" for number in range(len(given_ratings))]
    write_sheets(
        answers, {"i1": "p", "i2": "q"}, SCALES[:1], folder=folder, key=key, raters=raters, n_items=None, seed=seed
    )
    rows = json.loads(key.read_text())["rows"]
    for rater, values in zip(raters, given_ratings, strict=True):
        path = folder / f"sheet_{rater}.csv"
        read = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
        by_row = dict(zip(sorted(rows), values, strict=True))
        columns = shuffled([*read[0]], order)
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, delimiter=mark)
        writer.writeheader()
        for row in shuffled(read, order):
            value = by_row[row[ROW]]
            writer.writerow({**row, "helpful": "" if value is None else f"{value}"})
        path.write_text(text.getvalue(), encoding="utf-8")
    ratings = read_ratings([folder / f"sheet_{rater}.csv" for rater in raters], key)
    expected = [[math.nan if value is None else value for value in values] for values in given_ratings]
    places = [sorted(rows).index(row) for row in rows]
    assert np.array_equal(ratings.values["helpful"], np.array(expected)[:, places], equal_nan=True)
    assert ratings.units == tuple((unit["item"], unit["system"]) for unit in rows.values())
    assert ratings.n_empty == sum(value is None for values in given_ratings for value in values)


# ---- Caches ----


@given(st.dictionaries(TEXTS, st.tuples(st.text(max_size=20), st.booleans()), max_size=4))
def test_what_judges_said_is_read_back_by_the_next_process(tmp_path, said):
    path = tmp_path / "verdicts.jsonl"
    path.unlink(missing_ok=True)
    cache = VerdictCache(path)
    for request, (text, refused) in said.items():
        cache.put(request_key({"x": request}), model="m", text=text, refused=refused)
    for one in (cache, VerdictCache(path) if said else cache):
        for request, (text, refused) in said.items():
            assert one.get(request_key({"x": request})) == {"model": "m", "text": text, "refused": refused}
    assert cache.get(request_key({"other": 1})) is None


@given(st.dictionaries(st.binary(max_size=3), st.lists(st.floats(width=32), max_size=3), min_size=1, max_size=4))
def test_rows_of_a_cache_come_back_bit_for_bit(tmp_path, rows):
    meaning = {"weights": "w"}
    shape = {"dtype": torch.float32, "width": 2}
    with RowCacheWriter(tmp_path / "cache", meaning=meaning, **shape) as writer:
        for key, values in rows.items():
            writer.write(row_key(key), torch.tensor([values, values], dtype=torch.float32).T)
    cache = RowCache.open(tmp_path / "cache", meaning=meaning, **shape)
    assert len(cache) == len(rows)
    for key, values in rows.items():
        expected = np.array([values, values], dtype=np.float32).T
        assert cache[row_key(key)].numpy().tobytes() == np.ascontiguousarray(expected).tobytes()


# ---- Reports ----


@given(st.lists(TEXTS, min_size=2, max_size=3), TEXTS, TEXTS)
def test_no_text_breaks_a_table_or_a_page(cells, title, rest):
    header = [f"h{number}" for number in range(len(cells))]
    blocks = [Heading(2, title), Text(rest), Bullets([(title, rest)]), Table(header, [cells], fold="")]
    markdown = to_markdown(blocks, "x")
    heading, text, bullet, table = markdown.split("\n\n", 3)
    assert "\n" not in heading + text + bullet
    lines = table.rstrip("\n").split("\n")
    assert len(lines) == 3
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines} == {len(cells) + 1}
    page = to_html(blocks)
    assert len(re.findall("<td", page)) == len(cells)
    assert page.count("<script") == 0
    assert len(re.findall(r"<(?!/|!)[a-z]", page)) == len(re.findall(r"<(?!/|!)[a-z]", to_html(plain(blocks))))


def plain(blocks):
    """The same blocks with texts without any markup."""
    return [
        Heading(2, "x"),
        Text("x"),
        Bullets([("x" if blocks[0].text else "", "x")]),
        Table(blocks[3].header, [["x"] * len(blocks[3].rows[0])]),
    ]


@given(WORDS)
def test_a_folder_in_the_place_of_a_file_is_an_error_of_the_system(tmp_path, name):
    assume(not Path(tmp_path / name).exists())
    (tmp_path / name).mkdir()
    for read in (read_json, read_lines, lambda path: read_spec_file(path, dict)):
        with pytest.raises(OSError):
            read(tmp_path / name)
    (tmp_path / name).rmdir()
