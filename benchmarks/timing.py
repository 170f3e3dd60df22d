"""Time: trainers and functions that run in turns, and the ratio of two sides."""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from transformers import Trainer, TrainerCallback


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


def run_in_turns(sides: dict[str, Callable[[], Any]], n_turns: int) -> dict[str, StepTimes]:
    """Time all functions in turns, A B C A B C ..., after one call of each that is not timed."""
    times = {name: StepTimes() for name in sides}
    for turn in range(n_turns + 1):
        for name, side in sides.items():
            start = _now()
            side()
            wall, cpu = (end - begin for begin, end in zip(start, _now(), strict=True))
            if turn:
                times[name].wall_s.append(wall)
                times[name].cpu_s.append(cpu)
    return times


# ---- The ratio of two sides ----


def seconds(times: StepTimes) -> list[float]:
    """What claims are made of: CPU time, to which other processes add nothing; wall time where a GPU does the work."""
    return times.wall_s if torch.cuda.is_available() else times.cpu_s


class TimeRatio(NamedTuple):
    """Of two sides, turn by turn; `also` holds the median of the ratios in the other kind of time."""

    values: list[float]
    measured_in: Literal["CPU time", "wall time"]
    also: dict[str, float]


def time_ratio(top: StepTimes, bottom: StepTimes, *, turns_of_a_round: int = 1) -> TimeRatio:
    """The time of one side over that of another, in [`seconds`].

    Args:
        turns_of_a_round (`int`): turns that are added up before they are compared.
    """
    wall = ratios(rounds(top.wall_s, turns_of_a_round), rounds(bottom.wall_s, turns_of_a_round))
    cpu = ratios(rounds(top.cpu_s, turns_of_a_round), rounds(bottom.cpu_s, turns_of_a_round))
    if torch.cuda.is_available():
        return TimeRatio(wall, "wall time", {"median_of_cpu_time": statistics.median(cpu)})
    return TimeRatio(cpu, "CPU time", {"median_of_wall_time": statistics.median(wall)})


def raw_times(times: dict[str, StepTimes]) -> dict[str, dict[str, list[float]]]:
    """Every time, to a hundredth of a millisecond."""
    return {
        name: {"wall_s": [round(t, 5) for t in side.wall_s], "cpu_s": [round(t, 5) for t in side.cpu_s]}
        for name, side in times.items()
    }


def ratios(top: list[float], bottom: list[float]) -> list[float]:
    """Turn by turn."""
    return [a / b for a, b in zip(top, bottom, strict=True)]


def rounds(times: list[float], n: int) -> list[float]:
    """Sums of n times after each other, where n turns are one round over the batches."""
    return [sum(times[start : start + n]) for start in range(0, len(times), n)]
