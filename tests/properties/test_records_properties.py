"""What is written is read back: JSON lines, YAML, results, rating sheets, caches, reports; and settings by their ids."""

import csv
import io
import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st

from alignkit.evaluation.document import Bullets, Heading, Table, Text, to_markdown
from alignkit.evaluation.human_ratings import read_ratings
from alignkit.evaluation.human_sheets import ROW, Scale, sheet_csv, without_formula, write_sheets
from alignkit.evaluation.judge.cache import VerdictCache, request_key
from alignkit.evaluation.report_html import to_html
from alignkit.evaluation.results import Result, append_result, read_results
from alignkit.evaluation.settings import canonical, differing, gather
from alignkit.evaluation.suites.data import read_rows, take
from alignkit.evaluation.whole_lines import append_line, finished_lines
from alignkit.experiments.history import MOST_ROWS, final_training_loss, trimmed
from alignkit.experiments.settings import grid_points, identity, lora_fields
from alignkit.plan.request import PlanRequest
from alignkit.plan.sharding import SHARDED, shard
from alignkit.plan.sizes import state_bytes
from alignkit.plan.suggestion import _micro_batches
from alignkit.row_cache import RowCache, RowCacheWriter, row_key
from alignkit.spec_files import check_known, fitted, known_mapping, read_spec_file, read_value, to_yaml
from alignkit.stages.artefacts import fingerprint
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


@given(st.sets(WORDS, min_size=1, max_size=5), WORDS)
def test_an_unknown_key_is_refused_with_a_known_one(known, key):
    if key in known:
        check_known(key, key, known)
        assert known_mapping({key: 1}, "x", known) == {key: 1}
        return
    with pytest.raises(ValueError) as caught:
        known_mapping({key: 1}, "x", known)
    assert repr(key) in str(caught.value) or key in str(caught.value)
    assert any(repr(name) in str(caught.value) for name in known)


@dataclass
class Fields:
    """Of every kind that a specification has."""

    number: float = 1.0
    whole: int = 1
    maybe: int | None = None
    text: str = ""
    flag: bool = False
    several: tuple[int, ...] = ()
    names: dict[str, float] = field(default_factory=dict)


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.lists(st.integers(), max_size=2)


@given(st.sampled_from([one.name for one in fields(Fields)]), ANYTHING)
def test_a_value_fits_a_field_or_is_refused_by_name_and_what_fits_has_its_type(name, value):
    try:
        found = fitted(Fields, {name: value}, "spec")[name]
    except ValueError as error:
        assert str(error).startswith(f"spec.{name} is ")
        return
    types = {"number": float, "whole": int, "text": str, "flag": bool, "several": tuple, "names": dict}
    assert found is None or isinstance(found, types.get(name, int))
    assert isinstance(found, bool) == (name == "flag")
    assert found == (tuple(value) if name == "several" else value) or found != found


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


@given(JSON_VALUES, JSON_VALUES, ORDERS)
def test_equal_settings_have_one_text_one_id_and_one_fingerprint_whatever_the_order_of_keys(values, others, order):
    moved = dict(shuffled(list(values.items()), order))
    assert canonical(moved) == canonical(values)
    assert identity(moved) == identity(values)
    assert fingerprint("sft", moved) == fingerprint("sft", values)
    assert differing(values, moved) == []
    is_same = json.dumps(values, sort_keys=True) == json.dumps(others, sort_keys=True)
    assert (identity(values) == identity(others)) == is_same


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


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), st.sampled_from(",;\t"))
def test_a_sheet_holds_texts_as_they_are_but_for_formulas(rows, delimiter):
    shown = [(f"r{number}", *texts) for number, texts in enumerate(rows)]
    read = list(csv.reader(io.StringIO(sheet_csv(shown, SCALES).removeprefix("\ufeff"), newline="")))
    assert [row[:3] for row in read[1:]] == [[row, *map(without_formula, texts)] for row, *texts in shown]
    for _, text, answer in read[1:] if False else [row[:3] for row in read[1:]]:
        assert not text.lstrip().startswith(("=", "+", "-", "@")) and not answer.lstrip().startswith(("=", "@"))


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


# ---- Histories, grids, plans ----


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0.1, 5)), min_size=1, max_size=12))
def test_the_final_loss_is_that_of_every_step_of_the_last_epoch_however_often_it_was_logged(rows):
    steps = np.cumsum([n for n, _ in rows])
    per_epoch = int(steps[-1])  # one epoch, so that all rows count
    log = [
        {"step": int(step), "epoch": step / per_epoch, "loss": loss}
        for step, (_, loss) in zip(steps, rows, strict=True)
    ]
    expected = sum(n * loss for n, loss in rows) / per_epoch
    assert final_training_loss(log) == pytest.approx(expected)
    assert final_training_loss([{"step": per_epoch, "epoch": 1.0, "loss": expected}]) == pytest.approx(expected)
    assert final_training_loss([*log, {"eval_loss": 9.0, "step": per_epoch}]) == pytest.approx(expected)


