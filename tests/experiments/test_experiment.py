"""What is started, what is skipped, what is recorded. The runs are processes that train nothing: see `stand_in`."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from alignkit.evaluation.results import read_results
from alignkit.experiments import experiment as module
from alignkit.experiments.experiment import Experiment
from alignkit.experiments.locks import try_lock
from alignkit.experiments.spec import read_experiment
from alignkit.experiments.status import states

RUN = 10 * "?" + "-seed*"  # no baseline
STAND_IN = Path(__file__).parent / "stand_in.py"


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    monkeypatch.setattr(module, "command_of", lambda folder, accelerate: [sys.executable, str(STAND_IN), str(folder)])


@pytest.fixture
def make(write, spec):
    """An experiment; keywords change its specification."""

    def make_experiment(**changes) -> Experiment:
        return Experiment(read_experiment(write({**spec, **changes})), say=lambda line: None)

    return make_experiment


def attempts(experiment: Experiment) -> dict[float, int]:
    """How often each run was started, by its learning rate, which is 0.01 for a run that ends well."""
    found = {}
    for path in (experiment.folder / "runs").glob(f"{RUN}/attempts"):
        config = json.loads((path.parent / "config.json").read_text())
        found[config["training"]["learning_rate"]] = int(path.read_text())
    return found


def by_status(experiment: Experiment) -> dict[str, int]:
    results = read_results(experiment.results_file)
    return {status: sum(result.status == status for result in results) for status in ("finished", "failed")}


def interrupt_when(condition, number: int) -> None:
    def watch() -> None:
        while not condition():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_crash_is_recorded_with_its_last_words_and_the_others_go_on(make):
    experiment = make(grid={"learning_rate": [1, 0.01]})
    experiment.carry_out()
    assert by_status(experiment) == {"finished": 2, "failed": 1}  # with the baseline
    (failed,) = [result for result in read_results(experiment.results_file) if result.status == "failed"]
    log = experiment.folder / "runs" / failed.run / "log.txt"
    assert failed.error == f"RuntimeError: out of luck (see {log})" and "Traceback" in log.read_text()
    assert failed.config["learning_rate"] == 1.0 and failed.config["lora_r"] == 2
    assert experiment.summary().startswith("tiny: 2 finished, 1 failed; results are in")


def test_started_again_it_skips_what_is_finished_and_tries_what_failed_once_more(make):
    grid = {"learning_rate": [6, 0.01]}
    make(grid=grid).carry_out()
    again = make(grid=grid)
    again.carry_out()
    assert attempts(again) == {6.0: 2, 0.01: 1}
    assert by_status(again) == {"finished": 3, "failed": 1}
    before = again.results_file.read_bytes()
    make(grid=grid).carry_out()
    assert again.results_file.read_bytes() == before


def test_a_run_that_was_killed_is_resumed_and_one_that_is_killed_twice_has_failed(make):
    experiment = make(grid={"learning_rate": [2, 3]})
    experiment.carry_out()
    assert attempts(experiment) == {2.0: 2, 3.0: 2}
    (failed,) = [result for result in read_results(experiment.results_file) if result.status == "failed"]
    assert failed.error.startswith("killed by SIGKILL, twice (see ")


def test_a_run_that_ends_without_results_has_failed(make):
    experiment = make(grid={"learning_rate": [5]})
    experiment.carry_out()
    assert by_status(experiment) == {"finished": 1, "failed": 1}


def test_the_first_run_goes_alone_and_then_as_many_as_were_asked_for(make):
    experiment = make(processes=2, seeds=[0, 1, 2, 3, 4])
    at_once = []
    experiment.say = lambda line: at_once.append(len(experiment.running))
    experiment.carry_out()
    folders = [path.parent for path in (experiment.folder / "runs").glob(f"{RUN}/ended")]
    times = sorted((float((f / "began").read_text()), float((f / "ended").read_text())) for f in folders)
    assert len(times) == 5
    assert all(began >= times[0][1] for began, _ in times[1:])
    assert max(at_once) == 2


def test_a_run_that_another_process_carries_out_is_waited_for_and_not_repeated(make):
    said = []
    experiment = make(seeds=[0, 1])
    experiment.say = said.append
    job = experiment.spec.jobs_of(experiment.spec.base)[0]
    lock = try_lock(experiment.run_folder(job).lock)
    assert {state for other, state in states(experiment.spec) if other == job} == {"running"}

    def finish_and_release() -> None:
        while len(experiment.outcome) < 2:
            time.sleep(0.05)
        other = read_results(experiment.results_file)[-1]
        with open(experiment.results_file, "a") as file:
            file.write(json.dumps({**vars(other), "run": job.run}) + "\n")
        os.close(lock)

    threading.Thread(target=finish_and_release).start()
    experiment.carry_out()
    assert f"{job.run} is being carried out by another process; waiting for it" in said
    assert experiment.outcome[job.run] == "finished"
    assert not (experiment.run_folder(job).path / "attempts").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_stops_its_runs_and_says_what_is_done(make, number):
    experiment = make(grid={"learning_rate": [0.01, 4]}, processes=2)
    before = signal.getsignal(signal.SIGTERM)
    interrupt_when(
        lambda: len(list(experiment.folder.glob(f"runs/{RUN}/began"))) == 2 and len(experiment.outcome) == 2,
        number,
    )
    with pytest.raises(KeyboardInterrupt):
        experiment.carry_out()
    assert experiment.summary().startswith("tiny: 2 finished, 0 failed, 1 stopped; results are in")
    assert not any(alive(running.process.process.pid) for running in experiment.running.values())
    assert signal.getsignal(signal.SIGTERM) == before
    assert [state for _, state in states(experiment.spec)] == ["finished", "finished", "interrupted"]


def test_another_task_in_the_same_folder_is_refused_but_a_mistake_may_be_corrected(make):
    with pytest.raises(ValueError, match=r"task names the file wrong.py, and there is none"):
        make(task="wrong.py:task").carry_out()
    with pytest.raises(ValueError, match=r"the model '/no/where' has no tokenizer .*; give a folder"):
        make(model="/no/where").carry_out()
    experiment, late = make(), make(task="tests.experiments.tiny_task:crashing")
    experiment.carry_out()
    with pytest.raises(ValueError, match=r"out holds an experiment with task .*; give another output_dir"):
        make(task="tests.experiments.tiny_task:crashing")
    with pytest.raises(ValueError, match=r"out holds an experiment with task .*; give another output_dir"):
        late.carry_out()


def test_status_says_how_far_each_run_is(make):
    experiment = make(grid={"learning_rate": [0.01, 1]})
    assert [state for _, state in states(experiment.spec)] == ["to do"] * 3
    experiment.carry_out()
    assert [state for _, state in states(experiment.spec)] == ["finished", "finished", "failed"]


SEARCH = {
    "n_trials": 4,
    "parameters": {"beta": {"low": 0.01, "high": 0.9}, "lora.r": {"low": 2, "high": 8}},
    "objective": {"item_set": "held_out", "metric": "margin", "direction": "maximize"},
}


def trials_of(experiment: Experiment) -> list[tuple[dict, float | None, str]]:
    return [(trial.params, trial.value, trial.state.name) for trial in experiment.search.study.trials]


def test_a_search_tries_settings_and_a_trial_is_worth_the_mean_of_its_seeds(make):
    experiment = make(search={**SEARCH, "n_trials": 2}, seeds=[0, 1])
    experiment.carry_out()
    for parameters, value, state in trials_of(experiment):
        assert state == "COMPLETE" and isinstance(parameters["lora.r"], int)
        assert value == pytest.approx(-((parameters["beta"] - 0.3) ** 2))
    assert by_status(experiment) == {"finished": 5, "failed": 0}
    runs = {result.run: result for result in read_results(experiment.results_file) if result.kind == "run"}
    assert {name.rpartition("-")[2] for name in runs} == {"seed0", "seed1"}


def test_a_search_that_was_interrupted_tries_what_it_would_have_tried(make, tmp_path):
    whole = make(search=SEARCH)
    whole.carry_out()
    split = make(search=SEARCH, output_dir=str(tmp_path / "split"))
    interrupt_when(lambda: len(list(split.folder.glob(f"runs/{RUN}/began"))) == 2, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        split.carry_out()
    assert trials_of(split)[-1][2] == "RUNNING"
    again = make(search=SEARCH, output_dir=str(tmp_path / "split"))
    again.carry_out()
    assert trials_of(again) == trials_of(whole) and len(trials_of(whole)) == 4
    assert {(line.run, line.mean) for line in read_results(again.results_file)} == {
        (line.run, line.mean) for line in read_results(whole.results_file)
    }


def test_a_trial_whose_run_failed_is_noted_as_failed_and_counts(make):
    parameters = {"learning_rate": {"choices": [1]}}
    experiment = make(search={**SEARCH, "n_trials": 2, "parameters": parameters})
    experiment.carry_out()
    assert [state for _, _, state in trials_of(experiment)] == ["FAIL", "FAIL"]


def test_an_objective_that_the_task_does_not_measure_is_named_before_any_training(make):
    objective = {"item_set": "held_in", "metric": "margin", "direction": "maximize"}
    experiment = make(search={**SEARCH, "objective": objective})
    with pytest.raises(ValueError, match="objective is margin of held_in, and the task measures margin of held_out"):
        experiment.carry_out()
    assert attempts(experiment) == {}
