"""What every benchmark shares: the record of a machine, interleaved training, peak memory, claims."""

import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainerCallback

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "alignkit")


def origin() -> dict[str, Any]:
    """Where and with what a result was measured: machine, versions, commit, date."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("describe", "--always", "--dirty", "--abbrev=40"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "cpu": _cpu_model(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


# ---- Time ----


@dataclass
class StepTimes:
    """Seconds of the optimiser steps of a trainer, wall clock and CPU of this process, one entry per turn."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


class _Turns:
    """Whose turn it is. Only that trainer runs; the others wait."""

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self.changed = threading.Condition()
        self.at = 0

    def wait_for(self, name: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.names[self.at] == name)

    def leave(self, name: str) -> None:
        """Never be this trainer's turn again."""
        with self.changed:
            self.names[self.names.index(name)] = ""
            self._next()

    def pass_on(self) -> None:
        with self.changed:
            self._next()

    def _next(self) -> None:
        order = [*range(self.at + 1, len(self.names)), *range(self.at + 1)]
        self.at = next((index for index in order if self.names[index]), self.at)
        self.changed.notify_all()


class _StepClock(TrainerCallback):
    """Times a turn of `steps_per_turn` steps, then lets the next trainer have its turn.

    A turn starts before the batches of its first step are fetched, collated and joined.
    """

    def __init__(self, name: str, turns: _Turns, warm_up: int, steps_per_turn: int):
        self.name, self.turns, self.warm_up, self.steps_per_turn = name, turns, warm_up, steps_per_turn
        self.times = StepTimes()

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = _now()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step < self.warm_up or (state.global_step - self.warm_up) % self.steps_per_turn:
            return
        if state.global_step > self.warm_up:
            wall, cpu = (end - begin for begin, end in zip(self.start, _now(), strict=True))
            self.times.wall_s.append(wall / self.steps_per_turn)
            self.times.cpu_s.append(cpu / self.steps_per_turn)
        self.turns.pass_on()
        self.turns.wait_for(self.name)
        self.start = _now()


def _now() -> tuple[float, float]:
    """Seconds of wall clock and of CPU, when the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def train_interleaved(
    trainers: dict[str, Trainer], n_turns: int, *, warm_up: int = 1, steps_per_turn: dict[str, int] | None = None
) -> dict[str, StepTimes]:
    """Train all trainers at once, a turn each: A B C A B C ..., so that what slows the machine down slows all alike.

    Real `trainer.train()` calls, each in a thread of its own, of which one runs at a time. A turn is one optimiser
    step, or `steps_per_turn` of them, of which the mean is kept. The `warm_up` first steps are not timed.
    """
    turns = _Turns(list(trainers))
    clocks = {}
    for name, trainer in trainers.items():
        per_turn = (steps_per_turn or {}).get(name, 1)
        clocks[name] = _StepClock(name, turns, warm_up, per_turn)
        trainer.args.max_steps = warm_up + n_turns * per_turn
        trainer.add_callback(clocks[name])

    def train(name: str) -> None:
        turns.wait_for(name)
        try:
            trainers[name].train()
        finally:
            turns.leave(name)

    with ThreadPoolExecutor(len(trainers)) as threads:
        for result in [threads.submit(train, name) for name in trainers]:
            result.result()
    for name, clock in clocks.items():
        trainers[name].remove_callback(clock)
    return {name: clock.times for name, clock in clocks.items()}


# ---- Memory ----


class PeakRecorder:
    """Peak of the tensor bytes allocated between `start()` and `stop()` and alive at once.

    On a CPU the profiler writes down every allocation and release of torch's allocator; the running sum of their bytes
    is what is alive of what was allocated since the start. Unlike a count in a dispatch mode it sees what a kernel
    allocates inside, and unlike the resident size of the process it has no noise and forgets nothing that was freed.
    Releases of what was there before the start are not in it. On a GPU the caching allocator counts the same.
    """

    def start(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._baseline = torch.cuda.memory_allocated()
        else:
            self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profile.start()

    def stop(self) -> int:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() - self._baseline
        self._profile.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profile.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        alive = peak = 0
        for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
            alive += event["args"]["Bytes"]
            peak = max(peak, alive)
        return peak


def check_peak_recorder() -> dict[str, int]:
    """Compare the recorder with a case counted by hand, on the device that is measured.

    Raises:
        RuntimeError: they differ, say because a release of torch writes its trace otherwise.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recorder = PeakRecorder()
    before = torch.ones(1 << 20, device=device)
    recorder.start()
    first = torch.full((1 << 20,), 2.0, device=device)  # 4 MiB alive
    second = first.exp()  # 8 MiB
    del first, before  # 4 MiB: what was there before the start does not count
    third = torch.cat([second, second])  # 12 MiB, the peak
    del second, third
    torch.zeros(1 << 21, device=device)  # 8 MiB
    peak, by_hand = recorder.stop(), 12 << 20
    # On a GPU the tensor from before the start is in the baseline, so that its release lowers the rest by 4 MiB.
    by_hand -= (4 << 20) if device == "cuda" else 0
    if peak != by_hand:
        raise RuntimeError(f"the peak of a case counted by hand is {by_hand} bytes, and {peak} was recorded")
    return {"by_hand_bytes": by_hand, "recorded_bytes": peak}


