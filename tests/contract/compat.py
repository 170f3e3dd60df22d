"""`make compat`: the contract tests with the lowest and with the newest versions that pyproject.toml allows.

    python tests/contract/compat.py [--only floor|newest] [--torch VERSION]

Each end gets a virtual environment in `.compat/`, is tested there, and has its column in the table of
`docs/support.md`; the other end's column stays. Exit code 1 if a test fails.

torch is the one of constraints.txt in both, unless `--torch` says another, such as the lowest one, 2.10.0: pip takes a
build for CUDA, of several GB, wherever the index has no other.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
import tomllib
import venv
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
ENDS = {"floor": "lowest allowed", "newest": "newest allowed"}
TESTS = [
    "tests/contract",
    "tests/first_release",
    "tests/dpo/test_trainer_equals_parent.py",
    "tests/kl_barrier/test_trainer_equals_parent.py::test_weight_0_trains_bit_identically_to_the_parent",
    "tests/reward_model/test_trainer_equals_parent.py",
    "tests/es_lora/test_trainer_update.py",
]
SHOWN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "scipy", "bitsandbytes")
RESULTS = ROOT / "benchmarks" / "results" / "compatibility.json"
PAGE = ROOT / "docs" / "support.md"
BEGIN, END = "<!-- written by tests/contract/compat.py -->\n", "<!-- end -->\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="The contract tests at both ends of the allowed versions.")
    parser.add_argument("--only", choices=ENDS, help="one end alone")
    parser.add_argument("--torch", metavar="VERSION", default=pinned_torch(), help="default: %(default)s")
    args = parser.parse_args()
    found = {}
    for end in [args.only] if args.only else ENDS:
        found[end] = run_tests(end, prepare(end, args.torch))
        print(f"{end}: {found[end]['passed']} passed, {found[end]['failed']} failed", flush=True)
        # Read here, because the other end may have been tested meanwhile.
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        results |= found
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        write_page(results)
    return int(any(result["failed"] or not result["passed"] for result in found.values()))


def pinned_torch() -> str:
    """Version of torch in constraints.txt."""
    [version] = re.findall(r"(?m)^torch==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    return version


def lowest() -> dict[str, str]:
    """Package -> the lowest version that pyproject.toml allows, for those that have one: `{"trl": "1.16", ...}`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = (re.match(r"([\w-]+)>=([\d.]+)", requirement) for requirement in project["dependencies"])
    return {match[1]: match[2] for match in found if match}


def prepare(end: str, torch: str) -> Path:
    """The Python of the environment of an end, with alignkit from this checkout and its packages."""
    folder = ROOT / ".compat" / end
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        (folder.parent / ".gitignore").write_text("*\n", encoding="utf-8")
    if end == "floor":
        asked = [f"{package}=={version}" for package, version in lowest().items() if package != "torch"]
    else:
        asked = ["--upgrade", "--upgrade-strategy", "eager"]
    # In one command, so that nothing else decides on another torch.
    install = ["install", "--quiet", *asked, f"torch=={torch}", "-e", ".", "pytest", "pytest-timeout"]
    subprocess.run([python, "-m", "pip", *install], cwd=ROOT, check=True)
    return python


def run_tests(end: str, python: Path) -> dict:
    """Counts of the tests' outcomes and the versions that they ran with."""
    report = ROOT / ".compat" / f"{end}.xml"
    report.unlink(missing_ok=True)
    # An old release may warn of what a newer one has mended; what is new must not warn.
    warned = ["-W", "default"] if end == "floor" else []
    command = [python, "-m", "pytest", "-q", "--tb=short", *warned, f"--junit-xml={report}", *TESTS]
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    suite = ElementTree.parse(report).getroot().find("testsuite")
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    return {
        "passed": counts["tests"] - failed - counts["skipped"],
        "failed": failed,
        "skipped": counts["skipped"],
        "seconds": round(time.monotonic() - began),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions_in(python),
    }


def versions_in(python: Path) -> dict[str, str]:
    """Version of each shown package in an environment."""
    code = "import json, sys; from importlib.metadata import version as v; print(json.dumps([*map(v, sys.argv[1:])]))"
    answer = subprocess.run([python, "-c", code, *SHOWN], check=True, capture_output=True, text=True).stdout
    return dict(zip(SHOWN, json.loads(answer), strict=True))


def write_page(results: dict) -> None:
    """Put the table between the two marks of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    PAGE.write_text(before + "\n" + table(results) + "\n" + after, encoding="utf-8")


def table(results: dict) -> str:
    """One column for each end, one row for each package, and what was not tested."""
    ends = [end for end in ENDS if end in results]
    rows = [["", *(ENDS[end] for end in ends)], ["---"] * (len(ends) + 1)]
    rows += [[name, *(results[end]["versions"][name] for end in ends)] for name in SHOWN]
    rows.append(["Python", *(results[end]["python"] for end in ends)])
    for name in ("passed", "failed", "skipped"):
        rows.append([f"tests {name}", *(str(results[end][name]) for end in ends)])
    rows.append(["date", *(results[end]["date"] for end in ends)])
    rows.append(["machine", *(results[end]["machine"] for end in ends)])
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    tested = {results[end]["versions"]["torch"].split("+")[0] for end in ends}
    bound = lowest()["torch"]
    if not any(version == bound or version.startswith(f"{bound}.") for version in tested):
        way = f"`--torch {bound}.0` does, where the index has a build of it for the CPU"
        text += f"\nNot tested: torch {bound}; {way}.\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
