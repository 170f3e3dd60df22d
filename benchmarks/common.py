"""What every benchmark shares: the record of a machine, claims, equal results, the command line."""

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
import transformers
from transformers import TrainerCallback

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "alignkit")


def origin() -> dict[str, Any]:
    """Where and with what a result was measured: machine, versions, commit, date."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("describe", "--always", "--dirty", "--abbrev=40"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "cpu": _cpu_model(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


# ---- Claims ----


@dataclass(frozen=True)
class Claim:
    """A number, what it is compared with, and whether it holds.

    Attributes:
        name (`str`): what is claimed, in words.
        values (`list[float]`): the number, once per paired run; their median is the result.
        relation, target: how the median must stand to what.
        limit (`float`, *optional*): what no implementation can pass, and `limit_is` why.
        raw (`dict`): every time that was taken.
        also (`dict`): further numbers that are no claim.
    """

    name: str
    values: list[float]
    relation: Literal["<=", ">="]
    target: float
    limit: float | None
    limit_is: str
    setting: dict[str, Any]
    raw: dict[str, Any] = field(default_factory=dict)
    also: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        median = statistics.median(self.values)
        if not math.isfinite(median):
            raise ValueError(f"{self.name}: the median of {self.values} is not a number")
        return {
            "claim": self.name,
            "target": f"{self.relation} {self.target}",
            "median": median,
            "met": median <= self.target if self.relation == "<=" else median >= self.target,
            "min": min(self.values),
            "max": max(self.values),
            "runs": len(self.values),
            "limit": self.limit,
            "median_over_limit": median / self.limit if self.limit else None,
            "limit_is": self.limit_is,
            "setting": self.setting,
            "also": self.also,
            "raw": {"values": self.values, **self.raw},
        }

    def print(self) -> None:
        """One line: the number and its spread, the limit, their ratio, the target, whether it holds."""
        result = self.record()
        met = "met" if result["met"] else "MISSED"
        spread = f"({result['min']:.3g} to {result['max']:.3g})"
        limit = f"limit {self.limit:.4g}, of it {result['median_over_limit']:.3f}" if self.limit else ""
        print(f"{result['median']:7.3f} {spread:18} {limit:28} {result['target']:9} {met:6} {self.name}", flush=True)


# ---- The same result first ----


class FirstGradient(TrainerCallback):
    """Keeps the gradient of the first step, all trained parameters in one vector."""

    gradient: torch.Tensor | None = None

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        if self.gradient is None:
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            self.gradient = torch.cat([parameter.grad.flatten() for parameter in trained])


def require_equal(what: str, first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-5) -> float:
    """Largest difference over the largest entry.

    Raises:
        RuntimeError: the sides do not compute the same thing, so that comparing their times would mean nothing.
    """
    difference = ((first - second).abs().max() / second.abs().max()).item()
    if not difference <= tolerance:
        raise RuntimeError(f"{what}: the relative difference is {difference}; it must be at most {tolerance}")
    return difference


# ---- The command ----


def run_command(name: str, description: str | None, measure: Callable[[bool], dict[str, Any]]) -> None:
    """Parse the arguments, measure in an empty folder, and write the record under its name into the machine's file.

    Args:
        name (`str`): of the benchmark, its key in the file.
        description (`str`): for `--help`.
        measure: gives everything that was measured; its argument says whether to measure toy shapes.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="toy shapes; never written to benchmarks/results")
    parser.add_argument("--output", type=Path, help="JSON file; default benchmarks/results/<machine>.json")
    arguments = parser.parse_args()
    output = arguments.output.resolve() if arguments.output else None
    if arguments.quick and output and output.is_relative_to(RESULTS):
        parser.error(f"--output is {output}; the numbers of --quick mean nothing, so write them elsewhere")
    if output is None and not arguments.quick:
        gpu = torch.cuda.get_device_name().lower().replace(" ", "-") if torch.cuda.is_available() else None
        output = RESULTS / f"{gpu or f'cpu-{os.cpu_count()}-cores'}.json"
    be_quiet()
    record = {"benchmark": name, "quick": arguments.quick, **origin()}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        record |= measure(arguments.quick)
    if output is None:
        print(json.dumps(record, indent=1))
    else:
        write(record, output)
        print(f"written to {output}")


def be_quiet() -> None:
    """One thread, no progress bars, no log lines: in every process that measures."""
    # TRL sets the deprecated name in each of its configs, and PEFT reads it.
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()


def write(record: dict[str, Any], path: Path) -> None:
    """Put a benchmark's record into a machine's file, beside those of the other benchmarks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = json.loads(path.read_text()) if path.exists() else {}
    records[record["benchmark"]] = record
    path.write_text(json.dumps(records, indent=1) + "\n")
