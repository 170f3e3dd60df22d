"""How far the runs of an experiment are, from its files alone."""

import os
from collections.abc import Iterator

from alignkit.experiments.locks import try_lock
from alignkit.experiments.run_folder import RunFolder, finished_runs, results_in
from alignkit.experiments.settings import Settings
from alignkit.experiments.spec import ExperimentSpec, Job


def states(spec: ExperimentSpec) -> Iterator[tuple[Job, str]]:
    """Each run with `finished`, `running`, `failed`, `interrupted` or `to do`; of a search those that were begun."""
    results = results_in(spec.output_dir / "results.jsonl")
    finished = finished_runs(results)
    failed = {result.run for result in results if result.status == "failed"}
    for job in _jobs(spec):
        folder = RunFolder(spec.output_dir / "runs" / job.run)
        if job.run in finished:
            state = "finished"
        elif not folder.path.exists():
            state = "to do"
        elif _is_locked(folder):
            state = "running"
        else:
            state = "failed" if job.run in failed else "interrupted"
        yield job, state


def _jobs(spec: ExperimentSpec) -> Iterator[Job]:
    """What the specification asks for, and what else was begun: by a search, or before the file was changed."""
    asked = spec.started_by(launch=spec.launch is not None)
    jobs = [*asked.baselines(), *(job for settings in asked.settings for job in asked.jobs_of(settings))]
    yield from jobs
    known = {job.run for job in jobs}
    for path in sorted((spec.output_dir / "runs").glob("*/config.json")):
        if path.parent.name not in known:
            config = RunFolder(path.parent).config()
            settings = Settings(config["training"], config["lora"])
            yield Job(config["run"], config["kind"], settings, config["seed"], config["decoding"])


def _is_locked(folder: RunFolder) -> bool:
    lock = try_lock(folder.lock)
    if lock is not None:
        os.close(lock)
    return lock is None
