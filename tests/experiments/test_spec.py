"""A specification is checked key by key: what it says, and the one line that a mistake in it gets."""

from datetime import date
from pathlib import Path

import pytest

from alignkit.experiments.command import EXAMPLE
from alignkit.experiments.settings import Settings
from alignkit.experiments.spec import read_experiment


def test_a_grid_is_every_combination_and_arms_stand_beside_it(write, spec):
    spec["seeds"] = [0, 1]
    spec["grid"] = {"beta": [0.02, 0.05], "lora.r": [4, 16]}
    spec["arms"] = [{"beta": 0.02, "learning_rate": 5e-3}, {"lora.lora_alpha": 64}]
    read = read_experiment(write(spec))
    changed = [(s.training.get("beta"), s.lora.get("r", 8)) for s in read.settings[:4]]
    assert changed == [(0.02, 4), (0.02, 16), (0.05, 4), (0.05, 16)]
    assert read.settings[4].training["learning_rate"] == 5e-3 and read.settings[4].lora["r"] == 2
    assert read.settings[5].lora["lora_alpha"] == 64 and "beta" not in read.settings[5].training
    jobs = [job for settings in read.settings for job in read.jobs_of(settings)]
    assert len({job.run for job in jobs}) == 12
    assert jobs[0].run.removesuffix("-seed0") == jobs[1].run.removesuffix("-seed1")


def test_without_grid_arms_and_search_there_is_one_run_per_seed(write, spec):
    read = read_experiment(write(spec))
    assert read.settings == [read.base] and read.seeds == [0]


def test_arms_without_a_grid_are_all_there_is(write, spec):
    spec["arms"] = [{"beta": 0.3}]
    assert [settings.training["beta"] for settings in read_experiment(write(spec)).settings] == [0.3]


def test_without_lora_the_whole_model_is_trained(write, spec):
    del spec["lora"]
    assert read_experiment(write(spec)).base.lora is None


def test_an_exponent_without_a_point_and_a_whole_number_are_numbers_where_the_field_is_one(write, spec):
    path = write({**spec, "training": {"learning_rate": "RATE", "beta": 1}})
    path.write_text(path.read_text().replace("RATE", "5e-5"))
    training = read_experiment(path).base.training
    assert training == {"learning_rate": 5e-5, "beta": 1.0} and isinstance(training["beta"], float)


def test_a_default_that_is_written_out_makes_no_other_run(write, spec):
    run = read_experiment(write(spec)).jobs_of(read_experiment(write(spec)).base)[0].run
    spec["training"]["beta"] = 0.1
    spec["lora"]["r"] = 2
    read = read_experiment(write(spec))
    assert read.jobs_of(read.base)[0].run == run


@pytest.mark.parametrize(
    ("where", "value"),
    [("model", "other"), ("task", "a:b"), ("training", {"beta": 0.2}), ("lora", {"r": 4}), ("seeds", [1])],
)
def test_the_id_of_a_run_follows_from_all_that_changes_its_result(write, spec, where, value):
    before = read_experiment(write(spec))
    after = read_experiment(write({**spec, where: value}))
    assert after.jobs_of(after.base)[0].run != before.jobs_of(before.base)[0].run


@pytest.mark.parametrize(("key", "value"), [("name", "other"), ("processes", 4), ("keep_models", True)])
def test_the_id_of_a_run_does_not_follow_from_the_rest(write, spec, key, value):
    before = read_experiment(write(spec))
    after = read_experiment(write({**spec, key: value}))
    assert after.jobs_of(after.base)[0].run == before.jobs_of(before.base)[0].run


def test_the_start_model_is_measured_once_when_greedy_and_for_every_seed_when_sampled(write, spec):
    spec["seeds"] = [3, 4]
    assert [job.seed for job in read_experiment(write(spec)).baselines()] == [3]
    spec["decoding"] = {"do_sample": True, "temperature": 0.2}
    assert [job.seed for job in read_experiment(write(spec)).baselines()] == [3, 4]
    spec["baselines"] = {"decodings": [{"do_sample": False}, {"do_sample": True}], "seeds": [0, 1, 2]}
    assert len({job.run for job in read_experiment(write(spec)).baselines()}) == 6


def test_another_beta_has_the_same_baseline_and_another_loading_has_not(write, spec):
    (before,) = read_experiment(write(spec)).baselines()
    (same,) = read_experiment(write({**spec, "training": {"beta": 0.3}})).baselines()
    (other,) = read_experiment(write({**spec, "training": {"model_init_kwargs": {"dtype": "bfloat16"}}})).baselines()
    assert same.run == before.run != other.run


