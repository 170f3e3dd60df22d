import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmark_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def new_claim(values, target, **settings):
    from claims import Claim

    arguments = {
        "name": "time, |a / b|",
        "measured_in": "CPU time",
        "relation": ">=",
        "limit": 4.0,
        "limit_is": "four texts against one",
        "setting": {},
        "if_missed": "the base is no faster",
    }
    return Claim(values=values, target=target, **arguments | settings)


def new_record(*claims, **more):
    return {
        "benchmark": "one",
        "about": "What is compared.",
        "command": "python benchmarks/one.py",
        "quick": False,
        "date": "2026-11-22T01:50:43+00:00",
        "commit": "00f4f8c5904474133e744ec369fe26b188d6c9cd",
        "python": "3.11.7",
        "versions": {"torch": "2.13.0"},
        "cpu": "A processor",
        "cpu_cores": 2,
        "threads": 1,
        "gpu": None,
        "load_average": [0.25, 0.5, 1.0],
        "claims": [claim.record() for claim in claims],
        "minutes": 12.34,
    } | more


def test_the_page_is_what_the_script_makes_of_the_results():
    from records import machines
    from write_page import PAGE, page

    assert PAGE.read_text() == page(machines()), "python benchmarks/write_page.py writes it"


def test_other_results_in_the_folder_are_no_machine(tmp_path):
    from records import machines, write_record

    write_record(new_record(), tmp_path / "cpu-2-cores.json")
    (tmp_path / "faults.json").write_text(json.dumps({"date": "2026-11-22", "rows": []}))
    assert {name: list(records) for name, records in machines(tmp_path).items()} == {"cpu-2-cores": ["one"]}


def test_a_row_has_the_median_its_range_the_limit_the_target_and_why_it_was_missed():
    from write_page import page

    text = page({"cpu-2-cores": {"one": new_record(new_claim([1.0, 3.0, 2.0], 2.5), new_claim([3.0], 2.5))}})
    what, limit = "time, &#124;a / b&#124;", "4 (a)"
    assert f"| {what} | 2.00 (1.00 to 3.00, n 3) | CPU time | {limit} | 0.50 | at least 2.5 | **missed** (b) |" in text
    assert f"| {what} | 3.00 (n 1) | CPU time | {limit} | 0.75 | at least 2.5 | met |" in text
    assert "- (a) four texts against one\n- (b) the base is no faster\n" in text
    assert "| one | `python benchmarks/one.py` | 2026-11-22 | `00f4f8c590` | 0.2 | 12.3 | 1 of 2 |" in text


def test_a_claim_without_a_limit_leaves_its_columns_empty():
    from write_page import page

    claim = new_claim([0.1], 0.15, relation="<=", limit=None, limit_is="none")
    assert "| 0.100 (n 1) | CPU time |  |  | at most 0.15 | met |" in page({"m": {"one": new_record(claim)}})


def test_a_record_without_targets_refers_to_the_file_of_results():
    from write_page import page

    text = page({"m": {"one": new_record()}})
    assert text.endswith("No targets are set for it; its numbers stand in the file of results.\n")
    assert "| 12.3 |  |\n" in text


def test_a_claim_says_why_it_was_missed_only_when_it_was():
    from claims import NO_REASON

    assert new_claim([3.0], 2.5).record()["why_missed"] is None
    assert new_claim([2.0], 2.5).record()["why_missed"] == "the base is no faster"
    assert new_claim([2.0], 2.5, if_missed=NO_REASON).record()["why_missed"] == NO_REASON


def test_a_claim_whose_median_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="is not a number"):
        new_claim([float("nan")], 1.0).record()


def test_a_curve_has_its_points_its_exponents_and_the_sizes_that_break():
    from write_page import page

    point = {"size": 2, "median_s": 0.5, "min_s": 0.4, "max_s": 0.6, "runs": 5, "flops": 10, "peak_bytes": 20}
    side = {
        "points": [point, point | {"size": 4, "median_s": 1.0}],
        "time_by_size": {"exponent": 1.0, "standard_error": 0.04, "factor": 0.25},
        "time_by_work": None,
        "time_break": {"size": None, "how": "by the power law", "up_to": 4096},
        "memory": {
            "how": "counted",
            "setting": "the steps above",
            "peak_bytes": {"2": 20, "4": 20},
            "break": {"size": 65536, "how": "by the memory model", "up_to": 65536},
        },
    }
    slow = side | {"points": [point | {"median_s": 1.5}, point | {"size": 4, "median_s": 4.0}]}
    curve = {"curve": "heads", "about": "a step", "measured_in": "CPU time", "sides": {"ours": side, "theirs": slow}}
    limits = {"memory_bytes": 24 << 30, "time_s": 600.0}
    text = page({"m": {"one": new_record(curves=[curve], limits=limits)}})
    assert "| size | ours | ms each | theirs | ms each | theirs / ours |\n|---|---|---|---|---|---|\n" in text
    assert "| 4 | 1 (0.4 to 0.6, n 5) | 250 | 4 (0.4 to 0.6, n 5) | 1e+03 | 4.00 |" in text
    assert "| side | time by size | time by operations | above 600 s | above 24 GiB |" in text
    broken = "not up to 4,096, by the power law | 65,536, by the memory model |"
    assert f"| ours | 1.00 ± 0.04 | operations hardly grow | {broken}" in text
    assert "Memory of ours and of theirs: counted, the steps above." in text


def test_a_record_is_put_beside_those_of_other_benchmarks(tmp_path):
    from records import read_records, write_record

    path = tmp_path / "results" / "machine.json"
    write_record(new_record(), path)
    write_record(new_record(benchmark="two"), path)
    write_record(new_record(minutes=1.0), path)
    assert {name: record["minutes"] for name, record in read_records(path).items()} == {"one": 1.0, "two": 12.34}
    assert list(json.loads(path.read_text())) == ["one", "two"]
    assert [file.name for file in path.parent.iterdir()] == ["machine.json"]


def test_the_file_of_a_machine_has_the_name_of_its_gpu_or_the_number_of_its_cores():
    from records import results_file

    assert results_file(new_record()).name == "cpu-2-cores.json"
    assert results_file(new_record(gpu="NVIDIA H100 80GB")).name == "nvidia-h100-80gb.json"
