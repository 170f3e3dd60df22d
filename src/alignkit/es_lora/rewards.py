"""Reward functions, called as TRL's GRPO calls them.

A function is called with the keywords `prompts`, `completions`, `completion_ids`, every column of the data set but
`prompt`, `completion` and `completion_ids`, and `trainer_state`, `log_extra` and `log_metric`; each list has one entry
for each completion. It returns as many numbers, with None where it does not apply, and may be asynchronous.

How this differs from GRPO, and why:

1. None and NaN are not the same. None does not apply; a NaN or infinite reward is a failure, because the alternative
   is that an answer which breaks the grader is as good as an average one.
2. With a deadline a function is called for one member at a time, so that one that hangs fails alone, and
   `trainer_state` has the fields of the state but not its methods.
"""

import asyncio
import functools
import inspect
import math
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from alignkit.rewards.guard import GuardedReward

RewardFunction = Callable[..., Any]
DOES_NOT_APPLY = math.nan
FAILED = math.inf


class RewardFunctions:
    """The reward functions of a run.

    Args:
        functions: one or several. Their names in the log are TRL's, with a number behind one that comes again.
        weights (`Sequence[float]`, *optional*): of each; 1 by default.
        timeout_s (`float`, *optional*): deadline of a call.

    Attributes:
        names (`list[str]`), weights (`Tensor`, (F,)): of the functions.

    Raises:
        ValueError: no function, or another number of weights.
        TypeError: something that cannot be called, or a model.
    """

    def __init__(
        self,
        functions: RewardFunction | Sequence[RewardFunction] | None,
        weights: Sequence[float] | None = None,
        timeout_s: float | None = None,
    ):
        several = isinstance(functions, list | tuple)
        listed: list[Any] = list(functions) if several else [functions]  # type: ignore[arg-type]  # a list
        if not listed or functions is None:
            raise ValueError("reward_funcs is empty; give at least one function of (prompts, completions, **columns)")
        for function in listed:
            if isinstance(function, str | torch.nn.Module) or not callable(function):
                raise TypeError(
                    f"reward_funcs has {type(function).__name__} {str(function)[:80]!r}; give functions: wrap a model "
                    "in one that takes prompts and completions and returns a list of numbers"
                )
        if weights is not None and len(weights) != len(listed):
            raise ValueError(f"reward_weights has {len(weights)} numbers for {len(listed)} reward functions")
        self.names = _distinct([_name(function) for function in listed])
        self.weights = torch.tensor([1.0] * len(listed) if weights is None else list(weights), dtype=torch.float64)
        self.one_member_at_a_time = timeout_s is not None
        self._functions = [GuardedReward(f, timeout_s) if timeout_s is not None else f for f in listed]
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._extra: dict[str, list[Any]] = {}
        self._extra_of_call: dict[str, list[Any]] = defaultdict(list)
        self._completions_scored = 0  # since the last pop_extra
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        columns: Mapping[str, list[Any]],
        trainer_state: Any,
    ) -> Tensor:
        """Rewards, (N, F) float64: NaN where a function does not apply, infinite where it failed.

        Raises:
            ValueError: another number of rewards, or of values for `log_extra`, than of completions.
            TypeError: rewards that are no numbers.
        """
        keywords: dict[str, Any] = {
            **columns,
            "trainer_state": _plain_state(trainer_state) if self.one_member_at_a_time else trainer_state,
            "log_extra": self._log_extra,
            "log_metric": self._log_metric,
        }
        arguments = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **keywords}
        outputs: list[Any] = [None if _is_async(function) else function(**arguments) for function in self._functions]
        waiting = [place for place, function in enumerate(self._functions) if _is_async(function)]
        if waiting:
            results = self._run([self._functions[place](**arguments) for place in waiting])
            for place, result in zip(waiting, results, strict=True):
                outputs[place] = result
        self._keep_extra(len(prompts))
        values = [_numbers(name, output, len(prompts)) for name, output in zip(self.names, outputs, strict=True)]
        return torch.tensor(values, dtype=torch.float64).T

    def pop_metrics(self) -> dict[str, list[float]]:
        """What functions gave to `log_metric` since the last call."""
        metrics, self._metrics = dict(self._metrics), defaultdict(list)
        return metrics

    def pop_extra(self) -> dict[str, list[Any]]:
        """What functions gave to `log_extra` since the last call, one for each completion: None where they did not."""
        extra, self._extra, self._completions_scored = self._extra, {}, 0
        return extra

    def _log_metric(self, name: str, value: float) -> None:
        self._metrics[name].append(float(value))

    def _log_extra(self, column: str, values: list[Any]) -> None:
        self._extra_of_call[column].extend(values)

    def _keep_extra(self, n: int) -> None:
        """Put what the functions logged in a call for n completions behind that of the calls before."""
        logged, self._extra_of_call = self._extra_of_call, defaultdict(list)
        for column, values in logged.items():
            if len(values) != n:
                raise ValueError(
                    f"log_extra was given {len(values)} values of {column!r} for {n} completions; give one each"
                )
            self._extra.setdefault(column, [None] * self._completions_scored).extend(values)
        self._completions_scored += n
        for values in self._extra.values():
            values += [None] * (self._completions_scored - len(values))

    def _run(self, coroutines: list[Any]) -> list[Any]:
        # One loop for the whole run, in a thread of its own: clients keep connections in it, and a notebook has a
        # running loop in its main thread.
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_serve, args=(self._loop,), daemon=True).start()
            weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

        async def together() -> list[Any]:
            return await asyncio.gather(*coroutines)

        return asyncio.run_coroutine_threadsafe(together(), self._loop).result()


def _plain_state(trainer_state: Any) -> SimpleNamespace:
    """The state's fields, without its class: to load that in the guarding process takes longer than most deadlines."""
    return SimpleNamespace(**{field.name: getattr(trainer_state, field.name) for field in fields(trainer_state)})


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return function.__name__ if hasattr(function, "__name__") else type(function).__name__


def _distinct(names: list[str]) -> list[str]:
    before = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name}_{count + 1}" if count else name for name, count in zip(names, before, strict=True)]


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(function.__call__)


def _numbers(name: str, output: Any, n: int) -> list[float]:
    if isinstance(output, str | bytes) or not hasattr(output, "__len__"):
        raise TypeError(f"reward function {name!r} returned {output!r:.80}; return a list of {n} numbers")
    if len(output) != n:
        raise ValueError(
            f"reward function {name!r} returned {len(output)} rewards for {n} completions; return one each"
        )
    return [_number(name, value) for value in output]


def _number(name: str, value: Any) -> float:
    if value is None:
        return DOES_NOT_APPLY
    is_one = math.prod(getattr(value, "shape", ())) == 1
    if isinstance(value, str | bytes) or not hasattr(value, "__float__") or not is_one:
        raise TypeError(
            f"reward function {name!r} returned {value!r:.80} for a completion; return a number, or None where it "
            "does not apply"
        )
    return number if math.isfinite(number := float(value)) else FAILED
