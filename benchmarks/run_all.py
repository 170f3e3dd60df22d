"""Run every benchmark of this folder, one process each, one after another, and write the page of their results.

    python benchmarks/run_all.py                          # all of it, into benchmarks/results and docs/benchmarks.md
    python benchmarks/run_all.py --only scaling plan      # these, beside what is there of the others
    python benchmarks/run_all.py --quick                  # do they run? toy shapes; writes nothing that stays

A benchmark is a file that calls `run_command`. One that fails loses nothing of the others: what it measured before
stays on the page with the date and the commit of that run. The exit code is 1 if any failed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from records import read_records
from write_page import PAGE, write_page

FOLDER = Path(__file__).resolve().parent
CALL = re.compile(r"^    run_command\(\"(\w+)\"", re.MULTILINE)
# More than any takes, so that one which hangs does not keep the others from running.
LIMIT_S = 3600.0


@dataclass(frozen=True)
class Outcome:
    """How the process of a benchmark ended; `error` is None when it wrote its record."""

    name: str
    minutes: float
    error: str | None


def benchmark_names(folder: Path = FOLDER) -> list[str]:
    """Of the files that call `run_command`, sorted."""
    return sorted(path.stem for path in folder.glob("*.py") if CALL.search(path.read_text(encoding="utf-8")))


def run_benchmark(path: Path, arguments: list[str], *, limit_s: float = LIMIT_S) -> Outcome:
    """One process; what it prints appears as it comes."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    start = time.monotonic()
    try:
        code = subprocess.run(
            [sys.executable, str(path), *arguments], env=environment, timeout=limit_s, check=False
        ).returncode
        error = None if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        error = f"stopped after {limit_s / 60:g} minutes"
    return Outcome(path.stem, (time.monotonic() - start) / 60, error)


def run_all(names: list[str], *, quick: bool, folder: Path = FOLDER) -> list[Outcome]:
    """All of these; quick records go to a folder that does not stay, and must be there in the end."""
    outcomes = []
    with tempfile.TemporaryDirectory() as elsewhere:
        output = Path(elsewhere) / "quick.json"
        for name in names:
            print(f"== {name}", flush=True)
            outcome = run_benchmark(folder / f"{name}.py", ["--quick", "--output", str(output)] if quick else [])
            if quick and outcome.error is None and name not in read_records(output):
                outcome = Outcome(name, outcome.minutes, "no record")
            outcomes.append(outcome)
    return outcomes


def report(outcomes: list[Outcome]) -> int:
    """Print how long each took and what failed.

    Returns:
        `int`: 1 if any failed, else 0.
    """
    for outcome in outcomes:
        print(f"{outcome.minutes:6.1f} min  {outcome.name}{f': {outcome.error}' if outcome.error else ''}")
    failed = [outcome.name for outcome in outcomes if outcome.error]
    print(f"{sum(outcome.minutes for outcome in outcomes):6.1f} min  in all, {len(failed)} of {len(outcomes)} failed")
    return int(bool(failed))


def main() -> int:
    names = benchmark_names()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="toy shapes; what is there of full runs stays as it is")
    arguments = parser.parse_args()
    code = report(run_all(arguments.only, quick=arguments.quick))
    if not arguments.quick:
        write_page()
        print(f"written to {PAGE}")
    return code


if __name__ == "__main__":
    sys.exit(main())
