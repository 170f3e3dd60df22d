"""What reads a file that may have been damaged or edited by hand, each with valid files to begin with."""

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from alignkit.es_lora.history import read_history
from alignkit.evaluation.human_answers import answers_of
from alignkit.evaluation.human_ratings import read_ratings
from alignkit.evaluation.human_sheets import Scale, write_sheets
from alignkit.evaluation.judge.cache import VerdictCache
from alignkit.evaluation.judge.prompts import TemplatePrompts
from alignkit.evaluation.results import Result, append_result, read_results
from alignkit.evaluation.suites.data import read_rows
from alignkit.evaluation.suites.mt_bench import read_baseline
from alignkit.evaluation.suites.spec import read_spec as read_evaluation
from alignkit.experiments.spec import read_experiment
from alignkit.kl_barrier.rounds.spec import read_spec as read_rounds
from alignkit.reliability.checkpoints import TRAINER_STATE, check_checkpoint
from alignkit.reliability.manifest import MANIFEST, write_manifest
from alignkit.rewards.word_lists import read_word_list
from alignkit.row_cache import RowCacheWriter, row_key
from alignkit.row_file import open_rows
from alignkit.spec_files import read_spec_file
from alignkit.stages.spec import read_stages
from alignkit.storage import read_json, read_lines
from alignkit.tasks.tables import table_contexts
from alignkit.tasks.tatqa_files import load_tatqa


@dataclass(frozen=True)
class Reader:
    """A reader, the name of its file, and valid contents of it, made in a folder."""

    file: str
    read: Callable[[Path], Any]
    valid: Callable[[Path], Sequence[bytes]]


def contents(*texts: str) -> Callable[[Path], Sequence[bytes]]:
    return lambda folder: [text.encode() for text in texts]


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def result_lines(folder: Path) -> Sequence[bytes]:
    path = folder / "made.jsonl"
    common: dict[str, Any] = {"role": "task", "commit": None, "versions": {}, "device": "cpu", "wall_time_s": 1.0}
    common |= {"higher_is_better": True, "unit": "proportion", "item_set": "s", "metric": "m", "seed": 0}
    history = [{"step": 1, "loss": 2.0}]
    append_result(path, Result(run="a", items={"x": 1.0, "y": 0.5}, config={"beta": 0.1}, history=history, **common))
    append_result(path, Result(run="b", mean=0.5, n=3, std=0.1, raters=2, **common))
    return [path.read_bytes()]


def sheets(folder: Path) -> tuple[bytes, bytes]:
    key = folder / "made_key.json"
    scales = [Scale("helpful", 1, 5), Scale("safe", 0, 1, "nominal")]
    answers = {"s": {"i": "an answer", "j": "-1"}, "t": {"i": "x,\ny", "j": ""}}
    write_sheets(answers, {"i": "p", "j": "q"}, scales, folder=folder / "out", key=key, raters=["ann"])
    sheet = (folder / "out" / "sheet_ann.csv").read_text(encoding="utf-8-sig")
    return sheet.replace(",,,\n", ",3,1,\n").encode(), key.read_bytes()


def valid_sheet(folder: Path) -> Sequence[bytes]:
    sheet, key = sheets(folder)
    (folder / "key.json").write_bytes(key)
    return [sheet, sheet.replace(b",", b";")]


def valid_key(folder: Path) -> Sequence[bytes]:
    sheet, key = sheets(folder)
    (folder / "sheet_bob.csv").write_bytes(sheet)
    return [key]


def checkpoint(folder: Path, *, has_manifest: bool = True) -> None:
    """The files of a checkpoint of plain TRL, which look right from outside; with a manifest one of alignkit."""
    save_file({"w": torch.ones(2)}, folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / TRAINER_STATE).write_text(json.dumps({"global_step": 3, "log_history": [{"loss": 1.0}]}))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"state")
    if has_manifest:
        write_manifest(folder, world_size=1)


def file_of_checkpoint(name: str, *, has_manifest: bool = False) -> Reader:
    """One of the files of a checkpoint."""

    def valid(folder: Path) -> Sequence[bytes]:
        checkpoint(folder, has_manifest=has_manifest)
        return [(folder / name).read_bytes()]

    return Reader(name, lambda path: check_checkpoint(path.parent), valid)


def cache_part(folder: Path) -> Sequence[bytes]:
    with RowCacheWriter(folder / "made", meaning={"w": "1"}, dtype=torch.float32, width=2) as writer:
        for number in range(5):
            writer.write(row_key([number]), torch.ones(number, 2))
    return [path.read_bytes() for path in (folder / "made").iterdir()]


def read_cache(path: Path) -> None:
    rows = open_rows(path, meaning={"w": "1"}, dtype=torch.float32, width=2)
    for key, row in rows.items():
        if row.is_intact(key):
            row.values(torch.float32, 2)


