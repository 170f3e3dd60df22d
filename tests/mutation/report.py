"""Writes what the last `mutmut run` found, module by module, into benchmarks/results/mutation.json.

    python -m mutmut run > mutation.log && python tests/mutation/report.py

mutmut keeps its verdicts in mutants/; only the modules that it has finished are written, the others stay as they
were. With `--survivors` the changed lines of each mutant that no test noticed are printed, to be judged one by one.
"""

import argparse
import json
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

RESULTS = Path(__file__).parents[2] / "benchmarks/results/mutation.json"


def verdicts(mutants: Path) -> dict[str, dict[str, str]]:
    """The verdict on every mutant by its name, of every module that mutmut has finished."""
    found = {}
    for path in sorted((mutants / "src").rglob("*.meta")):
        codes = json.loads(path.read_text())["exit_code_by_key"]
        module = path.relative_to(mutants / "src").as_posix().removesuffix(".py.meta").replace("/", ".")
        if codes and None not in codes.values():
            found[module] = {name: status_by_exit_code[code] for name, code in codes.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mutants", type=Path, nargs="?", default=Path("mutants"), help="folder of mutmut")
    parser.add_argument("--survivors", action="store_true", help="print the changes that no test noticed")
    arguments = parser.parse_args()
    modules = json.loads(RESULTS.read_text())["modules"] if RESULTS.exists() else {}
    for module, by_name in verdicts(arguments.mutants).items():
        counts = Counter(by_name.values())
        left = sorted(name for name, verdict in by_name.items() if verdict not in ("killed", "timeout"))
        modules[module] = {
            "mutants": len(by_name),
            "killed": counts["killed"],
            "timeout": counts["timeout"],
            "survived": left,
            "date": date.today().isoformat(),
        }
        for name in left if arguments.survivors else ():
            changed = [line for line in get_diff_for_mutant(name).splitlines()[2:] if line[:1] in ("+", "-")]
            print(f"{by_name[name]}: {name}", *changed, sep="\n")
    written = {"mutmut": version("mutmut"), "modules": dict(sorted(modules.items()))}
    RESULTS.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{'module':<40} mutants  killed  timeout  survived")
    for module, row in written["modules"].items():
        print(f"{module:<40} {row['mutants']:7} {row['killed']:7} {row['timeout']:8} {len(row['survived']):9}")


if __name__ == "__main__":
    main()
