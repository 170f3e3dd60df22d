"""Experiments as users start them, with real runs: killed, interrupted, launched, two at a time."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.evaluation.results import Result, read_results
from alignkit.experiments.spec import read_experiment
from alignkit.experiments.status import states
from tests.experiments.conftest import TRAINING

RUN = 10 * "?" + "-seed*"  # no baseline
SCRIPT = Path(__file__).parent / "run_experiment.py"
DEADLINE_S = 900
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def start(spec: Path, command: str = "run") -> subprocess.Popen:
    with open(spec.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", str(SCRIPT), command, str(spec)], stdout=log, stderr=log
        )


def finish(spec: Path, command: str = "run", code: int = 0) -> str:
    """Let an experiment end, and return what it said."""
    assert start(spec, command).wait(DEADLINE_S) == code, spec.with_suffix(".log").read_text()
    return spec.with_suffix(".log").read_text()


def wait_for(folder: Path, pattern: str) -> Path:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if found := sorted(folder.glob(pattern)):
            return found[0]
        time.sleep(0.02)
    raise TimeoutError(f"no {pattern} in {folder}")


def scores(folder: str | Path) -> dict[tuple[str, str], Any]:
    """What the finished lines say, each of which there is once."""
    lines = [line for line in read_results(Path(folder) / "results.jsonl") if line.status == "finished"]
    found = {(line.run, line.item_set): (line.items, line.train_loss, line.eval_loss, line.history) for line in lines}
    assert len(found) == len(lines)
    return found


@pytest.fixture
def base(tmp_path: Path, model: str) -> dict[str, Any]:
    """The specification of an experiment of two runs of 40 steps and eight checkpoints."""
    return specification(tmp_path, model)


def specification(folder: Path, model: str) -> dict[str, Any]:
    return {
        **{"name": "tiny", "method": "dpo", "task": "tests.experiments.tiny_task:task", "model": model},
        "output_dir": str(folder / "out"),
        "training": {**TRAINING, "max_steps": 40, "save_steps": 5, "save_total_limit": 2},
        "lora": {"r": 2},
        "grid": {"beta": [0.1, 0.4]},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    """The folder of such an experiment that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "spec.yaml").write_text(yaml.safe_dump(specification(folder, model)))
    said = finish(folder / "spec.yaml")
    assert "tiny: 3 finished, 0 failed; results are in" in said
    return folder / "out"


def test_one_tokenisation_and_one_reference_pass_serve_all_runs(whole):
    folder = whole
    logs = [path.read_text() for path in sorted(folder.glob(f"runs/{RUN}/log.txt"), key=lambda p: p.stat().st_mtime)]
    assert ["Tokenizing train dataset" in log for log in logs] == [True, False]
    assert ["Tokenizing eval dataset" in log for log in logs] == [True, False]
    ready = (folder / "cache" / "ready").stat().st_ctime_ns
    first, second = sorted(folder.glob(f"runs/{RUN}/facts.json"), key=lambda path: path.stat().st_mtime_ns)
    assert first.stat().st_mtime_ns < ready
    files = [path for path in (folder / "cache").rglob("*") if path.is_file() and path.name != "ready"]
    assert any("reference" in path.parts for path in files)
    assert all(path.stat().st_mtime_ns < second.stat().st_mtime_ns for path in files)


def test_killed_at_any_moment_and_started_again_it_ends_in_the_same_records(whole, base, write, tmp_path):
    spec = write(base)
    folder = tmp_path / "out"
    for moment in ("runs/baseline*/facts.json", f"runs/{RUN}/trainer/checkpoint-10/complete.json"):
        experiment = start(spec)
        wait_for(folder, moment)
        experiment.kill()  # its run goes on; the next experiment waits for it
        experiment.wait()
    experiment = start(spec)
    wait_for(folder, f"runs/{RUN}/records.jsonl")
    experiment.kill()
    experiment.wait()
    finish(spec)
    assert scores(folder) == scores(whole)


