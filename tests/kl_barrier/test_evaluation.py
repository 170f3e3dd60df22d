"""One evaluation: what is reported, and that batches, ranks and padding change nothing."""

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.kl_barrier import AGGREGATES, aggregate_positions
from alignkit.kl_barrier.evaluation import BarrierEvaluation
from alignkit.kl_barrier.evaluation_report import DIRECTIONS, BarrierReport
from tests.kl_barrier.evaluated_rows import TOKENIZER, Row, padded, padding_free, some_rows, statistics_of
from tests.tiny_models import lively_lm

INF = math.inf


def report_of(batches: list[list[Row]], layout=padded, *, n_worst: int = 20, **gate) -> BarrierReport:
    record = BarrierEvaluation(n_worst=n_worst)
    for rows in batches:
        record.add(*layout(rows))
    return record.assemble(TOKENIZER, **{"aggregate": "mean", "tau_nats": 0.5, **gate})


def assert_same(first: BarrierReport, second: BarrierReport) -> None:
    for name in ("n_sequences", "n_tokens", "nll", "entropy", "token_accuracy"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), rel=1e-12), name
    for direction in DIRECTIONS:
        for how in AGGREGATES:
            np.testing.assert_allclose(
                first.divergences[direction][how], second.divergences[direction][how], rtol=1e-6
            )
    assert [vars(worst) for worst in first.worst_tokens] == [vars(worst) for worst in second.worst_tokens]


# ---- Numbers ----


def test_numbers_are_sums_over_tokens_divided_once():
    rows = some_rows()
    report = report_of([rows[:4], rows[4:]])
    everything = statistics_of(rows)
    assert report.n_sequences == 5
    assert report.n_tokens == len(everything.entropy)
    assert report.nll == pytest.approx(-everything.log_probs.mean().item(), rel=1e-6)
    assert report.entropy == pytest.approx(everything.entropy.mean().item(), rel=1e-6)
    assert report.token_accuracy == pytest.approx(everything.is_top1.float().mean().item(), rel=1e-6)


def test_both_directions_and_all_aggregates_are_those_of_each_sequence():
    rows = some_rows()
    report = report_of([rows[:2], rows[2:]])
    for direction in DIRECTIONS:
        for how in AGGREGATES:
            expected = [aggregate_positions(row.statistics[direction], how).item() for row in rows]
            np.testing.assert_allclose(report.divergences[direction][how], expected, rtol=1e-6)
            assert report.flat("eval")[f"eval_{direction}/{how}"] == pytest.approx(np.mean(expected), rel=1e-6)


def test_the_gate_is_that_of_the_chosen_aggregate_and_threshold():
    rows = some_rows()
    d = np.array([row.statistics["reverse_kl"].amax().item() for row in rows])
    tau = float(np.sort(d)[2])
    report = report_of([rows], aggregate="max", tau_nats=tau)
    assert report.open_share == pytest.approx(2 / 5)
    assert report.divergence == pytest.approx(d.mean())
    assert report.hinge == pytest.approx(np.maximum(d - tau, 0).mean())
    flat = report.flat("eval_held_out")
    assert flat["eval_held_out_kl/gate_open"] == report.open_share
    assert flat["eval_held_out_kl/divergence"] == report.divergence
    assert flat["eval_held_out_nll"] == report.nll


def test_quantiles_are_values_that_occurred():
    rows = [Row("Sold.", 0, **{f"at{i}": float(value) for i in range(5)}) for value in range(1, 101)]
    quantiles = report_of([rows]).quantiles("reverse_kl", "mean")
    assert quantiles == {0.5: 50.0, 0.9: 90.0, 0.95: 95.0, 0.99: 99.0, 1.0: 100.0}


# ---- Nothing depends on how the data were cut ----


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, 4)), layout=st.sampled_from([padded, padding_free]))
def test_any_batch_size_and_layout_gives_the_same_report(cuts, layout):
    rows = some_rows()
    batches = [rows[low:high] for low, high in pairwise([0, *sorted(cuts), len(rows)])]
    assert_same(report_of(batches, layout, n_worst=7), report_of([rows], n_worst=7))


def test_a_trainer_reports_the_same_for_every_batch_size_and_without_padding(make_trainer, rows):
    reports = []
    for batch_size, is_flat in ((1, False), (5, False), (16, False), (7, True)):
        trainer = make_trainer(
            model=lively_lm(1),
            ref_model=lively_lm(2),
            eval_dataset=rows,
            per_device_eval_batch_size=batch_size,
            padding_free=is_flat,
            max_length=None if is_flat else 128,
        )
        metrics = trainer.evaluate()
        report = trainer.evaluation_report
        assert metrics["eval_forward_kl/cvar95"] == report.flat("eval")["eval_forward_kl/cvar95"]
        reports.append(report)
    first = reports[0]
    assert first.n_sequences == len(rows)
    for other in reports[1:]:
        assert other.flat("eval") == pytest.approx(first.flat("eval"), rel=1e-4)
        places = [
            [(worst.sequence, worst.position, worst.token) for worst in one.worst_tokens] for one in (first, other)
        ]
        assert places[0] == places[1]


def test_rows_that_fill_up_the_last_batch_do_not_count():
    rows = some_rows()
    record = BarrierEvaluation()
    record.add(*padded(rows[:3]))
    loud = Row("Sold: noise.", 0, at3=INF)
    record.add(*padded([*rows[3:], rows[0], loud]), n_real=2)
    record.add(*padded([loud]), n_real=0)
    assert_same(record.assemble(TOKENIZER, aggregate="mean", tau_nats=0.5), report_of([rows]))


