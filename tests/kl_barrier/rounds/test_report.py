"""The report and the pictures, made from `results.jsonl` alone."""

import json
import math
import re
import shutil

import pytest

from alignkit.kl_barrier.rounds.report import markdown_report, read_results, write_report
from alignkit.kl_barrier.rounds.signals import SIGNALS, changes_since, interval_of_mean, most_moved, movement

PNG = b"\x89PNG"


def record(number, **scores):
    """A record of two items, whose signals stand still unless they are given."""
    still = {"trait_nats": [0.0, 1.0], "allowed_answer_mass": [0.5, 0.7], "repetition": [0.1, 0.2]}
    filled = {**still, "perplexity": [2.0, 8.0], **scores}
    return {
        "round": number,
        "scores": filled,
        "means": {
            name: math.sqrt(math.prod(values)) if SIGNALS[name].is_log else sum(values) / len(values)
            for name, values in filled.items()
        },
        "n": dict.fromkeys(filled, 2),
        "samples": [{"prompt": "p", "completion": f"sample {number}"}, {"prompt": "q", "completion": "# not a title"}],
        "stop_reason": "it was enough" if number else None,
        "settings": {"model": {"name": "tiny", "weights_sha256": "abc"}},
        **{"seed": 4, "device": "cpu", "git_commit": None, "versions": {"torch": "2"}},
    }  # fmt: skip


def cells(report, label):
    """The cells of the table row that starts with the label."""
    (line,) = [line for line in report.splitlines() if line.startswith(f"| {label}")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_results_alone_give_the_report_and_the_pictures(finished_run, tmp_path):
    shutil.copy(finished_run / "results.jsonl", tmp_path)
    write_report(tmp_path)
    assert (tmp_path / "report.md").read_text() == (finished_run / "report.md").read_text()
    for name in ("trajectory.png", "map.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)
        assert (tmp_path / name).read_bytes() == (finished_run / name).read_bytes()


def test_the_report_has_a_column_for_every_round_and_quotes_what_was_written(finished_run):
    report = (finished_run / "report.md").read_text()
    assert "| base | round 1 | round 2 |" in report
    assert "Stopped after round 2: all 2 rounds that were asked for are done." in report
    assert cells(report, "kept") == ["–", "6", "6"]
    for result in read_results(finished_run):
        assert f"{result['means']['trait_nats']:.4g}" in cells(report, "trait")[result["round"]]
    assert report.count("Completion:") == 12 and report.count("Round 1 (repetition") == 2


def test_a_change_is_paired_and_has_an_interval():
    base, first = record(0), record(1, trait_nats=[1.0, 4.0])
    # Changes 1 and 3: mean 2, standard error 1, t(0.975, 1) = 12.706.
    low, high = interval_of_mean(changes_since(base, first, "trait_nats"))
    assert low == pytest.approx(2 - 12.7062, abs=1e-3) and high == pytest.approx(2 + 12.7062, abs=1e-3)
    assert "+2 [-10.7, +14.7]" in markdown_report([base, first])


def test_perplexity_changes_by_a_ratio_of_geometric_means():
    base, first = record(0), record(1, perplexity=[4.0, 16.0])
    assert changes_since(base, first, "perplexity") == pytest.approx([math.log(2)] * 2)
    assert "×2 [×2, ×2]" in markdown_report([base, first])


def test_an_item_without_a_value_is_left_out_of_the_change():
    base, first = record(0), record(1)
    first["scores"]["perplexity"] = [None, 16.0]
    assert changes_since(base, first, "perplexity") == pytest.approx([math.log(2)])
    assert interval_of_mean([1.0]) is None


def test_samples_without_any_text_are_counted_in_the_report():
    base, first = record(0), record(1)
    first["n"]["perplexity"] = 1
    assert cells(markdown_report([base, first]), "samples with any text") == ["2 of 2", "1 of 2"]


def test_the_most_moved_signals_are_those_with_the_largest_effect_whatever_their_unit():
    rounds = [record(0), record(1, trait_nats=[0.1, 1.1], repetition=[0.5, 0.6]), record(2, perplexity=[8.0, 32.0])]
    assert most_moved(rounds) == ("repetition", "perplexity")
    assert movement(rounds, "allowed_answer_mass") == 0.0


def test_a_run_with_the_base_alone_can_be_drawn(finished_run, tmp_path):
    first_line = (finished_run / "results.jsonl").read_text().splitlines()[0]
    (tmp_path / "results.jsonl").write_text(first_line + "\n")
    write_report(tmp_path)
    assert "Under way, after the base." in (tmp_path / "report.md").read_text()
    assert (tmp_path / "map.png").read_bytes().startswith(PNG)


def test_a_text_of_the_model_is_no_markdown():
    report = markdown_report([record(0), record(1)])
    assert not re.search(r"^# not a title", report, re.MULTILINE)
    assert "    # not a title" in report


@pytest.mark.parametrize("text", ["", "not json\n", json.dumps({"round": 1}) + "\n", json.dumps([0]) + "\n"])
def test_results_that_are_damaged_are_named(tmp_path, text):
    (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"results\.jsonl"):
        write_report(tmp_path)


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.jsonl is missing; give the output_dir"):
        write_report(tmp_path)
