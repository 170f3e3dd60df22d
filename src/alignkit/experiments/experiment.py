"""The runs of an experiment, one process each: what is finished is skipped, what failed is recorded, the rest go on.

The folder of an experiment:

    results.jsonl    a line for each run and item set
    runs/<id>/       see [`alignkit.experiments.run_folder`]
    cache/           the datasets, tokenised once; the reference's log-probabilities, computed once
    study.db         of a search without another storage

Several processes may carry out one experiment: each run has a lock, and whoever finds it taken waits for it.
"""

import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from alignkit.evaluation.results import append_result, failed_result
from alignkit.experiments.data import materialise
from alignkit.experiments.launch import TAKEN, Cluster, command_of
from alignkit.experiments.locks import locked, try_lock
from alignkit.experiments.processes import LocalProcess, visible_gpus
from alignkit.experiments.run_folder import RunFolder, finished_runs, results_in
from alignkit.experiments.search import Search
from alignkit.experiments.spec import ExperimentSpec, Job
from alignkit.experiments.task import datasets_of, load_task
from alignkit.experiments.training import load_tokenizer
from alignkit.storage import read_json, write_json

POLL_S = 0.2
IDENTITY_FILE = "experiment.json"
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
KILLS = 2  # a run that a signal ends so often is recorded as failed


class Started(Protocol):
    """A run that was started, here or on a cluster."""

    def poll(self) -> int | None: ...

    def stop(self) -> None: ...