TEMPLATES = lines(
    *(
        {"name": f"{math}{turns}", "type": kind, "system_prompt": "s", "prompt_template": "{question}{answer}"}
        for kind in ("single", "pairwise")
        for math in ("", "math")
        for turns in ("", "multi-turn")
    )
)
ANSWER = {"run": "r", "suite": "s", "item": "mt_bench-1", "prompt": [{"role": "user", "content": "q"}] * 2}
EXPERIMENT = """\
name: n
output_dir: out
method: dpo
task: tasks.py:task
model: some/model
training: {learning_rate: 5e-5, max_steps: 3}
lora: {r: 4, target_modules: [q_proj]}
seeds: [0, 1]
grid: {beta: [0.1, 0.2], lora.lora_alpha: [8]}
decoding: {do_sample: true, temperature: 0.5}
"""
STAGES = """\
name: n
output_dir: out
sft: {training: {learning_rate: 1e-3}}
dpo: {training: {beta: 0.2}, lora: {r: 4}}
es: {reward: {model_weight: 0}, generated_tokens: 100}
arms: {a: [sft, dpo], b: [es]}
seeds: [0, 1]
"""
EVALUATION = """\
suite: [gsm8k, countdown]
model: some/model
output: out
do_sample: true
temperature: 0.5
gsm8k: {max_new_tokens: 256, limit: 3}
"""
ROUNDS = """\
model: some/model
output_dir: out
coherence_floor: 0.5
rounds: 4
personas: {positive: Be glad., negative: [Be sad., Be low.]}
contexts: [The day, My hat]
prompts: [The sea]
steering: {layer_band: [0, 1], strengths: [1.0], max_new_tokens: 8, target_pass_rate: null}
filters: {perplexity_limit: 1e6, repetition_limit: 2, keep_at_most: 4, min_kept: 2}
probes:
  coherence: {prefixes: [Is it], answers: [red, blue], conjunction: " and "}
  trait: {prefixes: [I am], positive: [glad], negative: [sad]}
  sample_prompts: [The sea]
  sample_tokens: 6
lora: {r: 2, target_modules: [q_proj]}
training: {max_steps: 1, learning_rate: 1e-2, report_to: none}
"""

READERS: dict[str, Reader] = {
    "json": Reader("x.json", read_json, contents('{"a": [1, 2.5, null], "b": {"c": "\\u00e9"}}\n')),
    "json_lines": Reader("x.jsonl", read_lines, contents(lines({"a": 1}, {"b": "x\u2028y"}))),
    "yaml": Reader(
        "x.yaml",
        lambda path: read_spec_file(path, lambda content: content),
        contents(EXPERIMENT, "a: &x [1]\nb: *x\nc: 2024-01-01\n"),
    ),
    "experiment": Reader("x.yaml", read_experiment, contents(EXPERIMENT)),
    "stages": Reader("x.yaml", read_stages, contents(STAGES)),
    "evaluation": Reader("x.yaml", lambda path: read_evaluation(path, {}, {}), contents(EVALUATION)),
    "rounds": Reader("x.yaml", lambda path: read_rounds(path, on_cpu=True), contents(ROUNDS)),
    "results": Reader("x.jsonl", read_results, result_lines),
    "sheet": Reader("sheet_ann.csv", lambda path: read_ratings([path], path.parent / "key.json"), valid_sheet),
    "key": Reader("key.json", lambda path: read_ratings([path.parent / "sheet_bob.csv"], path), valid_key),
    "verdicts": Reader(
        "x.jsonl", VerdictCache, contents(lines({"request": "k", "model": "m", "text": "t", "refused": False}))
    ),
    "templates": Reader("x.jsonl", TemplatePrompts, contents(TEMPLATES)),
    "answers": Reader("x.jsonl", lambda path: answers_of(path, "s"), contents(lines({**ANSWER, "completion": "c"}))),
    "baseline": Reader(
        "x.jsonl",
        lambda path: read_baseline(path, ["mt_bench-1"]),
        contents(
            lines({**ANSWER, "completion": "c"}),
            lines({"question_id": 1, "model_id": "m", "choices": [{"turns": ["a", "b"]}]}),
        ),
    ),
    "rows_jsonl": Reader("x.jsonl", lambda path: read_rows(path, {"a": int}), contents(lines({"a": 1}, {"a": 2}))),
    "rows_json": Reader("x.json", lambda path: read_rows(path, {"a": int}), contents('[{"a": 1}, {"a": 2}]')),
    "rows_csv": Reader("x.csv", lambda path: read_rows(path, {"a": str}), contents('a,b\r\n"x, ""y""",z\r\n1,2\r\n')),
    "rows_gz": Reader(
        "x.jsonl.gz", lambda path: read_rows(path, {"a": int}), lambda folder: [gzip.compress(b'{"a": 1}\n')]
    ),
    "words": Reader("words", read_word_list, contents("bad\nvery bad\n", "text,severity_rating\nbad,1.5\n")),
    "tatqa": Reader("x.json", load_tatqa, lambda folder: [json.dumps(table_contexts(1)).encode()]),
    "history": Reader("x.jsonl", read_history, contents(lines({"step": 1, "fitness": [0.5]}, {"step": 2}))),
    "manifest": file_of_checkpoint(MANIFEST, has_manifest=True),
    "trainer_state": file_of_checkpoint(TRAINER_STATE),
    "weights_index": file_of_checkpoint("model.safetensors.index.json"),
    "weights": file_of_checkpoint("model-00001-of-00001.safetensors"),
    "row_cache": Reader("part-00000-of-00001.arrow", read_cache, cache_part),
}
