"""What comes back on filled sheets, and the comparison that is made of it."""

import argparse
import json
import math

import pytest

from alignkit.evaluation.human_answers import answers_of
from alignkit.evaluation.human_ratings import agreement, rating_results, read_ratings
from alignkit.evaluation.human_sheets import Scale, write_sheets
from alignkit.evaluation.ratings_command import add_ratings_commands
from alignkit.evaluation.report_command import add_report_arguments, run_report
from alignkit.evaluation.results import read_results
from tests.evaluation.rating_sheets import SYSTEMS, fill, filled, rows_of, written

# ---- Filled sheets ----


def test_sheets_come_back_from_spreadsheets_of_any_country(tmp_path):
    folder, key = written(tmp_path)
    sheet = folder / "sheet_ann.csv"
    blank = sheet.read_bytes()
    found = []
    for delimiter, rating in ((",", "3"), (";", "3,0"), ("\t", "3.0")):
        sheet.write_bytes(blank)
        fill(sheet, lambda row, rating=rating: (rating, ""), delimiter)
        found.append(read_ratings([sheet], key))
    for ratings in found:
        assert (ratings.values["helpful"] == 3).all() and ratings.n_empty == 24 and ratings.n_items == 12


@pytest.mark.parametrize("rating", ["6", "0", "2.5", "good", "nan", "inf", "=1+1"])
def test_a_rating_off_the_scale_is_named_with_its_row_and_column(tmp_path, rating):
    folder, key = written(tmp_path)
    fill(folder / "sheet_ann.csv", lambda row: (rating if row["row"] == "r0007" else 3, 1))
    with pytest.raises(ValueError, match=r"sheet_ann\.csv, row r0007, column helpful: .* no whole number from 1 to 5"):
        read_ratings([folder / "sheet_ann.csv"], key)


def test_a_sheet_without_a_row_or_a_column_or_with_a_foreign_row_is_named(tmp_path):
    folder, key = written(tmp_path)
    sheet = folder / "sheet_ann.csv"
    fill(sheet, lambda row: (3, 1))
    text = sheet.read_text(encoding="utf-8-sig")
    first = rows_of(sheet)[0]["row"]
    for change, message in (
        (text.replace("helpful", "helpfull", 1), "0 columns 'helpful'"),
        (text.replace(first, "r9999", 1), "the row 'r9999' is not in the key"),
        (text.replace(first, rows_of(sheet)[1]["row"], 1), "is there twice"),
        (text.partition("\n")[0] + "\n", "lacks 24 rows"),
    ):
        sheet.write_text(change)
        with pytest.raises(ValueError, match=message):
            read_ratings([sheet], key)
    sheet.write_bytes("row,helpful,é".encode("latin-1"))
    with pytest.raises(ValueError, match="no UTF-8 at byte 12; save the sheet as CSV UTF-8"):
        read_ratings([sheet], key)
    key.write_text("{}")
    with pytest.raises(ValueError, match=r"key\.json is no key of rating sheets"):
        read_ratings([sheet], key)


# ---- Agreement and results ----


def test_raters_agree_as_far_as_their_ratings_do(tmp_path):
    ratings = read_ratings(*filled(tmp_path))
    found = agreement(ratings, "helpful", n_resamples=200)
    assert found.interval[0] < found.alpha < found.interval[1] <= 1 and found.alpha > 0.8
    assert (found.n_raters, found.n_units) == (2, 24)
    with pytest.raises(ValueError, match="all ratings are the same"):
        agreement(ratings, "kind of answer")
    with pytest.raises(ValueError, match="no scale 'kind'; there are helpful, kind of answer"):
        agreement(ratings, "kind")


def test_results_are_means_over_raters_and_a_scale_of_names_has_none(tmp_path):
    ratings = read_ratings(*filled(tmp_path))
    base, tuned = rating_results(ratings, baseline="base")
    assert (base.kind, tuned.kind, tuned.metric, tuned.raters, tuned.n) == ("baseline", "run", "helpful", 2, 12)
    assert (tuned.items["item00"], tuned.items["item01"], base.items["item05"]) == (4.5, 4.0, 2.5)
    with pytest.raises(ValueError, match="baseline is 'old', which was not rated"):
        rating_results(ratings, baseline="old")


def test_an_empty_cell_is_no_rating_and_an_answer_that_nobody_rated_an_error(tmp_path):
    sheets, key = filled(tmp_path)
    units = json.loads(key.read_text())["rows"]
    row = next(row for row, unit in units.items() if unit == {"item": "item01", "system": "tuned"})
    fill(sheets[0], lambda one: ("" if one["row"] == row else 5, 1))
    ratings = read_ratings(sheets, key)
    tuned = rating_results(ratings)[1]
    assert (ratings.n_empty, tuned.items["item01"], tuned.raters) == (1, 4.0, 1)
    assert math.isnan(ratings.values["helpful"][0][ratings.units.index(("item01", "tuned"))])
    with pytest.raises(ValueError, match="nobody rated helpful of the answer of 'tuned' to 'item01'"):
        rating_results(read_ratings(sheets[:1], key))