class MicroBatchPeak(TrainerCallback):
    """Peak of tensor bytes during one micro-batch, above all that stays: weights, gradients, optimiser state.

    It looks at the second of two micro-batches of the second step. The optimiser state exists since the first step and
    the gradients since the first micro-batch, so that what is allocated from there on is activations and temporaries
    alone: the baseline is right by construction.

    Attributes:
        peak_bytes (`int`): the peak.
    """

    peak_bytes = -1

    def on_substep_end(self, args, state, control, **kwargs):
        if args.gradient_accumulation_steps != 2:
            raise ValueError(f"gradient_accumulation_steps is {args.gradient_accumulation_steps}; it must be 2 here")
        if state.global_step == 1:
            self._recorder = PeakRecorder()
            self._recorder.start()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.peak_bytes = self._recorder.stop()


# ---- Claims ----


@dataclass(frozen=True)
class Claim:
    """A number, what it is compared with, and whether it holds.

    Attributes:
        name (`str`): what is claimed, in words.
        values (`list[float]`): the number, once per paired run; their median is the result.
        relation, target: how the median must stand to what.
        limit (`float`): what no implementation can pass, and `limit_is` why.
        raw (`dict`): every time that was taken.
        also (`dict`): further numbers that are no claim.
    """

    name: str
    values: list[float]
    relation: Literal["<=", ">="]
    target: float
    limit: float
    limit_is: str
    setting: dict[str, Any]
    raw: dict[str, Any] = field(default_factory=dict)
    also: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        median = statistics.median(self.values)
        if not math.isfinite(median):
            raise ValueError(f"{self.name}: the median of {self.values} is not a number")
        return {
            "claim": self.name,
            "target": f"{self.relation} {self.target}",
            "median": median,
            "met": median <= self.target if self.relation == "<=" else median >= self.target,
            "min": min(self.values),
            "max": max(self.values),
            "runs": len(self.values),
            "limit": self.limit,
            "limit_is": self.limit_is,
            "setting": self.setting,
            "also": self.also,
            "raw": {"values": self.values, **self.raw},
        }


def raw_times(times: dict[str, StepTimes]) -> dict[str, dict[str, list[float]]]:
    """Every time, to a hundredth of a millisecond."""
    return {
        name: {"wall_s": [round(t, 5) for t in side.wall_s], "cpu_s": [round(t, 5) for t in side.cpu_s]}
        for name, side in times.items()
    }


def write(record: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