@dataclass
class Running:
    """A run that goes on, and the lock that this process holds on it too."""

    job: Job
    process: Started
    lock: int | None
    started: float

    def release(self) -> None:
        """Give up the lock, which the process still holds if it goes on."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


class Experiment:
    """Carries out a specification.

    Args:
        spec (`ExperimentSpec`): what to run.
        launched (`bool`): start the runs as `spec.launch` says, else as plain processes of this machine.
        say (`Callable[[str], None]`): gets a line about every run.

    Raises:
        ValueError: the folder holds another experiment, or other data; launch settings or packages that are missing;
            a task that cannot be used.
    """

    def __init__(self, spec: ExperimentSpec, *, launched: bool = False, say: Callable[[str], None] = print):
        if launched and spec.launch is None:
            raise ValueError("the specification has no launch; add one, or use `alignkit experiment run`")
        self.accelerate = spec.launch.accelerate if launched and spec.launch is not None else {}
        self.spec = spec.started_by(launch=launched)
        self.say = say
        self.folder = spec.output_dir
        self.results_file = self.folder / "results.jsonl"
        self.cache = self.folder / "cache"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cluster = None
        if launched and spec.launch is not None and spec.launch.executor != "accelerate":
            self.cluster = Cluster(spec.launch, self.folder / "cluster")
        with locked(self.folder / "experiment.lock"):
            self._check_identity()
            self.search = None if spec.search is None else Search(spec.search, spec.name, spec.base, self.folder)
        self.gpus = visible_gpus()
        self.running: dict[int, Running] = {}  # by slot
        self.kills: Counter[str] = Counter()
        self.failures_before = self._failures()
        self.awaited: set[str] = set()
        self.interrupted = self.scheduling = False
        self.outcome: dict[str, str] = {}  # finished | failed, by run

    def carry_out(self) -> None:
        """All baselines and runs. Interrupted by SIGINT or SIGTERM it stops its runs and raises KeyboardInterrupt.

        Raises:
            ValueError: the baseline shows that a search's objective is not among the item sets.
        """
        handlers = {number: signal.signal(number, self._interrupt) for number in INTERRUPTS}
        try:
            tokenizer = load_tokenizer(self.spec.model, self.spec.base.training)
            datasets = datasets_of(load_task(self.spec.task), tokenizer)
            with locked(self.folder / "experiment.lock"):
                self._check_identity()
                write_json(self.folder / IDENTITY_FILE, self._identity())
            materialise(datasets, self.cache)
            self._carry_out(self.spec.baselines())
            if self.search is None:
                self._carry_out(job for settings in self.spec.settings for job in self.spec.jobs_of(settings))
            else:
                self.search.check_objective(results_in(self.results_file))
                self._carry_out_search(self.search)
        finally:
            for running in self.running.values():
                running.process.stop()
                running.release()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """While runs are started and settled an interruption waits, so that none is lost between the two."""
        self.interrupted = True
        if not self.scheduling:
            raise KeyboardInterrupt

    def summary(self) -> str:
        """What is done, in a line."""
        counts = Counter(self.outcome.values())
        rest = f", {len(self.running)} stopped" if self.running else ""
        return (
            f"{self.spec.name}: {counts['finished']} finished, {counts['failed']} failed{rest}; "
            f"results are in {self.results_file}"
        )

    def run_folder(self, job: Job) -> RunFolder:
        """Where a run has its files."""
        return RunFolder(self.folder / "runs" / job.run)

    def _identity(self) -> dict[str, str]:
        return {key: getattr(self.spec, key) for key in ("method", "model", "task")}

    def _check_identity(self) -> None:
        """Runs of another model or task are no part of one comparison."""
        identity, path = self._identity(), self.folder / IDENTITY_FILE
        there = read_json(path) if path.exists() else identity
        changed = next((key for key in identity if there.get(key) != identity[key]), None)
        if changed is not None:
            raise ValueError(
                f"{self.folder} holds an experiment with {changed} {there.get(changed)!r}, not "
                f"{identity[changed]!r}; give another output_dir"
            )

    def _failures(self) -> Counter[str]:
        return Counter(result.run for result in results_in(self.results_file) if result.status == "failed")

    def _carry_out(self, jobs: Iterable[Job]) -> None:
        self.scheduling = True
        waiting = deque(jobs)
        while waiting or self.running:
            if self.interrupted:
                raise KeyboardInterrupt
            taken = 0
            while waiting and taken < len(waiting) and (slot := self._free_slot(waiting[0])) is not None:
                job = waiting.popleft()
                if not self._start(job, slot):
                    waiting.append(job)
                    taken += 1
            ended = [slot for slot, running in self.running.items() if running.process.poll() is not None]
            for slot in ended:
                running = self.running[slot]
                if not self._settle(running):
                    waiting.append(running.job)
                del self.running[slot]
            if not ended:
                time.sleep(POLL_S)
        self.scheduling = False

    def _free_slot(self, job: Job) -> int | None:
        """A place for the job. The first run goes alone until it has done what all runs share."""
        alone = job.kind == "run" and self.running and not (self.cache / "ready").exists()
        if alone:
            return None
        return next((slot for slot in range(self.spec.processes) if slot not in self.running), None)

    def _start(self, job: Job, slot: int) -> bool:
        """Start a run, or see that it needs none; False if another process is carrying it out."""
        folder = self.run_folder(job)
        lock = try_lock(folder.lock)
        if lock is None:
            if job.run not in self.awaited:
                self.say(f"{job.run} is being carried out by another process; waiting for it")
                self.awaited.add(job.run)
            return False
        if folder.is_measured():
            folder.publish(self.results_file)
        done = self._done_elsewhere(job)
        if done is not None:
            self.outcome[job.run] = done
            os.close(lock)
            return True
        folder.write_config(
            {
                **{key: getattr(job, key) for key in ("run", "kind", "seed", "decoding")},
                **{key: getattr(job.settings, key) for key in ("training", "lora")},
                **{key: getattr(self.spec, key) for key in ("model", "task")},
                "keep_model": self.spec.keep_models and job.kind == "run",
                "cache": str(self.cache),
                "results": str(self.results_file),
            }
        )
        command = command_of(folder.path, self.accelerate if job.kind == "run" else {})
        if self.cluster is not None:
            os.close(lock)  # the job takes it when it begins
            process: Started = self.cluster.start(command, folder.path, folder.log)
            lock = None
        else:
            gpu = self.gpus[slot % len(self.gpus)] if len(self.gpus) > 1 and not self.accelerate else None
            process = LocalProcess(command, folder.log, lock=lock, gpu=gpu)
        self.running[slot] = Running(job, process, lock, time.perf_counter())
        return True

    def _done_elsewhere(self, job: Job) -> str | None:
        """`finished`, or `failed` if another process has seen it fail since this one began."""
        if job.run in finished_runs(results_in(self.results_file)):
            return "finished"
        return "failed" if self._failures()[job.run] > self.failures_before[job.run] else None

    def _settle(self, running: Running) -> bool:
        """Note what came of a run that has ended; False if it has to be started again."""
        job = running.job
        code = running.process.poll()
        assert code is not None  # for the type checker: it has ended
        took = f"{time.perf_counter() - running.started:.0f} s"
        try:
            if code == TAKEN:
                return False
            if code == 0 and (results := finished_runs(results_in(self.results_file)).get(job.run)):
                means = ", ".join(f"{result.item_set} {result.metric} {result.mean:.4g}" for result in results)
                self._note(job, "finished", f"{means} ({took})")
                return True
            if code < 0:
                self.kills[job.run] += 1
                if self.kills[job.run] < KILLS:
                    self.say(f"{job.run} was killed by {_signal_name(code)}; it is resumed")
                    return False
            self._record_failure(running, code)
            return True
        finally:
            running.release()

    def _record_failure(self, running: Running, code: int) -> None:
        job, folder = running.job, self.run_folder(running.job)
        error = f"killed by {_signal_name(code)}, twice (see {folder.log})" if code < 0 else folder.error()
        append_result(
            self.results_file,
            failed_result(
                run=job.run,
                kind=job.kind,
                seed=job.seed,
                decoding=job.decoding,
                error=error,
                **folder.facts(job.settings.flat() if job.kind == "run" else {}),
                wall_time_s=time.perf_counter() - running.started,
            ),
        )
        self._note(job, "failed", error)

    def _note(self, job: Job, what: str, details: str) -> None:
        self.outcome[job.run] = what
        self.say(f"{job.run} {what}: {details}")

    def _carry_out_search(self, search: Search) -> None:
        at_once = max(1, self.spec.processes // len(self.spec.seeds))
        trials = list(search.begun())
        while True:
            while len(trials) < at_once and (trial := search.ask()) is not None:
                trials.append(trial)
            if not trials:
                return
            self._carry_out(job for trial in trials for job in self.spec.jobs_of(trial.settings))
            finished = finished_runs(results_in(self.results_file))
            for trial in trials:
                runs = [finished.get(job.run, []) for job in self.spec.jobs_of(trial.settings)]
                trial.tell(search.search.objective.value(runs))
            trials = []


def _signal_name(code: int) -> str:
    return signal.Signals(-code).name
