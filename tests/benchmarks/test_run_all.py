import os
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

FINE = """
import json, sys
def run_command(name):
    assert sys.argv[1:3] == ["--quick", "--output"]
    open(sys.argv[3], "w").write(json.dumps({name: {"benchmark": name}}))
if __name__ == "__main__":
    run_command("fine")
"""
FAILS = FINE.replace('    assert sys.argv[1:3] == ["--quick", "--output"]', "    sys.exit(3)").replace("fine", "fails")
WRITES_NOTHING = """
def run_command(name):
    pass
if __name__ == "__main__":
    run_command("writes_nothing")
"""


@pytest.fixture(autouse=True)
def benchmark_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def folder(tmp_path):
    scripts = {"fine": FINE, "fails": FAILS, "writes_nothing": WRITES_NOTHING, "no_benchmark": "print('a module')"}
    for name, text in scripts.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_a_benchmark_is_a_file_that_calls_run_command(folder):
    from run_all import benchmark_names

    assert benchmark_names(folder) == ["fails", "fine", "writes_nothing"]
    assert {"reward_model", "kl_barrier", "es_lora", "dpo", "plan", "scaling"} <= set(benchmark_names())
    assert not {"common", "run_all", "timing", "scaling_fits"} & set(benchmark_names())


def test_a_benchmark_that_fails_keeps_no_other_from_running_and_is_in_the_exit_code(folder, capfd):
    from run_all import benchmark_names, report, run_all

    outcomes = run_all(benchmark_names(folder), quick=True, folder=folder)
    assert [(outcome.name, outcome.error) for outcome in outcomes] == [
        ("fails", "exit code 3"),
        ("fine", None),
        ("writes_nothing", "no record"),
    ]
    assert report(outcomes) == 1
    assert "2 of 3 failed" in capfd.readouterr().out
    assert report(outcomes[1:2]) == 0


def test_a_quick_run_leaves_the_results_and_the_page_as_they_are(folder):
    from records import RESULTS
    from run_all import run_all
    from write_page import PAGE

    def written():
        return {path: os.stat(path).st_mtime_ns for path in (PAGE, *RESULTS.iterdir())}

    before = written()
    run_all(["fine"], quick=True, folder=folder)
    assert written() == before


def test_a_benchmark_that_hangs_is_stopped(tmp_path):
    from run_all import run_benchmark

    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
    outcome = run_benchmark(tmp_path / "hangs.py", [], limit_s=0.3)
    assert outcome.error == "stopped after 0.005 minutes"
    assert outcome.minutes < 0.5


def test_an_unknown_name_is_refused_with_the_names_there_are(monkeypatch, capsys):
    import run_all

    monkeypatch.setattr(sys, "argv", ["run_all.py", "--only", "dop"])
    with pytest.raises(SystemExit, match="2"):
        run_all.main()
    assert "'dpo'" in capsys.readouterr().err
