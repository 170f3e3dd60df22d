import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SOURCE = Path(__file__).parents[2] / "src"


def run_quick(output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "reward_model.py"), "--quick", "--output", str(output)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.slow
def test_the_quick_benchmark_records_every_claim_with_its_origin_and_all_raw_numbers(tmp_path):
    result = run_quick(tmp_path / "result.json")
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "result.json").read_text())["reward_model"]

    assert record["quick"] is True
    assert {"torch", "transformers", "trl", "alignkit"} <= set(record["versions"])
    assert {"date", "commit", "cpu", "cpu_cores", "threads", "gpu", "load_average"} <= set(record)
    assert len(record["claims"]) == 6
    for claim in record["claims"]:
        values = claim["raw"]["values"]
        relation, target = claim["target"].split()
        assert claim["min"] <= claim["median"] <= claim["max"]
        assert (claim["min"], claim["max"], claim["runs"]) == (min(values), max(values), len(values))
        assert claim["met"] is (
            claim["median"] <= float(target) if relation == "<=" else claim["median"] >= float(target)
        )
        assert claim["limit"] >= 0 and claim["limit_is"] and claim["setting"]["model"]
    # 4 positives against 12 negatives are 48 comparisons: 96 texts for TRL, 16 for alignkit.
    assert record["claims"][2]["setting"]["comparisons"] == 48
    assert record["claims"][2]["limit"] == 6.0
    # What has no noise can be asserted at any shape.
    assert record["claims"][3]["median"] < 0.5
    assert record["claims"][5]["met"]
    shapes = record["small_shapes" if record["gpu"] is None else "gpu_shapes"]
    assert set(shapes) == {"Qwen2.5-0.5B", "Gemma-3-270m"}


@pytest.mark.slow
def test_the_quick_benchmark_refuses_to_write_among_the_results():
    result = run_quick(BENCHMARKS / "results" / "quick.json")
    assert result.returncode == 2
    assert "write them elsewhere" in result.stderr