# ---- Commands ----


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_ratings_commands(parser)
    args = parser.parse_args([str(argument) for argument in arguments])
    args.run(args)


def answers_file(tmp_path):
    prompt = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It."}]
    rows = [
        {
            "run": system,
            "suite": suite,
            "item": f"i{i}",
            "prompt": [*prompt, prompt[0]],
            "completion": f"{system[0]}{i}",
        }
        for system in SYSTEMS
        for suite in ("safety", "clinical")
        for i in range(6)
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_recorded_answers_become_sheets_and_filled_sheets_a_report(tmp_path, capsys):
    answers, sheets, key, results = (
        answers_file(tmp_path),
        tmp_path / "sheets",
        tmp_path / "key.json",
        tmp_path / "r.jsonl",
    )
    scales = ["helpful:1-5", "kind of answer:0-2:nominal"]
    run(
        "sheet", answers, "-o", sheets, "--key", key, "--suite", "safety", "--scale", *scales, "--raters", "ann", "bob"
    )
    assert rows_of(sheets / "sheet_ann.csv")[0]["prompt"] == "User: Say it.\n\nAssistant: It.\n\nUser: Say it."
    units = json.loads(key.read_text())["rows"]
    for rater in ("ann", "bob"):

        def give(row, rater=rater):
            unit = units[row["row"]]
            return 2 + 2 * (unit["system"] == "tuned") + int(unit["item"][1:]) % 2, int(unit["item"][1:]) % 3

        fill(sheets / f"sheet_{rater}.csv", give)
    filled_sheets = sorted(sheets.glob("*.csv"))
    run("agreement", *filled_sheets, "--key", key, "-o", results, "--baseline", "base")
    said = capsys.readouterr().out
    assert "2 raters, 6 items, 12 answers" in said and "warning: 6 items are fewer than the 200" in said
    assert "helpful: Krippendorff's alpha (ordinal) 1.00 [1.00, 1.00]" in said
    assert len(read_results(results)) == 2
    parser = argparse.ArgumentParser()
    add_report_arguments(parser)
    run_report(parser.parse_args([str(results), "-o", str(tmp_path / "report.md"), "--resamples", "200"]))
    text = (tmp_path / "report.md").read_text()
    assert "helpful" in text and "2.5 points → 4.5 points" in text


def test_a_key_with_a_scale_that_is_none_is_named(tmp_path):
    sheets, key = filled(tmp_path)
    key.write_text(key.read_text().replace('"nominal"', '"inal"'))
    with pytest.raises(ValueError, match=r"key\.json is no key of rating sheets .*inal"):
        read_ratings(sheets, key)


def test_an_answer_longer_than_csv_takes_by_itself_comes_back_from_its_sheet(tmp_path):
    long = {"i": "x" * 200_000}
    scales = [Scale("helpful")]
    [sheet, _] = write_sheets(
        {"base": long}, {"i": "p"}, scales, folder=tmp_path / "out", key=tmp_path / "key.json", raters=["ann"]
    )
    ratings = read_ratings([sheet], tmp_path / "key.json")
    assert ratings.units == (("i", "base"),) and ratings.n_empty == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"item": ["i0"]}, r"line 1: item is \['i0'\]; it must be a text"),
        ({"prompt": [{"role": "user", "text": "x"}]}, "line 1: the prompt is no text and no messages .*'content'"),
        (
            {"prompt": [{"role": "user", "content": "x"}, {"role": "judge", "content": "x"}]},
            "line 1: the prompt .*judge",
        ),
        ({"prompt": 3.5}, "line 1: the prompt is no text"),
    ],
)
def test_a_row_of_answers_that_was_edited_wrongly_is_named(tmp_path, change, complaint):
    path = tmp_path / "answers.jsonl"
    row = {"run": "base", "suite": "safety", "item": "i0", "prompt": "p", "completion": "c"}
    path.write_text(json.dumps({**row, **change}) + "\n")
    with pytest.raises(ValueError, match=complaint):
        answers_of(path, "safety")


def test_answers_that_cannot_be_rated_side_by_side_are_refused(tmp_path):
    path = answers_file(tmp_path)
    with pytest.raises(ValueError, match="no answers of anyone in 'gsm8k'"):
        answers_of(path, "gsm8k")
    with pytest.raises(ValueError, match="no answers of other in 'safety'"):
        answers_of(path, "safety", ["base", "other"])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[0]]))
    with pytest.raises(ValueError, match="line 25: base answers 'i0' a second time"):
        answers_of(path, "safety")
    path.write_text(lines[0] + "\n" + lines[12].replace("Say it", "Do it"))
    with pytest.raises(ValueError, match="tuned was asked something else than others as 'i0'"):
        answers_of(path, "safety")
    path.write_text('{"item": "a"}\n')
    with pytest.raises(ValueError, match="line 1 has no 'run'"):
        answers_of(path, "safety")
