"""Files of settings and data that are not what a command takes: one line, exit code 2, and nothing written."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit import ESLoRAConfig, KLBarrierConfig, MultiHeadRewardConfig, ScheduledDPOConfig
from alignkit.cli import main
from alignkit.spec_files import MOST_NODES, read_spec_file, read_value
from alignkit.storage import read_lines

SPECS = {
    "dpo": ["dpo", "--config"],
    "rounds": ["barrier", "rounds"],
    "evaluate": ["evaluate", "--config"],
    "experiment": ["experiment", "run"],
    "stages": ["stages", "run"],
}
OTHERS = {
    **{name: [name, "--config"] for name in ("reward", "barrier", "es")},
    "experiment-status": ["experiment", "status"],
    "experiment-launch": ["experiment", "launch"],
    "stages-status": ["stages", "status"],
}
"""Commands that read their file by the same code as one of `SPECS`."""
COMMANDS = [*SPECS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]

LAUGHS = ["[" + ", ".join(["x"] * 10) + "]"] + [f"[{', '.join([f'*a{n}'] * 10)}]" for n in range(9)]
BOMB = "output_dir: [" + ", ".join(f"&a{n} {value}" for n, value in enumerate(LAUGHS)) + "]\n"
ANY_FILE = {
    "tab": (b"output_dir:\n\tx: 1\n", "is no YAML"),
    "binary": (bytes(range(256)) * 4, "can't decode byte 0x80"),
    "nul": (b"output_dir: \0\n", "is no YAML"),
    "utf-16": ("output_dir: a\n".encode("utf-16"), "can't decode byte 0xff"),
    "empty": (b"", "where keys with values should be"),
    "list": (b"- a\n- b\n", "the file holds ['a', 'b'] where keys with values should be"),
    "text": (b"hello\n", "the file holds 'hello' where keys with values should be"),
    "double": (b"seed: 1\nseed: 2\n", "line 2: seed is given twice; remove one of them"),
    "unknown": (b"output_drii: x\n", "output_drii is no known key; the nearest is 'output"),
    "empty-key": (b"'': 1\n", "'' is no known key"),
    "key-of-a-list": (b"? [a, b]\n: 1\n", "line 1: a key is a list or a mapping"),
    "two-documents": (b"seed: 1\n---\nseed: 2\n", "expected a single document"),
    "nested": (b"output_dir: " + b"[" * 1000 + b"]" * 1000, "is nested too deeply"),
    "bomb": (BOMB.encode(), f"aliases make 1111111 values of it, and {MOST_NODES} are the most"),
    "holds-itself": (b"output_dir: &a [*a]\n", "line 1: an anchor holds an alias of itself"),
    "no-anchor": (b"output_dir: *nowhere\n", "found undefined alias"),
    "python": (
        b"output_dir: !!python/object/apply:os.system ['touch hostile_was_here']\n",
        "could not determine a constr",
    ),
    "surrogate": (b'output_dir: "\\ud800"\n', "line 1: '\\ud800' cannot be read: half of a surrogate pair"),
    "digits": (b"seed: " + b"9" * 5000, "line 1: '999999"),
    "wrong-tag": (b"seed: !!timestamp soon\n", "line 1: 'soon' cannot be read"),
}


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys) -> Callable[..., None]:
    """Assert that a command refuses its input by one line that has all the words, and leaves the folder as it was."""
    monkeypatch.chdir(tmp_path)

    def check(arguments: list[str], *words: str) -> None:
        before = listing(tmp_path)
        assert main(arguments) == 2
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("alignkit")]
        assert len(lines) == 1 and captured.out == "" and len(lines[0]) < 800
        assert all(word in lines[0] for word in words), lines[0]
        assert listing(tmp_path) == before

    return check


# ---- Files of settings ----


@pytest.mark.parametrize("fault", ANY_FILE)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_no_specification_is_named_with_what_is_wrong(refused, tmp_path, command, fault):
    content, words = ANY_FILE[fault]
    (tmp_path / "spec.yaml").write_bytes(content)
    refused([*{**SPECS, **OTHERS}[command], "spec.yaml"], "spec.yaml", words)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_file_and_a_folder_in_its_place_are_named(refused, tmp_path, command):
    arguments = [*{**SPECS, **OTHERS}[command], "spec.yaml"]
    refused(arguments, "No such file", "spec.yaml")
    (tmp_path / "spec.yaml").mkdir()
    refused(arguments, "Is a directory", "spec.yaml")


@pytest.mark.parametrize(
    ("command", "content", "words"),
    [
        ("dpo", "beta: high", "beta is 'high'; it must be a number"),
        ("dpo", "beta: .nan\nmodel_name_or_path: m", "beta is nan; it must be a finite number above 0"),
        ("dpo", "seed: .inf", "seed is inf; it must be a whole number"),
        ("dpo", "max_length: '64'", "max_length is '64'; it must be a whole number"),
        ("dpo", "lora: [r, 8]", "lora is ['r', 8]; it must be"),
        ("dpo", "lora: {rr: 8}\nmodel_name_or_path: m", "lora.rr is no known key; the nearest is 'r'"),
        ("barrier", "aggregate: 7", "aggregate is 7; it must be one of ['mean', 'rmse'"),
        ("reward", "head_names: {a: b}", "head_names is [{'a': 'b'}]; it must be a list"),
        ("es", "population_size: 2.5", "population_size is 2.5; it must be a whole number"),
        ("evaluate", "suite: [gsm9k]\nmodel: m\noutput: o", "gsm9k"),
        ("evaluate", "suite: [gsm8k]\nmodel: m\noutput: o\ngsm8k: {limt: 3}", "gsm8k.limt"),
        (
            "evaluate",
            "suite: [gsm8k]\nmodel: m\noutput: o\ngsm8k: {limit: x}",
            "gsm8k.limit is 'x'; it must be a whole",
        ),
        ("evaluate", "limit: many", "yaml: limit is 'many'; it must be a whole number"),
        ("experiment", "name: 7\noutput_dir: o\nmethod: dpo\ntask: t\nmodel: m", "name is 7; it must be a text"),
        (
            "stages",
            "name: n\noutput_dir: o\nsft: {trainin: {}}",
            "sft.trainin is no known key; the nearest is 'training'",
        ),
        (
            "rounds",
            "model: 1\noutput_dir: o\npersonas: 1\ncontexts: 1\nprompts: 1\nprobes: 1",
            "model is 1; it must be",
        ),
    ],
)
def test_a_value_of_another_type_is_named_with_its_key(refused, tmp_path, command, content, words):
    (tmp_path / "spec.yaml").write_text(content)
    refused([*{**SPECS, **OTHERS}[command], "spec.yaml"], "spec.yaml", words)


def test_a_text_of_millions_of_characters_is_shown_cut(refused, tmp_path):
    (tmp_path / "spec.yaml").write_text("seed: " + "x" * 200_000)
    refused(["dpo", "--config", "spec.yaml"], "seed is 'xxx", "it must be a whole number")


def test_a_flag_is_read_with_the_same_care():
    for text, words in {
        "[" * 2000: "nested too deeply",
        "{a: [}": "is no YAML",
        "!!python/name:os.system": "no YAML",
    }.items():
        with pytest.raises(ValueError, match=words):
            read_value(text)


def test_what_an_alias_repeats_a_few_times_is_read(tmp_path):
    (tmp_path / "spec.yaml").write_text("a: &words [x, y]\nb: *words\nc: {<<: {d: 1}, d: 2}\n")
    found = read_spec_file(tmp_path / "spec.yaml", lambda content: content)
    assert found == {"a": ["x", "y"], "b": ["x", "y"], "c": {"d": 2}}


# ---- Other files ----

NO_JSON = {
    "binary": bytes(range(256)) * 4,
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
}
NO_CONFIG = {
    **NO_JSON,
    "empty": b"",
    "number": b"7",
    "list": b"[1, 2]",
    "unknown": b'{"model_type": "nope"}',
    "type": b'{"model_type": "llama", "hidden_size": "many"}',
    "sizes": b'{"model_type": "llama", "hidden_size": -4}',
}
ROW = {"prompt": "a", "chosen": " b", "rejected": " c"}
OF_A_MODEL = {
    "plan": ["plan", "m", "--method", "dpo", "--gpu-gib", "8"],
    "probe": ["probe", "m", "--text", "a"],
    "dpo": ["dpo", "--model_name_or_path", "m", "--dataset_name", "rows.jsonl", "--output_dir", "out"],
    "evaluate": ["evaluate", "m", "--suite", "countdown", "-o", "out"],
}


@pytest.mark.parametrize(
    "fault", ["deep", "type", *(pytest.param(name, marks=pytest.mark.slow) for name in NO_CONFIG)]
)
@pytest.mark.parametrize("command", OF_A_MODEL)
def test_a_models_configuration_that_is_none_is_named(refused, tmp_path, command, fault):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_bytes(NO_CONFIG[fault])
    if command == "dpo":
        (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    refused(OF_A_MODEL[command], "m")


@pytest.mark.parametrize("fault", [*NO_JSON, "list"])
def test_results_that_are_none_are_named_by_file_and_line(refused, tmp_path, fault):
    content = b"[1, 2]\n" if fault == "list" else NO_JSON[fault] + b"\n"
    (tmp_path / "m").mkdir()
    for name in ("results.jsonl", "m/results.jsonl"):
        (tmp_path / name).write_bytes(content)
    refused(["report", "results.jsonl", "-o", "report.md"], "results.jsonl, line 1")
    refused(["barrier", "report", "m"], "results.jsonl")
    refused(
        ["ratings", "sheet", "results.jsonl", "-o", "sheets", "--key", "key.json", "--suite", "a"], "results.jsonl"
    )
    with pytest.raises(ValueError, match=r"results\.jsonl"):
        read_lines(tmp_path / "results.jsonl")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet", "rows.csv"])
def test_data_that_is_none_is_named(refused, tmp_path, name):
    (tmp_path / name).write_bytes(NO_JSON["binary"])
    refused(
        ["dpo", "--model_name_or_path", "m", "--dataset_name", name, "--output_dir", "out"], f"{name} cannot be read"
    )


@pytest.mark.parametrize(
    ("content", "words"), [(b"[" * 1000, "nested too deeply"), (b"\xff", "decode"), (b"7", "no config")]
)
def test_a_configuration_of_accelerate_that_is_none_is_named(refused, tmp_path, content, words):
    (tmp_path / "a.yaml").write_bytes(content)
    arguments = ["dpo", "--model_name_or_path", "m", "--dataset_name", "d.jsonl", "--accelerate_config", "a.yaml"]
    refused(arguments, "a.yaml", words)


@pytest.mark.slow
def test_a_python_tag_runs_nothing_in_a_real_process(tmp_path):
    (tmp_path / "spec.yaml").write_bytes(ANY_FILE["python"][0])
    command = [sys.executable, "-m", "alignkit.cli", "stages", "run", "spec.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and "spec.yaml is no YAML" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["spec.yaml"]


# ---- Fields of the four configurations ----

NUMBERS = {
    KLBarrierConfig: ["barrier_weight", "tau_nats", "barrier_weight_end", "tau_nats_end", "target_kl", "ema_decay"],
    ScheduledDPOConfig: [
        "beta",
        "beta_end",
        "eval_beta",
        "dynamic_beta_alpha",
        "target_kl",
        "beta_warmup_ratio",
        "ema_decay",
    ],
    MultiHeadRewardConfig: ["regularizer_weight", "score_softcap"],
    ESLoRAConfig: ["sigma", "sigma_end", "anchor_decay", "temperature", "reward_timeout_s"],
}
WORDS = {
    KLBarrierConfig: [
        "aggregate",
        "aggregate_scope",
        "kl_direction",
        "barrier_schedule",
        "tau_schedule",
        "precompute_ref",
    ],
    ScheduledDPOConfig: ["beta_schedule", "prompt_truncation", "ref"],
    MultiHeadRewardConfig: [
        "pairing",
        "reduction",
        "regularizer",
        "overflow",
        "on_conflict",
        "head_weights",
        "tier_weights",
    ],
    ESLoRAConfig: ["sigma_schedule", "sigma_mode", "perturb", "fitness_shaping", "backend"],
}
SAME = {"use_cpu": True, "report_to": "none"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize(("config", "name"), [(config, name) for config, names in NUMBERS.items() for name in names])
def test_a_number_that_is_none_is_refused_by_its_field(tmp_path, config, name, value):
    with pytest.raises(ValueError, match=name):
        config(str(tmp_path), **SAME, **{name: value})


@pytest.mark.parametrize(("config", "name"), [(config, name) for config, names in WORDS.items() for name in names])
def test_a_word_that_is_none_is_refused_by_its_field(tmp_path, config, name):
    with pytest.raises(ValueError, match=rf"{name} is 'n\u00f6nsense'"):
        config(str(tmp_path), **SAME, **{name: "n\u00f6nsense"})


@pytest.mark.parametrize("config", [KLBarrierConfig, ScheduledDPOConfig, MultiHeadRewardConfig])
def test_a_length_below_one_is_refused(tmp_path, config):
    with pytest.raises(ValueError, match="max_length is -5"):
        config(str(tmp_path), **SAME, max_length=-5)
