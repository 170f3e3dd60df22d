"""The files of results: `results/<machine>.json` holds the latest record of each benchmark under its name."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def results_file(record: dict[str, Any]) -> Path:
    """Of the machine on which a record was measured: the name of its GPU, or the number of its CPU cores."""
    machine = record["gpu"] or f"cpu {record['cpu_cores']} cores"
    return RESULTS / f"{machine.lower().replace(' ', '-')}.json"


def write_record(record: dict[str, Any], path: Path) -> None:
    """Put a benchmark's record into a machine's file, beside those of the other benchmarks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = read_records(path)
    records[record["benchmark"]] = record
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(records, indent=1) + "\n")
    unfinished.replace(path)  # a run that is interrupted here loses no other benchmark's record


def machines(folder: Path = RESULTS) -> dict[str, dict[str, dict[str, Any]]]:
    """The records of every machine, by its name; what else lies there, results of tests, is no file of records."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        records = read_records(path)
        if all(isinstance(record, dict) and record.get("benchmark") == name for name, record in records.items()):
            found[path.stem] = records
    return found


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """By name of the benchmark; empty where there is no such file."""
    records: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return records