@pytest.mark.parametrize(
    ("where", "key", "nearest"),
    [
        ((), "seed", "seeds"),
        (("training",), "learnig_rate", "learning_rate"),
        (("training",), "bta", "beta"),
        (("lora",), "rank", "rank_pattern"),
        (("grid",), "beeta", "beta"),
        (("grid",), "lora.alpha", "lora.lora_alpha"),
        (("decoding",), "temprature", "temperature"),
        (("baselines",), "decoding", "decodings"),
        (("search",), "trials", "n_trials"),
        (("launch",), "num_proceses", "num_processes"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_one(write, spec, where, key, nearest):
    section = spec.setdefault(where[0], {}) if where else spec
    section[key] = [1]
    with pytest.raises(ValueError, match=r"spec\.yaml: .* is no known key") as error:
        read_experiment(write(spec))
    assert f"spec.yaml: {'.'.join([*where, key])} is no known key; the nearest is {nearest!r}" in str(error.value)


@pytest.mark.parametrize("key", ["output_dir", "seed", "data_seed", "run_name", "ref_cache_dir"])
def test_a_field_that_the_experiment_sets_is_no_setting(write, spec, key):
    spec["training"][key] = 1
    with pytest.raises(ValueError, match=f"training.{key} is no known key"):
        read_experiment(write(spec))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training", {"learning_rate": "fast"}, "training.learning_rate is 'fast'; it must be a number"),
        ("training", {"max_steps": 2.5}, "training.max_steps is 2.5; it must be a whole number"),
        ("training", {"share_prefix": "no"}, "training.share_prefix is 'no'; it must be true or false"),
        ("training", {"beta_schedule": "wavy"}, "training.beta_schedule is 'wavy'; it must be one of ['constant'"),
        ("training", {"beta": 0}, "beta is 0.0; it must be a finite number above 0"),
        ("training", {"beta": -0.1}, "beta is -0.1; it must be a finite number above 0"),
        ("training", {"beta": float("nan")}, "beta is nan; it must be a finite number above 0"),
        ("training", {"beta_schedule": "linear"}, "beta_schedule is 'linear'; say where it ends with beta_end"),
        ("training", [1], "training holds [1] where keys with values should be"),
        ("lora", {"r": "many"}, "lora.r is 'many'; it must be a whole number"),
        ("grid", {}, "grid is empty"),
        ("grid", {"beta": []}, "grid.beta is []; give a list of values, at least one"),
        ("grid", {"beta": 0.1}, "grid.beta is 0.1; give a list of values"),
        ("grid", {"beta": [0.1, 0.2, 0.1]}, "grid.beta lists 0.1 twice"),
        ("grid", {"beta": [0.1, "low"]}, "grid.beta is 'low'; it must be a number"),
        ("grid", {"beta": [0.1, -1]}, "grid point {'beta': -1}: beta is -1.0"),
        ("arms", [], "arms is empty"),
        ("arms", [{"beta": 0.1}, {"lora.r": 2}], "arms[1] {'lora.r': 2} gives the same settings as arms[0]"),
        ("arms", [3], "arms[0] holds 3 where keys with values should be"),
        ("seeds", [], "seeds is []; give a list of whole numbers"),
        ("seeds", 3, "seeds is 3; give a list of whole numbers"),
        ("seeds", [0, 1.5], "seeds holds 1.5; seeds are whole numbers"),
        ("seeds", [0, "1"], "seeds holds '1'"),
        ("seeds", [0, True], "seeds holds True"),
        ("seeds", [-1], "seeds holds -1"),
        ("seeds", [1, 1], "seeds holds 1 twice"),
        ("baselines", {"seeds": [0.5]}, "baselines.seeds holds 0.5"),
        ("baselines", {"decodings": []}, "baselines.decodings is []"),
        ("baselines", {"decodings": [{}, {}]}, "baselines.decodings lists {} twice"),
        ("training", {"learning_rate": 10**400}, "training.learning_rate has more than 300 digits"),
        ("decoding", {"stop_strings": date(2026, 11, 22)}, "cannot be written down"),
        ("decoding", {"do_sample": 1}, "decoding.do_sample is 1; it must be true or false"),
        ("method", "sft", "method is 'sft'; choose one of dpo"),
        ("model", 7, "model is 7; it must be a text"),
        ("processes", 0, "processes is 0; give at least 1"),
        ("keep_models", "yes please", "keep_models is 'yes please'; it must be true or false"),
        ("launch", {"executor": "kubernetes"}, "launch.executor is 'kubernetes'; choose one of accelerate, slurm"),
        ("launch", {}, "launch is empty"),
        ("launch", {"multi_gpu": 1}, "launch.multi_gpu is 1; it must be true or false"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_file_and_key(write, spec, key, value, message):
    spec[key] = value
    with pytest.raises(ValueError) as error:
        read_experiment(write(spec))
    assert "spec.yaml: " in str(error.value) and message in str(error.value)


SEARCH = {
    "n_trials": 3,
    "parameters": {"beta": {"low": 0.01, "high": 0.5, "log": True}},
    "objective": {"item_set": "held_out", "metric": "margin", "direction": "maximize"},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_trials": 0}, "search.n_trials is 0"),
        ({"n_trials": None}, "n_trials is missing; search needs"),
        ({"sampler": "grid"}, "search.sampler is 'grid'; choose one of tpe, random"),
        ({"parameters": {}}, "search.parameters is empty"),
        ({"parameters": {"beeta": {"low": 0, "high": 1}}}, "search.parameters.beeta is no known key; the nearest is"),
        ({"parameters": {"beta": {"low": 0.1}}}, "high is missing; search.parameters.beta needs low, high"),
        ({"parameters": {"beta": {"low": 1, "high": 0.1}}}, "search.parameters.beta goes from 1 to 0.1"),
        ({"parameters": {"beta": {"low": 0, "high": 0.1}}}, "search.parameters.beta=0: beta is 0.0"),
        ({"parameters": {"beta": {"low": 0, "high": 1, "log": True}}}, "with log it must be above 0"),
        ({"parameters": {"beta": {"choices": []}}}, "search.parameters.beta.choices is []"),
        ({"parameters": {"beta": {"choices": [0.1], "low": 1}}}, "search.parameters.beta.low is no known key"),
        ({"objective": {"item_set": "a", "metric": "b"}}, "direction is missing; search.objective needs"),
        ({"objective": {"item_set": "a", "metric": "b", "direction": "up"}}, "direction is 'up'; choose one of max"),
    ],
)
def test_a_search_that_cannot_be_made_is_named(write, spec, change, message):
    spec["search"] = {**SEARCH, **change}
    with pytest.raises(ValueError) as error:
        read_experiment(write(spec))
    assert message in str(error.value)


def test_a_search_beside_a_grid_is_refused(write, spec):
    with pytest.raises(ValueError, match="search and grid are both given"):
        read_experiment(write({**spec, "search": SEARCH, "grid": {"beta": [0.1]}}))


@pytest.mark.parametrize("key", ["name", "output_dir", "method", "task", "model"])
def test_a_missing_key_is_named(write, spec, key):
    del spec[key]
    with pytest.raises(ValueError, match=rf"spec\.yaml: {key} is missing; an experiment needs name, output_dir"):
        read_experiment(write(spec))


def test_a_key_that_is_given_twice_is_named_with_its_line(write, spec):
    path = write(spec)
    path.write_text(path.read_text() + "grid:\n  beta: [0.1]\n  beta: [0.2]\n")
    with pytest.raises(ValueError, match=r"spec\.yaml: line \d+: beta is given twice"):
        read_experiment(path)


def test_a_grid_point_that_an_arm_repeats_is_refused(write, spec):
    spec["grid"], spec["arms"] = {"beta": [0.1, 0.2]}, [{"beta": 0.2}]
    with pytest.raises(ValueError, match=r"arms\[0\] {'beta': 0.2} gives the same settings as grid point"):
        read_experiment(write(spec))


def test_the_example_in_the_help_is_a_valid_specification(tmp_path):
    path = tmp_path / "spec.yaml"
    text = EXAMPLE.split("\n\n")
    path.write_text(text[1])
    read = read_experiment(path)
    assert len(read.settings) == 8 and len(read.baselines()) == 5
    assert read.settings[-1].lora == {"lora_alpha": 64, "r": 32, "target_modules": "all-linear"}
    search = "\n".join(line for line in text[1].splitlines() if not line.startswith(("  grid", "  arms", "    -")))
    path.write_text(search + "\n" + text[3] + "\n" + text[5].splitlines()[1])
    read = read_experiment(path)
    assert read.search is not None and read.launch is not None and read.launch.cluster["timeout_min"] == 120


def test_a_flat_record_has_the_prefix_lora_once():
    settings = Settings({"beta": 0.2}, {"r": 2, "lora_alpha": 4})
    assert settings.flat() == {"beta": 0.2, "lora_r": 2, "lora_alpha": 4}


def test_two_fields_of_a_lora_that_would_share_a_name_in_the_record_do_not():
    assert Settings({}, {"bias": "all", "lora_bias": True}).flat() == {"lora_bias": "all", "lora_lora_bias": True}


def test_a_file_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(OSError, match="nowhere"):
        read_experiment(tmp_path / "nowhere.yaml")
