"""`alignkit barrier`, run as a user runs it: a file goes in; results, or one line of what is wrong, come out."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from alignkit.cli import build_parser, main
from alignkit.kl_barrier.rounds.command import EXAMPLE
from alignkit.kl_barrier.rounds.loop import _load
from alignkit.kl_barrier.rounds.spec import read_spec
from alignkit.tasks.toy import byte_tokenizer, tiny_causal_lm


@pytest.fixture
def spec(tmp_path: Path) -> dict:
    tiny_causal_lm(hidden_size=32).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("The sea is\n\nA fox\n")
    return {
        "model": str(tmp_path / "model"),
        "output_dir": str(tmp_path / "run"),
        "coherence_floor": 0.0,
        "rounds": 4,
        "personas": {"positive": "Be glad.", "negative": ["Be sad.", "Be low."]},
        "contexts": ["The day", "My hat"],
        "prompts": "prompts.txt",
        "steering": {"layer_band": [0, 1], "strengths": [1.0], "max_new_tokens": 8, "target_pass_rate": None},
        "filters": {"perplexity_limit": 1e6, "repetition_limit": 2, "keep_at_most": 4, "min_kept": 2},
        "probes": {
            "coherence": {"prefixes": ["Is it"], "answers": [" red", " blue"]},
            "trait": {"prefixes": ["I am"], "positive": [" glad"], "negative": [" sad"]},
            "sample_prompts": ["The sea"],
            "sample_tokens": 6,
        },
        "lora": {"r": 2, "target_modules": ["q_proj"]},
        "training": {"max_steps": 1, "learning_rate": 1e-2, "report_to": "none", "disable_tqdm": True},
    }


def write(folder: Path, spec: dict) -> str:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return str(path)


def failure(capsys, tmp_path, spec) -> str:
    """The one line that a specification with a mistake leaves on standard error."""
    assert main(["barrier", "rounds", write(tmp_path, spec), "--device", "cpu"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("alignkit")]
    assert line.startswith("alignkit barrier: ")
    return line


def test_a_specification_is_run_and_the_report_can_be_made_again(capsys, tmp_path, spec):
    folder = tmp_path / "elsewhere"
    arguments = ["barrier", "rounds", write(tmp_path, spec), "--rounds", "1", "--device", "cpu"]
    assert main([*arguments, "--output-dir", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "round 0: trait" in out and "round 1: trait" in out and "round 2" not in out
    assert "stopped: all 1 rounds" in out
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert records[1]["settings"]["training"]["learning_rate"] == 1e-2
    assert records[1]["settings"]["training"]["ref"] == "previous"
    assert records[1]["settings"]["probes"]["coherence"]["answers"] == [[" red", " blue"]]
    assert not (tmp_path / "run").exists()
    report = (folder / "report.md").read_text()
    (folder / "report.md").unlink()
    assert main(["barrier", "report", str(folder)]) == 0
    assert (folder / "report.md").read_text() == report


@pytest.mark.parametrize("persona", ["", "\t", None, [], ["Be glad.", ""]])
def test_an_empty_persona_is_one_line_and_exit_code_two(capsys, tmp_path, spec, persona):
    spec["personas"]["positive"] = persona
    line = failure(capsys, tmp_path, spec)
    assert f"personas.positive is {persona!r}; give a text" in line
    assert not (tmp_path / "run").exists()


def test_completions_that_are_all_filtered_out_are_one_line(capsys, tmp_path, spec):
    spec["filters"]["perplexity_limit"] = 1.0
    assert "0 of 4 completions pass the filters and min_kept is 2" in failure(capsys, tmp_path, spec)


@pytest.mark.parametrize(
    ("where", "key", "nearest"),
    [
        ((), "persona", "personas"),
        (("training",), "learnig_rate", "learning_rate"),
        (("filters",), "perplexity_limits", "perplexity_limit"),
        (("probes",), "sample_prompt", "sample_prompts"),
        (("probes", "trait"), "positiv", "positive"),
        (("steering",), "strength", "strengths"),
        (("lora",), "rank", "rank_pattern"),
        (("training",), "output_dir", "logging_dir"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_one(tmp_path, spec, where, key, nearest):
    section = spec
    for name in where:
        section = section[name]
    section[key] = 1
    with pytest.raises(ValueError, match=rf"spec\.yaml: {'.'.join([*where, key])} is no known key") as error:
        read_spec(Path(write(tmp_path, spec)), on_cpu=True)
    if key != "output_dir":
        assert f"the nearest is {nearest!r}" in str(error.value)


def test_a_conjunction_that_is_no_text_is_named(tmp_path, spec):
    spec["probes"]["coherence"]["conjunction"] = ["or"]
    with pytest.raises(ValueError, match=r"spec\.yaml: probes\.coherence\.conjunction is \['or'\]; it must be a text"):
        read_spec(Path(write(tmp_path, spec)), on_cpu=True)


@pytest.mark.parametrize("key", ["model", "output_dir", "personas", "contexts", "prompts", "probes"])
def test_a_missing_key_is_named(capsys, tmp_path, spec, key):
    del spec[key]
    assert f"spec.yaml: {key} is missing" in failure(capsys, tmp_path, spec)


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        (("training", "learning_rate"), "fast", "training.learning_rate is 'fast'; it must be a number"),
        (("training", "tau_nats"), -1, "tau_nats is -1"),
        (("training", "aggregate"), "median", "aggregate is 'median'"),
        (("training", "packing"), "no", "training.packing is 'no'; it must be true or false"),
        (("rounds",), 2.5, "rounds is 2.5; it must be a whole number"),
        (("coherence_floor",), "high", "coherence_floor is 'high'; it must be a number"),
        (("contexts",), "nowhere.txt", "contexts is 'nowhere.txt', and there is no such file"),
        (("prompts",), ["a", True], "prompts holds True, which is no text; put quotes around it"),
        (("filters", "min_kept"), 99, "min_kept=99"),
        (("filters",), [1], "filters holds [1] where keys with values should be"),
        (("steering", "strengths"), 1.0, "steering.strengths is 1.0; it must be a list"),
        (("probes", "trait", "negative"), None, "probes.trait.negative is None; give a list of texts"),
        (("probes", "coherence", "answers"), [], "answers"),
        (("model",), 7, "model is 7; it must be a text"),
        (("probes", "trait", "negative"), [" glad"], "probes.trait: [' glad'] are named twice"),
        (("lora", "init_lora_weights"), "pissa", "init_lora_weights='pissa'"),
    ],
)
def test_a_value_that_does_not_fit_is_named(capsys, tmp_path, spec, where, value, named):
    section = spec
    for name in where[:-1]:
        section = section[name]
    section[where[-1]] = value
    assert named in failure(capsys, tmp_path, spec)


def test_an_exponent_without_a_point_is_a_number(tmp_path, spec):
    path = Path(write(tmp_path, spec))
    path.write_text(path.read_text().replace("learning_rate: 0.01", "learning_rate: 5e-5"))
    assert read_spec(path, on_cpu=True).training.learning_rate == 5e-5


def test_a_list_of_texts_may_be_a_file_beside_the_specification(tmp_path, spec):
    assert read_spec(Path(write(tmp_path, spec)), on_cpu=True).proposer.prompts == ["The sea is", "A fox"]


def test_the_filters_of_the_round_are_those_of_the_search_for_a_dose(tmp_path, spec):
    read = read_spec(Path(write(tmp_path, spec)), on_cpu=True)
    assert read.proposer.filters is read.filters


def test_the_cpu_trains_in_float32_unless_the_file_says_otherwise(tmp_path, spec):
    path = Path(write(tmp_path, spec))
    assert read_spec(path, on_cpu=True).training.bf16 is False
    spec["training"]["bf16"] = True
    assert read_spec(Path(write(tmp_path, spec)), on_cpu=True).training.bf16 is True


def test_the_cpu_loads_the_weights_in_float32_whatever_they_were_saved_in(tmp_path, spec):
    tiny_causal_lm(hidden_size=32).bfloat16().save_pretrained(tmp_path / "model")
    read = read_spec(Path(write(tmp_path, spec)), on_cpu=True)
    assert _load(read.model, read.training).dtype == torch.float32


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", ""])
def test_a_file_that_holds_no_specification_is_named(capsys, tmp_path, text):
    (tmp_path / "spec.yaml").write_text(text)
    assert main(["barrier", "rounds", str(tmp_path / "spec.yaml")]) == 2
    assert "spec.yaml" in capsys.readouterr().err


def test_a_file_or_folder_that_is_missing_is_named(capsys, tmp_path):
    assert main(["barrier", "rounds", str(tmp_path / "nowhere.yaml")]) == 2
    assert main(["barrier", "report", str(tmp_path / "nowhere")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "nowhere.yaml" in errors[0] and "results.jsonl is missing" in errors[1]


def test_the_example_in_the_help_is_a_valid_specification(capsys, tmp_path):
    for name in ("contexts.txt", "prompts.txt"):
        (tmp_path / name).write_text("one\ntwo\n")
    (tmp_path / "spec.yaml").write_text(EXAMPLE.split("\n\n")[1])
    example = read_spec(tmp_path / "spec.yaml", on_cpu=True)
    assert example.training.learning_rate == 1e-4 and example.options["rounds"] == 8
    with pytest.raises(SystemExit, match="0"):
        build_parser().parse_args(["barrier", "rounds", "--help"])
    assert example.options["coherence_floor"] == 0.5
    shown = capsys.readouterr().out
    assert "coherence_floor: 0.5" in shown and "Look at that of round 0 before you choose `coherence_floor`" in shown


def test_a_damaged_line_of_the_results_is_one_line_and_exit_code_two(capsys, finished_run, tmp_path):
    records = [json.loads(line) for line in (finished_run / "results.jsonl").read_text().splitlines()]
    del records[1]["settings"]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["barrier", "report", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "results.jsonl, line 2 is damaged: it has no 'settings'" in line
