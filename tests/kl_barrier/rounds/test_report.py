"""The report and the pictures, made from `results.jsonl` alone."""

import json
import math
import re
import shutil

import pytest

from alignkit.kl_barrier.rounds.report import markdown_report, read_results, write_report
from alignkit.kl_barrier.rounds.signals import (
    LARGEST_PERPLEXITY,
    SIGNALS,
    changes_since,
    interval_of_mean,
    most_moved,
    movement,
)

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


def damaged(record, path, value=None):
    """The record with a part, given by its path, changed; taken out for None."""
    *parts, last = path.split(".")
    for part in parts:
        record = record[part]
    if value is None:
        del record[last]
    else:
        record[last] = value


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("settings", None, "it has no 'settings'"),
        ("settings", [], r"its 'settings' is \[\]"),
        ("settings.model", None, "its 'settings' do not name the model"),
        ("settings.model.name", None, "its 'settings' do not name the model"),
        ("means", None, "it has no 'means'"),
        ("means.repetition", None, "it has no 'repetition' in its scores, means and n"),
        ("scores.trait_nats", None, "it has no 'trait_nats' in its scores, means and n"),
        ("scores.trait_nats", [1.0], "its scores are not of the same items as those of the base"),
        ("scores.trait_nats", ["a", 1.0], "its scores of 'trait_nats' are no list of numbers"),
        ("n.held_out_nll_nats", None, "it has no 'held_out_nll_nats'"),
        ("samples", [], "its 'samples' are not those that its scores are of"),
        ("proposals", {"kept": 3}, r"its 'proposals' is \{'kept': 3\}"),
        ("proposals.quoted", None, "its 'proposals' is"),
        ("git_commit", None, "it has no 'git_commit'"),
        ("versions", None, "it has no 'versions'"),
        ("stop_reason", None, "it has no 'stop_reason'"),
    ],
)
def test_a_line_that_is_no_whole_record_is_named_with_its_fault(finished_run, tmp_path, path, value, named):
    records = read_results(finished_run)
    damaged(records[2], path, value)
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(
        ValueError, match=rf"results\.jsonl, line 3 is damaged: {named}.*; start the run of this folder"
    ):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
        ("gpt2", "gpt2"),
        ("/home/me/models/stories260K/", "stories260K"),
        ("./stories260K", "stories260K"),
        ("../a/b/c", "c"),
        ("runs/a/model", "model"),
        ("C:\\models\\tiny", "tiny"),
        ("", "a model built in memory"),
    ],
)
def test_the_title_names_a_model_and_no_folder_of_the_machine(name, shown):
    base = record(0)
    base["settings"]["model"]["name"] = name
    assert markdown_report([base]).splitlines()[0] == f"# Rounds of {shown}"


def test_the_largest_perplexity_can_be_reported_and_drawn(tmp_path):
    base, first = record(0), record(1, perplexity=[LARGEST_PERPLEXITY, 8.0])
    base["stop_reason"] = None
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (base, first)))
    write_report(tmp_path)
    # The log of one item rises by ln 1e100 - ln 2, that of the other not at all; the interval's end is cut.
    assert "×7.07e+49 [×0, ×1e+100]" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "trajectory.png").read_bytes().startswith(PNG)


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.jsonl is missing; give the output_dir"):
        write_report(tmp_path)
