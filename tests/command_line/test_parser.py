"""What flags and files say, and what is refused."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from alignkit.command_line.methods import METHODS, parser_of
from alignkit.command_line.parser import split_dotted


def parse(*arguments: str, method: str = "dpo"):
    return parser_of(method).parse(arguments)


@pytest.mark.parametrize("method", METHODS)
def test_the_help_has_every_field_with_those_of_the_method_first(method):
    parser = parser_of(method)
    text = parser.format_help()
    *_, config = parser.dataclass_types
    places = {field.name: text.index(f"\n  --{field.name} ") for field in fields(config) if field.init}
    titles = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    expected = ["options", "of this method", "data", "model", "LoRA and quantisation", "from TRL", "from transformers"]
    assert titles == [title for title in expected if method != "es" or title != "from TRL"]
    ours = [base for base in config.__mro__ if base.__module__.startswith("alignkit.")]
    inherited = set().union(*(inspect.get_annotations(base) for base in config.__mro__ if base not in ours))
    own = {True: [], False: []}
    for name in set().union(*map(inspect.get_annotations, ours)) & set(places):
        own[name not in inherited].append(places[name])
    assert max(own[True]) < min(own[False]) <= max(own[False]) < text.index("\ndata:") < text.index("--dataset_name")
    assert places["output_dir"] > text.index("\nfrom transformers:")


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    content = "beta: 0.3\nlearning_rate: 5e-5\nsave_strategy: no\nlora_target_modules: all-linear\n"
    (tmp_path / "run.yaml").write_text(content)
    parsed = parse("--config", str(tmp_path / "run.yaml"), "--beta", "0.2", "--use_peft")
    training = parsed.training
    assert (training.beta, training.learning_rate, training.kl_steps) == (0.2, 5e-5, 100)
    assert training.save_strategy == "no"
    assert parsed.model.peft_config().target_modules == "all-linear"


def test_keys_of_a_mapping_are_flags_and_keep_the_others(tmp_path):
    (tmp_path / "run.yaml").write_text("lora: {r: 4, target_modules: all-linear}\nmodel_init_kwargs: {a: {b: 1}}\n")
    flags = ["--lora.r", "8", "--lora.lora_dropout=5e-2", "--model_init_kwargs.a.c", "[x, true]"]
    parsed = parse("--config", str(tmp_path / "run.yaml"), *flags)
    lora = parsed.model.peft_config()
    assert (lora.r, lora.lora_dropout, lora.target_modules) == (8, 0.05, "all-linear")
    assert parsed.training.model_init_kwargs == {"a": {"b": 1, "c": ["x", True]}}
    weights = parse("--tier_weights.soft", "1", "--tier_weights", '{"hard": 3}', method="reward").training.tier_weights
    assert weights == {"hard": 3, "soft": 1}


def test_a_dot_in_a_value_is_no_key():
    assert split_dotted(["--output_dir", "./a.b", "--ref=c.d", "--x.y", "-1"]) == (
        ["--output_dir", "./a.b", "--ref=c.d"],
        [("x.y", -1)],
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("bta: 0.1", "bta is no known key; the nearest is 'beta'"),
        ("beta: 0.1\nbeta: 0.2", "line 2: beta is given twice"),
        ("beta:\n\t- 0.1", "is no YAML: (.|\n)*that cannot start any token"),
        ("beta: high", "beta is 'high'; it must be a number"),
        ("beta: [0.1]", r"beta is \[0.1\]; it must be a number"),
        ("beta_schedule: lineer", "beta_schedule is 'lineer'; it must be one of .*linear"),
        ("dtype: float8", "dtype is 'float8'; choose one of auto, bfloat16"),
        ("max_steps: 2.5", "max_steps is 2.5; it must be a whole number"),
        ("- beta", "holds .*where keys with values should be"),
        ("", "the file holds None where keys with values should be"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(tmp_path, content, message):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ValueError, match=f"run.yaml.*{message}"):
        parse("--config", str(tmp_path / "run.yaml"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora.rank", "8"], "lora.rank is no known key; the nearest is '(r|rank_pattern)'"),
        (["--lora.r", "eight"], "lora.r is 'eight'; it must be a whole number"),
        (["--lra.r", "8"], "--lra.r is no known key; the nearest is 'lora'"),
        (["--beta.x", "8"], "--beta.x is no known key"),
        (["--lora.r"], "--lora.r has no value"),
        (["--lora.r", "8", "--lora.r.x", "4"], "--lora.r.x sets a key of 8, which has none"),
        (["--lora_r", "8"], "lora_r is 8 but use_peft is off; add --use_peft"),
        (["--lora_r", "8", "--lora.r", "4"], "lora_r and lora.r are both given"),
        (["--columns.prompt", "3"], "columns.prompt is 3; it must be the name of a column"),
        (["--beta", "-1"], "beta is -1.0; it must be a finite number above 0"),
    ],
)
def test_a_flag_that_cannot_be_is_named(flags, message):
    with pytest.raises(ValueError, match=message):
        parse(*flags)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--bta", "0.1"], "alignkit dpo: --bta is no known argument; the nearest is --beta\n"),
        (
            ["--learning_rat=1"],
            "alignkit dpo: --learning_rat=1 is no known argument; the nearest is --learning_rate\n",
        ),
        (["--beta", "high"], "alignkit dpo: argument --beta: invalid float value: 'high'\n"),
    ],
)
def test_a_flag_that_the_parser_refuses_is_one_line(flags, line, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(*flags)
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_run_says_of_itself_gives_the_same_run_when_given_again(method, write_config, tmp_path):
    flags = ["--learning_rate", "3e-4", "--warmup_steps", "0.05", "--run_name", "1e-4", "--lora.r", "2"]
    flags += ["--no_disable_dropout"] if method == "dpo" else []
    first = parse("--config", write_config(method, save_strategy="no"), *flags, method=method)
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    again = parse("--config", str(tmp_path / "again.yaml"), method=method)
    assert again.changed == first.changed and again.training.to_dict() == first.training.to_dict()
    assert (again.data, again.model) == (first.data, first.model)
    assert again.training.run_name == "1e-4" and again.training.warmup_steps == 0.05
    assert not {"dry_run", "config", "seed"} & first.changed.keys()


def test_what_says_how_a_command_is_carried_out_is_no_part_of_the_run():
    parsed = parse("--dry_run", "--num_processes", "2", "--resume_from_checkpoint", "true", "--beta", "0.1")
    assert parsed.changed == {} and parsed.to_yaml() == ""  # 0.1 is the default
    assert parsed.run.dry_run and parsed.training.resume_from_checkpoint == "true"


def test_an_es_run_has_the_lora_that_its_trainer_would_add():
    lora = parse(method="es").model.peft_config()
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules) == (8, 16, 0.0, "all-linear")
    with pytest.raises(ValueError, match="evolves a LoRA; leave it on"):
        parse("--no_use_peft", method="es")


def test_fields_of_a_lora_that_have_no_flag_are_taken_with_those_that_have_one():
    lora = parse("--use_peft", "--lora_r", "2", "--lora.bias", "lora_only", method="reward").model.peft_config()
    assert (lora.r, lora.bias, lora.task_type, lora.lora_alpha) == (2, "lora_only", "SEQ_CLS", 32)
    assert parse().model.peft_config() is None


def test_a_model_gets_what_is_said_of_it_and_else_the_trainers_own_default():
    assert parse().model.init_kwargs() == {}
    flags = ["--dtype", "bfloat16", "--model_revision", "v1", "--attn_implementation", "eager"]
    expected = {"dtype": "bfloat16", "revision": "v1", "attn_implementation": "eager"}
    assert parse(*flags).model.init_kwargs() == expected
    quantized = parse("--load_in_4bit", "--dtype", "bfloat16").model.quantization_config()
    assert (quantized.load_in_4bit, str(quantized.bnb_4bit_compute_dtype)) == (True, "torch.bfloat16")


def test_the_parser_is_made_anew_for_each_command():
    path = Path("nowhere.yaml")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        parse("--config", str(path))
    assert parse("--beta", "0.5").changed == {"beta": 0.5}
