import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SOURCE = Path(__file__).parents[2] / "src"
GIB = 1 << 30


@pytest.fixture(autouse=True)
def benchmark_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_exponent_of_a_cost_that_doubles_with_the_square_is_two():
    from scaling_fits import power_law

    law = power_law([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0])
    assert law["exponent"] == pytest.approx(2) and law["factor"] == pytest.approx(3)
    assert law["standard_error"] == pytest.approx(0, abs=1e-6)


def test_the_standard_error_of_an_exponent_is_that_of_a_line():
    from scaling_fits import power_law

    # log2 costs 0, 2, 1 over log2 sizes 0, 1, 2: slope 1/2, residuals -1/2, 1, -1/2, so s² = 1.5 / (3 - 2), over 2.
    law = power_law([1, 2, 4], [1.0, 4.0, 2.0])
    assert (law["exponent"], law["standard_error"]) == pytest.approx((0.5, np.sqrt(1.5 / 2)))


def test_work_that_does_not_double_has_no_exponent():
    from scaling_fits import power_law

    assert power_law([100, 130, 160], [1.0, 5.0, 2.0]) is None


def test_the_memory_model_finds_what_stays_what_each_takes_and_what_each_pair_takes():
    from scaling_fits import memory_model

    sizes = [256, 512, 1024, 4096]
    model = memory_model(sizes, [10**9 + 5000 * size + 7 * size**2 for size in sizes])
    assert model["coefficients"] == pytest.approx([10**9, 5000, 7])
    assert model["largest_relative_error"] < 1e-9


def test_the_memory_model_takes_no_part_for_negative():
    from scaling_fits import memory_model

    model = memory_model([1, 2, 4], [100.0, 150.0, 160.0])  # a parabola through these bends down
    assert model["coefficients"][2] == 0 and min(model["coefficients"]) >= 0
    assert model["largest_relative_error"] > 0.05


def test_the_memory_model_has_the_least_relative_error():
    from scaling_fits import memory_model

    # Only c0 can serve what falls: (c0 / 2 - 1)² + (c0 / 1 - 1)² is least at 1.5 / 1.25; the mean would be 1.5.
    model = memory_model([1, 2], [2.0, 1.0])
    assert model["coefficients"] == pytest.approx([1.2, 0, 0])
    assert model["largest_relative_error"] == pytest.approx(0.4)


def test_a_size_that_breaks_is_told_as_taken_where_it_was_and_as_computed_between_and_beyond():
    from scaling_fits import memory_break

    # 1 GiB for each: 25 is the first whole number above 24 GiB, 32 the first doubling of 1.
    model = {"coefficients": [0.0, GIB, 0.0]}
    assert memory_break([1, 2, 4], [GIB, 2 * GIB, 4 * GIB], model, "counted") == {
        "size": 32,
        "how": "by the memory model",
        "up_to": 32,
    }
    assert memory_break([1, 8, 64], [GIB, 8 * GIB, 64 * GIB], model, "simulated")["size"] == 32
    # What was taken counts for more than what the model says of it.
    assert (
        memory_break([1, 8, 64], [GIB, 8 * GIB, 9 * GIB], {"coefficients": [0.0, 4 * GIB, 0.0]}, "counted")["size"]
        == 16
    )
    assert memory_break([8, 16, 32], [8 * GIB, 16 * GIB, 32 * GIB], model, "simulated")["how"] == "simulated"


def test_a_side_that_does_not_grow_breaks_nowhere_up_to_ten_doublings():
    from scaling_fits import time_break

    flat = {"exponent": 0.0, "standard_error": 0.0, "factor": 2.0}
    assert time_break([1, 2, 4], [2.0, 2.0, 2.0], flat) == {"size": None, "how": "by the power law", "up_to": 4096}
    growing = {"exponent": 1.0, "standard_error": 0.0, "factor": 1.0}
    assert time_break([1, 2, 4], [1.0, 2.0, 4.0], growing)["size"] == 1024  # the first doubling above 600 s


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_quick_curves_have_every_size_of_every_side_and_ours_does_less_work(tmp_path):
    output = tmp_path / "result.json"
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS / "scaling.py"), "--quick", "--output", str(output)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    record = json.loads(output.read_text())["scaling"]
    assert record["gpu"] is None
    curves = {curve["curve"]: curve["sides"] for curve in record["curves"]}
    assert len(curves) == 6
    for sides in curves.values():
        assert len(sides) >= 2
        for side in sides.values():
            assert [point["runs"] for point in side["points"]] == [2, 2, 2]
            assert all(point["flops"] > 0 and point["peak_bytes"] > 0 for point in side["points"])

    def flops(curve, side):
        return [point["flops"] for point in curves[curve][side]["points"]]

    # One more row of `score` for each head; a run of TRL's for each.
    ours, theirs = flops("heads", "alignkit"), flops("heads", "TRL, one run per head")
    assert ours[-1] < 1.1 * ours[0]
    assert theirs == [theirs[0], 2 * theirs[0], 4 * theirs[0]]
    assert all(
        map(float.__lt__, *[list(map(float, flops("completions of a prompt", s))) for s in ("shared", "not shared")])
    )
    # 2 + 3 projections of the head in tiles, 2 + 1 in whole logits.
    pairs = zip(flops("vocabulary", "fused"), flops("vocabulary", "whole logits"), strict=True)
    assert [fused / whole for fused, whole in pairs] == pytest.approx([5 / 3] * 3)
    assert {side["memory"]["how"] for side in curves["vocabulary"].values()} == {"simulated"}
    logits = curves["vocabulary"]["whole logits"]["memory"]["peak_bytes"]
    assert logits["2048"] > 1.8 * logits["1024"]
