"""The record of a round: its measurements per item, with everything needed to say where they come from."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from alignkit.kl_barrier.rounds.coherence import allowed_answer_mass, answer_log_prob_margin, repetition_rates
from alignkit.kl_barrier.rounds.filters import perplexities
from alignkit.kl_barrier.rounds.proposals import Proposal, render_prompt, sample_completions
from alignkit.kl_barrier.rounds.scoring import continuation_log_probs, device_of, encode
from alignkit.kl_barrier.rounds.settings import RoundProbes
from alignkit.kl_barrier.rounds.signals import record_fault
from alignkit.provenance import device_name, git_commit, package_versions
from alignkit.storage import PARTIAL, digest, read_json

RECORD_FILE = "record.json"
QUOTED = 6  # kept completions that a record quotes

Scores = dict[str, list[float | None]]


def measure_student(student: nn.Module, tokenizer: PreTrainedTokenizerBase, probes: RoundProbes) -> Scores:
    """Per item: `trait_nats`, `allowed_answer_mass` and, with held-out texts, `held_out_nll_nats` (NLL per token)."""
    trait, size = probes.trait, probes.batch_size
    scores: Scores = {
        "trait_nats": [
            *answer_log_prob_margin(
                student, tokenizer, trait.prefixes, trait.positive, trait.negative, batch_size=size
            )
        ],
        "allowed_answer_mass": [*allowed_answer_mass(student, tokenizer, probes.coherence, batch_size=size)],
    }
    if probes.held_out:
        texts = [encode(tokenizer, text) for text in probes.held_out]
        short = next((index for index, tokens in enumerate(texts) if len(tokens) < 2), None)
        if short is not None:
            raise ValueError(f"held_out text {short} is {probes.held_out[short]!r}, one token; give at least two")
        rows = continuation_log_probs(
            student, [tokens[:1] for tokens in texts], [tokens[1:] for tokens in texts], batch_size=size
        )
        scores["held_out_nll_nats"] = [-row.mean().item() for row in rows]
    return scores


def student_samples(
    student: nn.Module, tokenizer: PreTrainedTokenizerBase, probes: RoundProbes, *, seed: int
) -> list[Proposal]:
    """The student's completion of every sample prompt, drawn at `probes.sample_temperature`."""
    return sample_completions(
        student,
        tokenizer,
        [render_prompt(tokenizer, prompt) for prompt in probes.sample_prompts],
        seed=seed,
        max_new_tokens=probes.sample_tokens,
        temperature=probes.sample_temperature,
        batch_size=probes.batch_size,
    )


def measure_samples(
    original: nn.Module, tokenizer: PreTrainedTokenizerBase, samples: Sequence[Proposal], probes: RoundProbes
) -> Scores:
    """Per sample: `repetition`, and `perplexity` under the original model; both None for an empty sample.

    Repetition is what the filters reject by. An empty sample has none, lest it hide in the mean that others loop.
    """
    written = [sample for sample in samples if sample.completion.strip()]

    def of_all(values: Sequence[float]) -> list[float | None]:
        known = iter(values)
        return [next(known) if sample.completion.strip() else None for sample in samples]

    return {
        "repetition": of_all(repetition_rates([sample.completion for sample in written])),
        "perplexity": of_all(perplexities(original, tokenizer, written, batch_size=probes.batch_size)),
    }


def check_finite(scores: Scores) -> None:
    """Refuse a score that is no number, before it is written.

    Raises:
        ValueError: names the signal, the item and the value.
    """
    for name, values in scores.items():
        for item, value in enumerate(values):
            if value is not None and not math.isfinite(value):
                raise ValueError(
                    f"{name} of item {item} is {value}: the model gives a token of it no probability at all; take "
                    "that text out of the probes, or load the model in float32"
                )


def mean_of(name: str, values: Sequence[float | None]) -> float | None:
    """Mean of a signal over the items that have it: geometric for `perplexity`, else arithmetic; None for no item."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return math.exp(fmean(map(math.log, known))) if name == "perplexity" else fmean(known)


def summarize(scores: Scores) -> dict[str, dict[str, Any]]:
    """`means` and `n` of the scores, the number of items that have a value."""
    return {
        "means": {name: mean_of(name, values) for name, values in scores.items()},
        "n": {name: sum(value is not None for value in values) for name, values in scores.items()},
    }


def summarize_proposals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What became of a round's proposals, from the rows of its `completions.jsonl`."""
    kept = [row for row in rows if row["kept"]]
    return {
        "proposed": len(rows),
        "passed": sum(row["reason"] is None for row in rows),
        "kept": len(kept),
        "rejected": dict(sorted(Counter(row["reason"] for row in rows if row["reason"] is not None).items())),
        "perplexity": mean_of("perplexity", [row["perplexity"] for row in rows]),
        "repetition": mean_of("repetition", [row["repetition"] for row in rows]),
        "strengths": sorted({row["strength"] for row in rows if row["strength"] is not None}),
        "quoted": [{"prompt": row["prompt"], "completion": row["completion"]} for row in _spread(kept, QUOTED)],
    }


def _spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most `most` rows, evenly spaced, so that every prompt and strength has its chance."""
    count = min(most, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]


def origin_of(model: nn.Module) -> dict[str, Any]:
    """`versions`, `git_commit` (None outside a checkout of alignkit) and `device` of a measurement."""
    return {"versions": package_versions(), "git_commit": git_commit(), "device": device_name(device_of(model))}


def file_digests(folder: Path) -> dict[str, str]:
    """Digest of every file of a finished round but its record, by relative name."""
    # A kill may have left half a record, which the whole one replaces.
    others = (RECORD_FILE, RECORD_FILE + PARTIAL)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in others)
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def read_round(folder: Path) -> dict[str, Any]:
    """The record of a finished round, all of whose files are as they were written.

    Raises:
        FileNotFoundError, ValueError: the record cannot be read, or a file of the round is missing or was changed;
            the message names the file and the way out.
    """
    way_out = f"restore it from a copy, or remove {folder} and every later round, which are then made again"
    try:
        record = read_json(folder / RECORD_FILE)
    except ValueError as error:
        raise ValueError(f"{error}; {way_out}") from error
    fault = record_fault(record) if isinstance(record.get("files"), dict) else "it has no 'files'"
    if fault is not None:
        raise ValueError(f"{folder / RECORD_FILE} is no record of a round: {fault}; {way_out}")
    for name, expected in record["files"].items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {way_out}")
        if digest(path) != expected:
            raise ValueError(f"{path} is damaged: it is not the file that the round wrote; {way_out}")
    return record
