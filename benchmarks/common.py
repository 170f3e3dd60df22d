"""What every benchmark shares: the record of a machine, equal results, the command line."""

import argparse
import contextlib
import json
import logging
import os
import platform
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from records import RESULTS, results_file, write_record
from transformers import TrainerCallback

from alignkit.provenance import git_commit, package_versions

# What a benchmark or the page's script writes; a change there is none of what was measured.
GENERATED = ("benchmarks/results", "docs/benchmarks.md")


def origin() -> dict[str, Any]:
    """Where and with what a result was measured: machine, versions, commit, date."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": package_versions(),
        "cpu": _cpu_model(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _commit() -> str | None:
    """Of the checkout; a `-dirty` behind it says that files other than results were changed."""
    commit = git_commit()
    if commit is None or not commit.endswith("-dirty"):
        return commit
    others = [f":(top,exclude){path}" for path in GENERATED]
    command = ["git", "-C", str(Path(__file__).parent), "diff", "--quiet", "HEAD", "--", ":/", *others]
    return commit if subprocess.run(command, check=False).returncode else commit.removesuffix("-dirty")


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


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


def run_command(name: str, description: str, measure: Callable[[bool], dict[str, Any]]) -> None:
    """Parse the arguments, measure in an empty folder, and write the record under its name into the machine's file.

    Args:
        name (`str`): of the benchmark, its key in the file.
        description (`str`): for `--help`; its first line says in the record what was measured.
        measure: gives everything that was measured; its argument says whether to measure toy shapes.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="toy shapes; never written to benchmarks/results")
    parser.add_argument("--output", type=Path, help="JSON file; default benchmarks/results/<machine>.json")
    arguments = parser.parse_args()
    output = arguments.output.resolve() if arguments.output else None
    if arguments.quick and output and output.is_relative_to(RESULTS):
        parser.error(f"--output is {output}; the numbers of --quick mean nothing, so write them elsewhere")
    be_quiet()
    record: dict[str, Any] = {
        "benchmark": name,
        "about": description.partition("\n")[0],
        "command": f"python benchmarks/{name}.py",
        "quick": arguments.quick,
        **origin(),
    }
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        record |= measure(arguments.quick)
    record["minutes"] = round((time.monotonic() - start) / 60, 1)
    if output is None and arguments.quick:
        print(json.dumps(record, indent=1))
    else:
        output = output or results_file(record)
        write_record(record, output)
        print(f"written to {output}")


def be_quiet() -> None:
    """One thread, no progress bars, no log lines: in every process that measures."""
    # TRL sets the deprecated name in each of its configs, and PEFT reads it.
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    logging.getLogger("alignkit").setLevel(logging.ERROR)