def test_a_run_that_is_killed_goes_on_from_its_checkpoint_and_ends_in_the_same_records(whole, base, write, tmp_path):
    spec = write(base)
    experiment = start(spec)
    run = wait_for(tmp_path / "out", f"runs/{RUN}/trainer/checkpoint-10/complete.json").parents[2]
    children = subprocess.run(["pgrep", "-P", str(experiment.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    assert experiment.wait(DEADLINE_S) == 0
    assert f"{run.name} was killed by SIGKILL; it is resumed" in spec.with_suffix(".log").read_text()
    assert scores(tmp_path / "out") == scores(whole)


def test_ctrl_c_ends_the_runs_too_and_says_what_is_done(whole, base, write, tmp_path):
    spec = write(base)
    experiment = start(spec)
    wait_for(tmp_path / "out", f"runs/{RUN}/trainer/checkpoint-5/complete.json")
    children = subprocess.run(["pgrep", "-P", str(experiment.pid)], capture_output=True, text=True, check=True)
    experiment.send_signal(signal.SIGINT)
    assert experiment.wait(DEADLINE_S) == 130
    said = spec.with_suffix(".log").read_text().splitlines()[-1]
    assert said.startswith("interrupted. tiny: 1 finished, 0 failed, 1 stopped; results are in")
    assert said.endswith("give the command again to go on")
    for child in map(int, children.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    assert [state for _, state in states(read_experiment(spec))] == ["finished", "interrupted", "to do"]
    finish(spec)
    assert scores(tmp_path / "out") == scores(whole)


def test_two_experiments_on_one_folder_share_the_runs_and_lose_no_line(base, write, tmp_path):
    short = {**base, "training": {**base["training"], "max_steps": 2}}
    one, two = (start(write(short, name)) for name in ("one.yaml", "two.yaml"))
    codes = [one.wait(DEADLINE_S), two.wait(DEADLINE_S)]
    said = [(tmp_path / name).read_text() for name in ("one.log", "two.log")]
    assert codes == [0, 0], said
    assert len(scores(tmp_path / "out")) == 6  # each once
    assert all("tiny: 3 finished, 0 failed" in text for text in said)


def test_a_crash_in_one_run_is_recorded_and_leaves_the_others_alone(base, write, tmp_path, monkeypatch):
    monkeypatch.setenv("CRASH_ON_SEED", "7")
    spec = {**base, "task": "tests.experiments.tiny_task:crashing"}
    spec |= {"seeds": [7, 8], "training": {**base["training"], "max_steps": 1}, "baselines": {"seeds": [0]}}
    del spec["grid"]
    finish(write(spec), code=1)
    failed, *_ = [line for line in read_results(tmp_path / "out" / "results.jsonl") if line.status == "failed"]
    assert failed.seed == 7 and failed.error.startswith("RuntimeError: the lights went out at seed 7 (see ")
    assert failed.device.startswith("cpu") and failed.config["max_steps"] == 1 and failed.config["lora_r"] == 2
    assert {run.rpartition("-")[2] for run, _ in scores(tmp_path / "out")} == {"seed0", "seed8"}


def launched(base: dict[str, Any], launch: dict[str, Any]) -> dict[str, Any]:
    training = {**base["training"], "max_steps": 2, "save_steps": 1}
    return {**base, "launch": launch, "training": training, "grid": {"beta": [0.1]}}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def only_run(folder: Path) -> list[Result]:
    return [line for line in read_results(folder / "results.jsonl") if line.kind == "run"]


def test_accelerate_launch_trains_one_run_in_two_processes_and_writes_each_line_once(base, write, tmp_path):
    config = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "use_cpu": True}
    config |= {"num_processes": 2, "num_machines": 1, "machine_rank": 0, "mixed_precision": "no"}
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(config))
    launch = {"config_file": str(tmp_path / "accelerate.yaml"), "main_process_port": free_port()}
    spec = launched(base, launch)
    spec["training"]["per_device_train_batch_size"] = 2
    finish(write(spec), "launch")
    alone = {**spec, "output_dir": str(tmp_path / "alone")}
    alone["training"] = {**spec["training"], "per_device_train_batch_size": 4}
    finish(write(alone, "alone.yaml"))
    two, one = only_run(tmp_path / "out"), only_run(tmp_path / "alone")
    assert [line.item_set for line in two] == ["held_out", "other"]
    assert two[0].run != one[0].run
    for item, score in one[0].items.items():
        assert two[0].items[item] == pytest.approx(score, abs=1e-5)


def test_a_job_of_a_cluster_carries_out_a_run(base, write, tmp_path):
    spec = launched(base, {"executor": "local", "timeout_min": 5})
    said = finish(write(spec), "launch")
    assert "tiny: 2 finished, 0 failed" in said
    assert list((tmp_path / "out" / "cluster").iterdir())
    plain = {**spec, "output_dir": str(tmp_path / "plain")}
    finish(write(plain, "plain.yaml"))
    assert scores(tmp_path / "out") == scores(tmp_path / "plain")
