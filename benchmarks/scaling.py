"""Scaling curves: cost against work, its exponent, and the first size at which the design breaks.

    python benchmarks/scaling.py              # all of it, 25 minutes; writes benchmarks/results/<machine>.json
    python benchmarks/scaling.py --quick      # does it run? toy shapes, its numbers mean nothing

Heads, completions of a prompt, the vocabulary, the population and the length of a row grow, one at a time, each beside
the way without the design. A point is a step of real trainers in turns (median, range), with its floating-point
operations as torch dispatches them and its peak memory. All of it is measured on the CPU, also where there is a GPU.
README.md beside this file says how a break is found.
"""

import os
import statistics
from typing import Any

# Set before torch and the Hub client are imported, because they read them then.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from common import run_command
from scaling_curves import Curve, Simulated, curves
from scaling_fits import MEMORY_LIMIT_BYTES, TIME_LIMIT_S, memory_break, memory_model, power_law, time_break
from scaling_workloads import FULL, QUICK, Point
from timing import seconds


def measure_curve(curve: Curve) -> dict[str, Any]:
    """All points of all sides, and what they say."""
    measured: dict[str, list[Point]] = {}
    for size in curve.sizes:
        for name, point in curve.measure(size).items():
            measured.setdefault(name, []).append(point)
            _print(curve.name, size, name, point)
    sides = {name: _side(curve.sizes, points) for name, points in measured.items()}
    if curve.simulated:
        for name, memory in _simulated(curve.sizes, curve.simulated).items():
            sides[name]["memory"] = memory
    return {"curve": curve.name, "about": curve.about, "measured_in": "CPU time", "sides": sides}


def _print(curve: str, size: int, side: str, point: Point) -> None:
    times = seconds(point.times)
    spread = f"({min(times):.3g} to {max(times):.3g})"
    rate = f"{point.flops:.3g} operations, {point.peak_bytes / 2**20:.0f} MiB"
    print(f"{statistics.median(times):9.4g} s {spread:22} {rate:38} {curve} {size:,}: {side}", flush=True)


def _side(sizes: tuple[int, ...], points: list[Point]) -> dict[str, Any]:
    medians = [statistics.median(seconds(point.times)) for point in points]
    law = power_law(sizes, medians)
    assert law is not None  # the sizes of a curve are doublings
    return {
        "points": [_point(size, point) for size, point in zip(sizes, points, strict=True)],
        "time_by_size": law,
        "time_by_work": power_law([point.flops for point in points], medians),
        "time_break": time_break(sizes, medians, law),
        "memory": _memory("counted", "the steps above", sizes, [point.peak_bytes for point in points]),
    }


def _point(size: int, point: Point) -> dict[str, Any]:
    times = seconds(point.times)
    return {
        "size": size,
        "median_s": statistics.median(times),
        "min_s": min(times),
        "max_s": max(times),
        "runs": len(times),
        "flops": point.flops,
        "peak_bytes": point.peak_bytes,
        "raw": {"wall_s": point.times.wall_s, "cpu_s": point.times.cpu_s},
    }


def _simulated(sizes: tuple[int, ...], simulated: Simulated) -> dict[str, dict[str, Any]]:
    """Memory of the first, the middle and the last size: as many as the model has terms."""
    taken = (sizes[0], sizes[len(sizes) // 2], sizes[-1])
    return {
        name: _memory("simulated", simulated.setting, taken, [bytes_at(size) for size in taken])
        for name, bytes_at in simulated.sides.items()
    }


def _memory(how: str, setting: str, sizes: tuple[int, ...], peak_bytes: list[int]) -> dict[str, Any]:
    model = memory_model(sizes, peak_bytes)
    return {
        "how": how,
        "setting": setting,
        "peak_bytes": dict(zip(map(str, sizes), peak_bytes, strict=True)),
        "model": model,
        "break": memory_break(sizes, peak_bytes, model, how),
    }


def measure(quick: bool) -> dict[str, Any]:
    """All curves as one record."""
    limits = {"memory_bytes": MEMORY_LIMIT_BYTES, "time_s": TIME_LIMIT_S}
    return {
        "claims": [],
        "limits": limits,
        "curves": [measure_curve(curve) for curve in curves(QUICK if quick else FULL)],
    }


if __name__ == "__main__":
    run_command("scaling", __doc__, measure)
