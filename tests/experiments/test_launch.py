"""How a run is started: the command line, the cluster, the packages that may be missing."""

import os
import sys
from pathlib import Path

import pytest

from alignkit.experiments.experiment import Experiment
from alignkit.experiments.launch import TAKEN, command_of, run_locked
from alignkit.experiments.locks import try_lock
from alignkit.experiments.processes import LocalProcess, visible_gpus
from alignkit.experiments.spec import read_experiment
from tests.experiments.test_spec import SEARCH

RUN_ONE = ["-m", "alignkit.experiments.run_one", "folder"]


def test_a_plain_run_is_a_fresh_interpreter():
    assert command_of(Path("folder"), {}) == [sys.executable, *RUN_ONE]


def test_options_of_accelerate_launch_go_on_its_command_line():
    options = {"num_processes": 2, "multi_gpu": True, "cpu": False, "mixed_precision": "bf16"}
    command = command_of(Path("folder"), options)
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert command[3:] == ["--num_processes", "2", "--multi_gpu", "--mixed_precision", "bf16", *RUN_ONE]


def test_runs_of_several_processes_have_ids_of_their_own(write, spec):
    plain = Experiment(read_experiment(write(spec))).spec
    launched = Experiment(read_experiment(write({**spec, "launch": {"num_processes": 2}})), launched=True).spec
    assert launched.jobs_of(launched.base)[0].run != plain.jobs_of(plain.base)[0].run
    assert launched.baselines() == plain.baselines()
    elsewhere = {**spec, "launch": {"num_processes": 2, "main_process_port": 29600}}
    moved = Experiment(read_experiment(write(elsewhere)), launched=True).spec
    assert moved.jobs_of(moved.base) == launched.jobs_of(launched.base)


def test_launch_without_a_launch_in_the_file_is_named(write, spec):
    with pytest.raises(ValueError, match="the specification has no launch; add one, or use `alignkit experiment run`"):
        Experiment(read_experiment(write(spec)), launched=True)


@pytest.mark.parametrize(
    ("package", "change", "message"),
    [
        ("optuna", {"search": SEARCH}, r"search needs Optuna: pip install 'alignkit\[experiments\]'"),
        ("submitit", {"launch": {"executor": "slurm"}}, r"slurm needs submitit: pip install 'alignkit\[cluster\]'"),
    ],
)
def test_a_package_that_is_missing_is_an_error_that_names_the_extra(
    write, spec, monkeypatch, package, change, message
):
    monkeypatch.setitem(sys.modules, package, None)
    read = read_experiment(write({**spec, **change}))
    with pytest.raises(ValueError, match=message):
        Experiment(read, launched="launch" in change)


@pytest.mark.parametrize("launch", [{"executor": "local", "timeout": 5}, {"executor": "local", "timeout_min": "long"}])
def test_a_parameter_that_the_cluster_does_not_know_is_an_error_before_any_run(write, spec, launch):
    with pytest.raises(ValueError, match=r"launch: .*timeout"):
        Experiment(read_experiment(write({**spec, "launch": launch})), launched=True)


def test_a_cluster_that_is_not_there_is_an_error(write, spec, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match=r"launch: .*srun"):
        Experiment(read_experiment(write({**spec, "launch": {"executor": "slurm"}})), launched=True)


def test_a_job_leaves_a_run_alone_that_another_process_carries_out(tmp_path):
    lock = try_lock(tmp_path / "lock")
    code = [sys.executable, "-c", "print('here'); raise SystemExit(3)"]
    assert run_locked(code, tmp_path, tmp_path / "log.txt") == TAKEN
    LocalProcess([sys.executable, "-c", "pass"], tmp_path / "log.txt", lock=lock).process.wait()
    os.close(lock)
    assert run_locked(code, tmp_path, tmp_path / "log.txt") == 3
    assert (tmp_path / "log.txt").read_text() == "here\n"


def test_a_process_holds_the_lock_of_its_run_after_the_one_that_started_it_let_go(tmp_path):
    lock = try_lock(tmp_path / "lock")
    process = LocalProcess([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log.txt", lock=lock)
    os.close(lock)
    assert try_lock(tmp_path / "lock") is None and process.poll() is None
    process.stop()
    assert process.poll() == -15
    assert try_lock(tmp_path / "lock") is not None


def test_a_process_sees_the_gpu_of_its_slot_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_gpus() == ["3", "5"]
    lock = try_lock(tmp_path / "lock")
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    LocalProcess([sys.executable, "-c", code], tmp_path / "log.txt", lock=lock, gpu="5").process.wait()
    assert (tmp_path / "log.txt").read_text() == "5\n"
