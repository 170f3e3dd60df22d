"""Results to runs to settings."""

from typing import Any

import pytest

from alignkit.evaluation.results import failed_result
from alignkit.evaluation.settings import gather
from tests.evaluation.records import ORIGIN, baseline, nll, result


def run_of(name: str, seed: int = 0, **config: Any) -> Any:
    return result(name, seed=seed, config={"seed": seed, "output_dir": f"runs/{name}", **config})


def test_runs_that_differ_by_seed_and_folder_alone_are_one_setting() -> None:
    experiment = gather([run_of("a", 1, beta=0.02), run_of("b", 0, beta=0.02), run_of("c", 0, beta=0.05)])
    assert [[run.name for run in setting.runs] for setting in experiment.settings] == [["b", "a"], ["c"]]
    assert experiment.varying == ("beta",)


def test_settings_are_numbered_in_the_order_of_their_values_and_not_of_the_file() -> None:
    experiment = gather([run_of("x", beta=0.1), run_of("y", beta=None), run_of("z", beta=0.02)])
    assert [(setting.number, setting.values["beta"]) for setting in experiment.settings] == [
        (1, None),
        (2, 0.02),
        (3, 0.1),
    ]


def test_labels_leave_out_what_most_settings_share() -> None:
    experiment = gather(
        [run_of("a", beta=0.02, r=16), run_of("b", beta=0.03, r=16), run_of("c", beta=0.02, r=32, sigma=1.0)]
    )
    assert [setting.label for setting in experiment.settings] == ["usual values", "r 32, sigma 1", "beta 0.03"]
    assert experiment.usual == {"beta": 0.02, "r": 16, "sigma": None}


def test_one_setting_has_the_name_of_its_run_and_shares_all_fields() -> None:
    experiment = gather([run_of("only", beta=0.02)])
    assert experiment.settings[0].label == "only"
    assert experiment.common == {"beta": 0.02}


def test_one_setting_is_named_after_its_first_seed_whichever_run_ended_first() -> None:
    lines = [result(run=f"beta-seed{seed}", seed=seed) for seed in (1, 0)]
    assert gather(lines).settings[0].label == gather(lines[::-1]).settings[0].label == "beta-seed0"


def test_whole_numbers_are_equal_however_they_are_written() -> None:
    assert len(gather([run_of("a", 0, epochs=1), run_of("b", 1, epochs=1.0)]).settings) == 1


def test_several_item_sets_of_a_run_are_one_run() -> None:
    experiment = gather([result("a"), nll("a"), baseline()])
    assert len(experiment.settings[0].runs[0].results) == 2
    assert [one.run for one in experiment.baselines] == ["baseline-seed0"]


def test_a_run_that_failed_and_finished_later_did_not_fail() -> None:
    dead = failed_result(run="a", error="out of memory", config={}, seed=0, wall_time_s=1.0, **ORIGIN)
    assert gather([dead, result("a")]).failed == ()
    assert gather([result("b"), dead]).failed == (dead,)


def test_of_two_results_for_one_thing_the_last_counts_and_it_is_said() -> None:
    experiment = gather([result("a"), result("a", items={"a": 0.0, "b": 0.0, "c": 0.0})])
    assert [one.mean for one in experiment.settings[0].runs[0].results] == [0.0]
    assert experiment.replaced == (("a", "tatqa_dev"),)


def test_contradictions_are_errors_that_name_the_runs() -> None:
    with pytest.raises(ValueError, match=r"the run 'a' has two configurations, which differ in beta"):
        gather([result("a", config={"beta": 1}), nll("a", config={"beta": 2})])
    with pytest.raises(ValueError, match="differ in seed"):
        gather([result("a", seed=0), nll("a", seed=1)])
    with pytest.raises(ValueError, match="'a', 'b' share a setting, and some a seed"):
        gather([result("a"), result("b")])
