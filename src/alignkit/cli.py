"""The command line: `alignkit probe`, `barrier`, `experiment`, `report` and `env`.

Heavy packages are imported inside the commands.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence

from alignkit._version import __version__
from alignkit.evaluation.report_command import add_report_arguments, run_report
from alignkit.experiments.command import add_experiment_commands
from alignkit.kl_barrier.rounds.command import add_barrier_commands
from alignkit.provenance import package_versions
from alignkit.reward_model.probe_command import add_probe_arguments, run_probe

BAD_INPUT = 2  # argparse's own exit code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 with one line on standard error for bad input."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except (OSError, ValueError) as error:
        # Everywhere in alignkit these two say what was wrong, which value, and what to do. Others are bugs: traceback.
        print(f"alignkit {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run` to the function that carries it out."""
    parser = argparse.ArgumentParser(prog="alignkit", description="Align language models beyond what TRL has.")
    parser.add_argument("--version", action="version", version=f"alignkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    probe = commands.add_parser("probe", help="score every head of a reward model at every token of a text")
    add_probe_arguments(probe)
    probe.set_defaults(run=run_probe)
    barrier = commands.add_parser("barrier", help="rounds of self-training under the KL barrier, and their report")
    add_barrier_commands(barrier)
    experiment = commands.add_parser("experiment", help="many trainings with their settings, each in a process")
    add_experiment_commands(experiment)
    report = commands.add_parser("report", help="what the results of an experiment show: Markdown, and one HTML file")
    add_report_arguments(report)
    report.set_defaults(run=run_report)
    environment = commands.add_parser("env", help="print the versions that a bug report needs")
    environment.set_defaults(run=run_env)
    return parser


def run_env(args: argparse.Namespace) -> None:
    """Print the versions of alignkit, Python and the packages below it, and the device. Imports none of them."""
    rows = {"alignkit": __version__, "python": platform.python_version(), "platform": platform.platform()}
    rows |= package_versions()
    rows["device"] = describe_device()
    for name, value in rows.items():
        print(f"{name:<12} {value}")


def describe_device() -> str:
    """The NVIDIA GPUs that the driver reports, else the CPU. Whether torch can use them is not asked."""
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return "; ".join(answer.stdout.splitlines())
        return f"nvidia-smi failed with exit code {answer.returncode}: {' '.join(answer.stdout.split())}"
    return f"cpu, {platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