@pytest.mark.parametrize("layout", [padded, padding_free])
def test_sequences_without_a_label_are_left_out_of_every_mean(layout):
    rows = some_rows()
    silent = [Row("nothing", 8), Row("here", 5)]
    assert all(not len(row.statistics["entropy"]) for row in silent)
    batches = [[rows[0], silent[0], *rows[1:3]], [silent[1]], rows[3:]]
    assert_same(report_of(batches, layout), report_of([rows], layout))


@pytest.mark.slow
def test_two_ranks_report_what_one_does(tmp_path: Path):
    script, out = Path(__file__).with_name("run_evaluation.py"), tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(script),
        str(out),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=100)
    alone = report_of([some_rows()], n_worst=7)
    expected = {**alone.flat("eval"), "worst": [vars(worst) for worst in alone.worst_tokens]}
    for found in json.loads(out.read_text()):
        assert found.pop("worst") == expected["worst"]
        assert found == pytest.approx({name: value for name, value in expected.items() if name != "worst"})


# ---- The worst tokens ----


def test_the_worst_tokens_are_named_with_the_text_around_them():
    # The labelled tokens of the second row are those of " 12 crates": place 1 is the "1".
    rows = [Row("Sold: salt.", 0), Row("Due: 12 crates", 5, at1=50.0, at4=40.0)]
    first, second = report_of([rows], n_worst=2).worst_tokens
    assert (first.divergence_nats, second.divergence_nats) == (50.0, 40.0)
    assert (first.before, first.token, first.after) == ("<bos>Due: ", "1", "2 crates")
    assert (second.before, second.token, second.after) == ("<bos>Due: 12 ", "c", "rates")
    assert [(worst.sequence, worst.position) for worst in (first, second)] == [(1, 6), (1, 9)]
    assert first.token_id == rows[1].ids[6]


def test_the_text_around_a_token_is_ten_tokens_of_its_own_sequence():
    rows = [Row("abcdefghijklmnopqrstuvwxyz", 0, at12=9.0), Row("xyz", 0, at0=8.0), Row("uvw", 0)]
    for layout in (padded, padding_free):
        long, short = report_of([rows], layout, n_worst=2).worst_tokens
        assert (long.before, long.token, long.after) == ("cdefghijkl", "m", "nopqrstuvw")
        assert (short.before, short.token, short.after) == ("<bos>", "x", "yz")
        assert (short.sequence, short.position) == (1, 1)


def test_divergences_that_are_no_number_head_the_table_and_show_in_every_metric():
    rows = [Row("Sold: salt.", 0, at2=90.0), Row("Paid.", 0, at1=INF), Row("Rope.", 0, at3=math.nan)]
    report = report_of([rows[:1], rows[1:]], n_worst=3)
    nan, infinite, large = (worst.divergence_nats for worst in report.worst_tokens)
    assert math.isnan(nan)
    assert (infinite, large) == (INF, 90.0)
    assert [worst.token for worst in report.worst_tokens] == ["e", "a", "l"]
    flat = report.flat("eval")
    assert math.isnan(flat["eval_reverse_kl/p95"])
    assert math.isnan(flat["eval_kl/gate_open"])
    assert math.isfinite(flat["eval_forward_kl/max"])
    assert "nan" in report.to_markdown()


def test_an_infinite_divergence_does_not_spoil_the_finite_quantiles():
    rows = [Row("Sold: salt.", 0), Row("Paid.", 0), Row("Tea.", 0, at1=INF)]
    report = report_of([rows])
    quantiles = report.quantiles("reverse_kl", "max")
    assert math.isfinite(quantiles[0.5])
    assert quantiles[1.0] == INF
    assert report.open_share == 1.0


def test_the_worst_tokens_of_the_forward_direction_can_be_asked_for():
    rows = some_rows()
    record = BarrierEvaluation("forward", n_worst=1)
    record.add(*padded(rows))
    report = record.assemble(TOKENIZER, aggregate="max", tau_nats=0.0)
    largest = max(row.statistics["forward_kl"].amax().item() for row in rows)
    assert report.worst_tokens[0].divergence_nats == pytest.approx(largest)
    assert report.flat("eval")["eval_kl/divergence"] == report.flat("eval")["eval_forward_kl/max"]


# ---- Markdown ----


def test_the_markdown_shows_special_tokens_bars_backticks_and_line_ends():
    report = report_of([[Row("a|b`c\nd", 0, at1=70.0, at3=60.0)]], n_worst=2)
    table = report.to_markdown()
    first, second = (line for line in table.splitlines() if line.startswith(("| 1 |", "| 2 |")))
    assert first == "| 1 | 70 | 0 | 2 | `'<bos>a'` | `'\\|'` | `` 'b`c\\nd' `` |"
    assert second == "| 2 | 60 | 0 | 4 | `'<bos>a\\|b'` | `` '`' `` | `'c\\nd'` |"
    assert "| reverse_kl | cvar95 | 70 | 70 | 70 | 70 | 70 | 70 |" in table
    assert "1 sequences, 7 tokens" in table


# ---- Bad input ----


def test_an_evaluation_without_a_label_is_refused():
    with pytest.raises(ValueError, match=r"no token of the evaluation set has a label.*max_length"):
        report_of([[Row("nothing", 8)]])
    with pytest.raises(ValueError, match="no token of the evaluation set has a label"):
        report_of([])


def test_statistics_of_another_number_of_positions_are_refused():
    statistics, batch = padded(some_rows())
    statistics.forward_kl = statistics.forward_kl[:-1]
    n = len(statistics.entropy)
    with pytest.raises(ValueError, match=f"forward_kl has {n - 1} positions, but {n} next tokens have a label"):
        BarrierEvaluation().add(statistics, batch)