@given(st.integers(0, 700), st.integers(0, 5))
def test_a_trimmed_history_keeps_the_last_row_and_all_evaluations_in_their_order(n, n_evaluations):
    rows = [{"step": step, "loss": float(step), "other": 1} for step in range(n)]
    rows += [{"step": n + step, "eval_x_loss": 1.0} for step in range(n_evaluations)]
    kept = trimmed(rows)
    training = [row for row in kept if "loss" in row]
    assert len(training) <= MOST_ROWS + 1
    assert not n or training[-1]["step"] == n - 1
    assert [row["step"] for row in kept] == sorted(row["step"] for row in kept)
    assert sum("eval_x_loss" in row for row in kept) == n_evaluations
    assert all("other" not in row for row in kept)


@given(st.dictionaries(WORDS, st.lists(st.integers(), min_size=1, max_size=3, unique=True), min_size=1, max_size=3))
def test_a_grid_has_every_combination_once(grid):
    points = list(grid_points(grid))
    assert len(points) == math.prod(map(len, grid.values()))
    assert len({tuple(point.items()) for point in points}) == len(points)
    assert all(point[key] in values for point in points for key, values in grid.items())


@given(st.dictionaries(st.sampled_from(["r", "lora_alpha", "bias", "lora_bias", "target_modules"]), st.integers()))
def test_fields_of_a_lora_keep_apart_in_a_record(lora):
    named = lora_fields(lora)
    assert len(named) == len(lora)
    assert all(name.startswith("lora_") for name in named)
    assert list(named.values()) == list(lora.values())


PARTS = st.fixed_dictionaries(
    {name: st.integers(0, 10**6) for name in ("weights", "adapter", "gradients", "optimizer", "activations")}
)


@given(PARTS, st.integers(2, 64), st.sampled_from(list(SHARDED)))
def test_a_device_never_holds_more_of_a_sharded_part_than_the_whole_nor_less_than_its_share(parts, n, sharding):
    sizes = {"gradient_bytes": parts["gradients"], "largest_layer_bytes": 1000}
    shares = shard(parts, sharding, n, **sizes)
    for name, size in parts.items():
        assert shares[name] * n >= size
        assert shares[name] <= size or (sharding == "ddp" and name == "gradients")
    assert shares["activations"] == parts["activations"]
    assert shard(parts, sharding, 1, **sizes) == parts
    if sharding != "ddp":
        fewer = shard(parts, sharding, 2 * n, **sizes)
        assert all(fewer[name] <= shares[name] for name in parts)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=4), st.sampled_from([2, 4]))
def test_states_of_optimisers_add_up_over_tensors_and_eight_bits_need_less_than_thirty_two(trained, n_bytes):
    for optimizer in ("sgd", "adamw_torch", "paged_adamw_32bit", "adamw_8bit"):
        whole = state_bytes(optimizer, trained, n_bytes)
        assert whole == sum(state_bytes(optimizer, [n], n_bytes) for n in trained)
    assert state_bytes("adamw_8bit", trained, n_bytes) <= state_bytes("paged_adamw_32bit", trained, n_bytes)


@given(st.integers(1, 64), st.integers(1, 4))
def test_smaller_micro_batches_keep_the_rows_of_a_step(batch, accumulation):
    request = PlanRequest("dpo", batch_size=batch, gradient_accumulation_steps=accumulation)
    found = _micro_batches(request)
    assert found[0] == request
    assert {one.batch_size * one.gradient_accumulation_steps for one in found} == {batch * accumulation}
    assert [one.batch_size for one in found] == sorted({one.batch_size for one in found}, reverse=True)
    assert found[-1].batch_size == 1
    assert all(
        {**asdict(one), "batch_size": 0, "gradient_accumulation_steps": 0}
        == {**asdict(request), "batch_size": 0, "gradient_accumulation_steps": 0}
        for one in found
    )


@given(WORDS)
def test_a_folder_in_the_place_of_a_file_is_an_error_of_the_system(tmp_path, name):
    assume(not Path(tmp_path / name).exists())
    (tmp_path / name).mkdir()
    for read in (read_json, read_lines, lambda path: read_spec_file(path, dict)):
        with pytest.raises(OSError):
            read(tmp_path / name)
    (tmp_path / name).rmdir()
