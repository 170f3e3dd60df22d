"""Write `docs/benchmarks.md` from the results: `python benchmarks/write_page.py`, which `run_all.py` calls."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from records import machines
from write_curves import curve_lines

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Written by `python benchmarks/write_page.py` from the files in
[`benchmarks/results`](../benchmarks/results), where every time that was taken is; do not edit it. How each number is
measured, what the sides are and how to read the files stands in
[`benchmarks/README.md`](../benchmarks/README.md). `make bench` measures all of it again, `python benchmarks/run_all.py
--only NAME` one benchmark.

- A number is the median of n paired runs, with the smallest and the largest. n is 1 where a count has no noise, and
  where a number is the total of several runs.
- A limit is what no implementation can pass; a letter says why. *Of it* is the number over its limit: where time is
  measured, a limit by operations takes both sides to be equally fast, so that a side can be better than its limit.
- Load is the machine's load average over one minute when the benchmark began.
"""


def write_page() -> None:
    """From every file of results."""
    PAGE.write_text(page(machines()), encoding="utf-8")


def page(records_of: dict[str, dict[str, Any]]) -> str:
    """The text.

    Args:
        records_of: what [`machines`] gives.
    """
    lines = [HEAD]
    for machine, records in records_of.items():
        lines += [f"## {machine}", "", *_overview(records)]
        for record in records.values():
            lines += _section(record)
    return "\n".join(lines).rstrip() + "\n"


def _overview(records: dict[str, Any]) -> Iterator[str]:
    processors = Counter(f"{record['cpu']}, {record['cpu_cores']} cores" for record in records.values())
    gpus = Counter(record["gpu"] or "no GPU" for record in records.values())
    yield f"{' and '.join(processors)}; {' and '.join(gpus)}."
    yield ""
    yield "| benchmark | command | date | commit | load | minutes | targets met |"
    yield "|---|---|---|---|---|---|---|"
    for name, record in records.items():
        met = [claim["met"] for claim in record["claims"]]
        shown = f"{sum(met)} of {len(met)}" if met else ""
        yield (
            f"| {name} | `{record['command']}` | {record['date'][:10]} | {_commit(record['commit'])} | "
            f"{record['load_average'][0]:.1f} | {record['minutes']:.1f} | {shown} |"
        )
    yield ""


def _commit(commit: str | None) -> str:
    """Ten digits, and whether files were changed."""
    if commit is None:
        return "none"
    return f"`{commit[:10]}{'-dirty' if commit.endswith('-dirty') else ''}`"


def _section(record: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    yield f"### {record['benchmark']}"
    yield ""
    yield record["about"]
    yield ""
    yield f"{versions}; Python {record['python']}; threads: {record['threads']}."
    yield ""
    if record["claims"]:
        yield from _claims(record["claims"])
    for curve in record.get("curves", []):
        yield from curve_lines(curve, record["limits"])
    if not record["claims"] and "curves" not in record:
        yield from ("No targets are set for it; its numbers stand in the file of results.", "")


def _claims(claims: list[dict[str, Any]]) -> Iterator[str]:
    notes: dict[str, str] = {}  # text -> its letters, in the order of their first use

    def note(text: str) -> str:
        return notes.setdefault(text, _letters(len(notes)))

    yield "| what | number | measured in | limit | of it | target | |"
    yield "|---|---|---|---|---|---|---|"
    for claim in claims:
        has_limit = claim["limit"] is not None
        limit = f"{_short(claim['limit'])} ({note(claim['limit_is'])})" if has_limit else ""
        of_it = f"{claim['median_over_limit']:.2f}" if claim["median_over_limit"] is not None else ""
        relation, target = claim["target"].split()
        met = "met" if claim["met"] else f"**missed** ({note(claim['why_missed'])})"
        what = claim["claim"].replace("|", "&#124;")
        bound = f"{'at most' if relation == '<=' else 'at least'} {_short(float(target))}"
        yield f"| {what} | {_number(claim)} | {claim['measured_in']} | {limit} | {of_it} | {bound} | {met} |"
    yield ""
    yield from (f"- ({letters}) {text}" for text, letters in notes.items())
    if notes:
        yield ""


def _number(claim: dict[str, Any]) -> str:
    if claim["runs"] == 1:
        return f"{claim['median']:#.3g} (n 1)"
    return f"{claim['median']:#.3g} ({claim['min']:#.3g} to {claim['max']:#.3g}, n {claim['runs']})"


def _short(number: float) -> str:
    """Three digits at most: a limit or a target, which may be a whole number."""
    return f"{number:.3g}"


def _letters(place: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    before = _letters(place // 26 - 1) if place >= 26 else ""
    return before + chr(ord("a") + place % 26)


if __name__ == "__main__":
    write_page()
