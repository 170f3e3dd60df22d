"""The report of a run of rounds, made from its `results.jsonl` alone: rounds as columns, texts quoted, pictures."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from alignkit.evaluation.document import visible
from alignkit.kl_barrier.rounds.signals import (
    SIGNALS,
    capped_exp,
    changes_since,
    interval_of_mean,
    record_fault,
    signals_of,
)
from alignkit.storage import read_lines, write_text

RESULTS_FILE, REPORT_FILE = "results.jsonl", "report.md"
TRAJECTORY_FILE, MAP_FILE = "trajectory.png", "map.png"
LONGEST_QUOTE = 600  # characters
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
ABSENT = "–"

Record = Mapping[str, Any]


def write_report(folder: Path) -> None:
    """Write `report.md`, `trajectory.png` and `map.png` beside the `results.jsonl` of a folder.

    Raises:
        FileNotFoundError, ValueError: no results there, or lines that are no records of rounds 0, 1, 2, ….
    """
    from alignkit.kl_barrier.rounds.plots import save_map, save_trajectory

    records = read_results(folder)
    write_text(folder / REPORT_FILE, markdown_report(records))
    save_trajectory(folder / TRAJECTORY_FILE, records)
    save_map(folder / MAP_FILE, records)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The records in `results.jsonl`, that of the base first, whole as far as the report reads them.

    Raises as `write_report` says, with the line and what is wrong with it.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give the output_dir of a run of rounds")
    records = read_lines(path)
    if not records or [record.get("round") for record in records] != list(range(len(records))):
        raise ValueError(f"{path} is damaged: its lines must be the records of rounds 0, 1, 2 and so on")
    for number, record in enumerate(records, 1):
        fault = record_fault(record)
        if fault is None and "stop_reason" not in record:
            fault = "it has no 'stop_reason'"
        if fault is None and _items(record) != _items(records[0]):
            fault = "its scores are not of the same items as those of the base"
        if fault is not None:
            raise ValueError(
                f"{path}, line {number} is damaged: {fault}; start the run of this folder again, which writes the "
                "file from the records of its rounds"
            )
    return records


def _items(record: Record) -> dict[str, int]:
    return {name: len(record["scores"][name]) for name in signals_of(record)}


def markdown_report(records: Sequence[Record]) -> str:
    """The report as Markdown, from the records of round 0 (the base) and of the rounds after it."""
    last = records[-1]
    after = "the base" if last["round"] == 0 else f"round {last['round']}"
    stop = f"Stopped after {after}: {last['stop_reason']}." if last["stop_reason"] else f"Under way, after {after}."
    parts = [
        f"# Rounds of {_model_name(last['settings']['model']['name'])}",
        stop,
        "## Measures",
        "Mean over the items; below it the paired change from the base with its 95 % t-interval over items. Coherence "
        "is three separate measures: a text that loops has a low perplexity, and may still answer. A run stops when "
        "the answer mass falls below its floor, and when the repetition of the samples reaches the limit at which the "
        "filters reject a completion.",
        _table(records, _measure_rows(records)),
        "## Rounds",
        _table(records, _round_rows(records)),
        f"![Trait and coherence by round]({TRAJECTORY_FILE})",
        f"![The two signals that moved most]({MAP_FILE})",
        "## Samples",
        *_sample_parts(records),
        "## Completions trained on",
        *_completion_parts(records),
        "## Origin",
        _origin(last),
    ]
    return "\n\n".join(parts) + "\n"


def _model_name(name: str) -> str:
    """A hub id as it is; of a path, which says more of a machine than of a model, the last component."""
    if not name:
        return "a model built in memory"
    return name if HUB_ID.fullmatch(name) else PureWindowsPath(name).name or name


Row = tuple[str, Callable[[Record], str]]


def _table(records: Sequence[Record], rows: Sequence[Row]) -> str:
    header = ["", *("base" if record["round"] == 0 else f"round {record['round']}" for record in records)]
    lines = [header, ["---", *["---:"] * len(records)]]
    lines += [[label, *(cell(record) for record in records)] for label, cell in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measure_rows(records: Sequence[Record]) -> list[Row]:
    rows: list[Row] = []
    for name in signals_of(records[0]):
        label = f"{SIGNALS[name].label}, n = {records[0]['n'][name]}"
        rows.append((label, lambda record, name=name: _number(record["means"][name])))  # type: ignore[misc]
        what = "ratio to" if SIGNALS[name].is_log else "change from"
        rows.append((f"… {what} base", lambda record, name=name: _change(records[0], record, name)))  # type: ignore[misc]
    rows.append(("samples with any text", lambda record: f"{record['n']['perplexity']} of {len(record['samples'])}"))
    if any(record.get("steered") for record in records):
        for name in ("trait_nats", "allowed_answer_mass"):
            label = f"before healing, steered: {SIGNALS[name].label}"
            rows.append((label, lambda record, name=name: _steered(record, name)))  # type: ignore[misc]
    return rows


def _round_rows(records: Sequence[Record]) -> list[Row]:
    """What was proposed, kept and trained. The base has none of it."""

    def of(part: str, key: str) -> Callable[[Record], str]:
        return lambda record: _number(record[part].get(key)) if record.get(part) else ABSENT

    def rejected(record: Record) -> str:
        counts = record["proposals"]["rejected"] if record.get("proposals") else {}
        return ", ".join(f"{_escape(reason)} {count}" for reason, count in counts.items()) or ABSENT

    def strengths(record: Record) -> str:
        values = record["proposals"]["strengths"] if record.get("proposals") else []
        return ", ".join(map(_number, values)) or ABSENT

    doses = [("dose of all strengths (doses tried: share that passed)", _dose)]
    return [
        *(doses if any(record.get("dose") for record in records) else []),
        ("completions proposed", of("proposals", "proposed")),
        ("passed the filters", of("proposals", "passed")),
        ("kept", of("proposals", "kept")),
        ("rejected, by first reason", rejected),
        ("strengths", strengths),
        ("perplexity of the proposals", of("proposals", "perplexity")),
        ("repetition of the proposals", of("proposals", "repetition")),
        ("training loss (mean)", of("training", "train_loss")),
        ("NLL in the last log (nats)", of("training", "nll")),
        ("divergence D in the last log (nats)", of("training", "kl/divergence")),
        ("share of open gates in the last log", of("training", "kl/gate_open")),
        ("largest k_t in the last log (nats)", of("training", "kl/max")),
    ]


def _dose(record: Record) -> str:
    search = record.get("dose")
    if not search:
        return ABSENT
    tried = ", ".join(f"{_number(dose)}: {share:.0%}" for dose, share in search["tried"])
    return f"{_number(search['strength'])}{'' if search['reached'] else ', too few passed'} ({tried})"


def _number(value: Any) -> str:
    if value is None:
        return ABSENT
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _change(base: Record, record: Record, name: str) -> str:
    changes = changes_since(base, record, name)
    if record["round"] == 0 or not changes:
        return ABSENT
    show = (lambda x: f"×{capped_exp(x):.3g}") if SIGNALS[name].is_log else (lambda x: f"{x:+.3g}")
    interval = interval_of_mean(changes)
    around = "" if interval is None else f" [{show(interval[0])}, {show(interval[1])}]"
    return show(sum(changes) / len(changes)) + around


def _steered(record: Record, name: str) -> str:
    return _number(record["steered"]["means"][name]) if record.get("steered") else ABSENT


def _sample_parts(records: Sequence[Record]) -> list[str]:
    parts = []
    for index, sample in enumerate(records[0]["samples"]):
        parts.append(f"Prompt {index + 1}:\n\n{_quote(sample['prompt'])}")
        for record in records:
            repetition, perplexity = (record["scores"][name][index] for name in ("repetition", "perplexity"))
            stage = "Base" if record["round"] == 0 else f"Round {record['round']}"
            scores = f"repetition {_number(repetition)}, perplexity {_number(perplexity)}"
            parts.append(f"{stage} ({scores}):\n\n{_quote(record['samples'][index]['completion'])}")
    return parts


def _completion_parts(records: Sequence[Record]) -> list[str]:
    parts = []
    for record in records:
        if record.get("proposals"):
            quoted = record["proposals"]["quoted"]
            parts.append(f"### Round {record['round']}: {len(quoted)} of the {record['proposals']['kept']} kept")
            parts += [f"{_quote(row['prompt'])}\n\nCompletion:\n\n{_quote(row['completion'])}" for row in quoted]
    return parts or ["None: no round was done."]


def _quote(text: str) -> str:
    """Text of a model as an indented block, in which Markdown reads nothing; cut where it is very long."""
    cut = text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 1] + "…"
    return "\n".join(f"    {line}" for line in (visible(cut).strip("\n") or "(empty)").splitlines())


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _origin(record: Record) -> str:
    rows = {
        "seed": record["seed"],
        "model weights (SHA-256)": record["settings"]["model"]["weights_sha256"],
        "device": record["device"],
        "commit": record["git_commit"] or "not a checkout",
        **record["versions"],
    }
    return "\n".join(f"- {name}: {value}" for name, value in rows.items())
