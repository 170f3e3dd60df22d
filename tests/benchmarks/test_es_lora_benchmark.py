import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SOURCE = Path(__file__).parents[2] / "src"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_quick_benchmark_records_every_claim_after_finding_the_same_tokens(tmp_path):
    output = tmp_path / "result.json"
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS / "es_lora.py"), "--quick", "--output", str(output)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    record = json.loads(output.read_text())["es_lora"]
    claims = {claim["claim"]: claim for claim in record["claims"]}
    # Against PEFT's two ways, the base, memory, stragglers, noise and update, and two ways of decoding.
    assert len(claims) == len(record["claims"]) == 2 + 1 + 1 + 2 + 1 + 2
    for name, claim in claims.items():
        relation, target = claim["target"].split()
        assert claim["min"] <= claim["median"] <= claim["max"]
        assert claim["met"] is (
            claim["median"] <= float(target) if relation == "<=" else claim["median"] >= float(target)
        )
        if name.startswith("share"):
            assert 0 <= claim["median"] < 1
    (steps,) = (claim["raw"]["seconds"] for name, claim in claims.items() if "noise" in name)
    assert len(steps) == 2 and all(step["noise"] > 0 and step["generate"] > 0 for step in steps)
