"""The folder that an evaluation writes: `results.jsonl`, a line per item set and metric, and `answers.jsonl`.

Both are replaced as a whole after each suite, the answers first. So a suite is in the results with all its metrics or
not at all, whenever the process is killed, and what is there need not be measured again.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alignkit.evaluation.results import Result, read_results
from alignkit.evaluation.settings import canonical
from alignkit.evaluation.suites.suite import Answer, SuiteOutcome
from alignkit.experiments.locks import locked
from alignkit.storage import read_lines, write_lines


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One suite on one model.

    Args:
        run: name of the model in reports, with its seed.
        suite: name of the suite.
        config: of the model; equal for all suites of the run.
        decoding: how answers are drawn, and every setting of the suite: results are compared where it is equal.
        seed: of the training, or of the sampling.
    """

    run: str
    suite: str
    config: Mapping[str, Any]
    decoding: Mapping[str, Any]
    seed: int

    @property
    def id(self) -> str:
        """A digest of all of it."""
        parts = [self.run, self.suite, dict(self.config), dict(self.decoding), self.seed]
        return hashlib.sha256(canonical(parts).encode()).hexdigest()[:16]


class EvaluationFolder:
    """Results and answers of any number of models. Several processes may write to one folder.

    The folder is made with the first results.

    Raises:
        OSError: the folder cannot be made, or be written to.
    """

    def __init__(self, path: Path):
        nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(f"{path} cannot be made: {nearest} is no folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(f"{path} cannot be written: {nearest} may not be written to")
        self._path = path
        self.results_file = path / "results.jsonl"
        self.answers_file = path / "answers.jsonl"
        self._lock = path / ".lock"

    def check_config(self, run: str, config: Mapping[str, Any]) -> None:
        """Raise a ValueError if results of the run are there that another model, or the same one otherwise, gave."""
        for result in self._results():
            if result.run == run and canonical(result.config) != canonical(dict(config)):
                names = [name for name in {**config, **result.config} if config.get(name) != result.config.get(name)]
                raise ValueError(
                    f"{self.results_file} has results of {run!r} with another {', '.join(names)}; give the model "
                    "another name, or another folder for the results"
                )

    def results(self, measurement: Measurement) -> list[Result]:
        """What was recorded of a measurement; empty if it is still to do."""
        return [result for result in self._results() if _id(result) == measurement.id]

    def record(
        self,
        measurement: Measurement,
        outcome: SuiteOutcome,
        *,
        origin: Mapping[str, Any],
        wall_time_s: float,
        peak_memory_gib: float | None = None,
    ) -> list[Result]:
        """Write the outcome in place of what there is of the same measurement.

        Args:
            origin: from [`alignkit.evaluation.results.origin`].

        Raises:
            ValueError: scores that no [`Result`] can hold, or two of one item set and metric.
            OSError: a file that cannot be written.
        """
        results = [
            Result(
                run=measurement.run,
                **dataclasses.asdict(scores),
                config=dict(measurement.config),
                decoding={"suite": measurement.suite, **measurement.decoding},
                seed=measurement.seed,
                wall_time_s=wall_time_s,
                peak_memory_gib=peak_memory_gib,
                **origin,
            )
            for scores in outcome.scores
        ]
        names = [(result.item_set, result.metric) for result in results]
        if not results or len(set(names)) < len(names):
            raise ValueError(f"the suite {measurement.suite} gave the scores {names}; each must come once")
        what = {"id": measurement.id, "run": measurement.run, "suite": measurement.suite}
        answers = [{**what, **_answer(answer)} for answer in outcome.answers]
        self._path.mkdir(parents=True, exist_ok=True)
        with locked(self._lock):
            others = self._answers(lambda row: row["id"] != measurement.id)
            write_lines(self.answers_file, [*others, *answers])
            kept = [result for result in self._results() if _id(result) != measurement.id]
            write_lines(self.results_file, [_row(result) for result in [*kept, *results]])
        return results

    def _results(self) -> list[Result]:
        return read_results(self.results_file) if self.results_file.exists() else []

    def _answers(self, keep: Callable[[Mapping[str, Any]], bool]) -> list[dict[str, Any]]:
        return [row for row in read_lines(self.answers_file) if keep(row)] if self.answers_file.exists() else []


def _id(result: Result) -> str:
    decoding = dict(result.decoding)
    suite = decoding.pop("suite", "")
    return Measurement(result.run, suite, result.config, decoding, result.seed).id


def _row(result: Result) -> dict[str, Any]:
    return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}


def _answer(answer: Answer) -> dict[str, Any]:
    return {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
