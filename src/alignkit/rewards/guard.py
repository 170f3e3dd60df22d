"""A deadline for reward functions: each runs in a process of its own that is killed when it takes too long.

How this differs from a pool of workers with `get(timeout)`, which graders commonly use:

1. The late process is killed, with all it started, and replaced. In a pool it goes on for ever and holds its place,
   and once every place is held, all later rewards are lost.
2. It also survives what no exception handler does: a crash of the interpreter, and a regular expression or a power
   that never lets another thread run.
3. The process is a fresh interpreter with the function's own module and nothing else. It does not run the training
   script again, as multiprocessing does, unless the function is defined there: it starts in a fraction of a second,
   and most scripts need no `if __name__ == "__main__":`.

This limits time and survives crashes. It is no sandbox: the function may do whatever the training process may.
"""

import functools
import logging
import math
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from alignkit.rewards.guard_process import CallLostError, RewardFunctionError, RewardProcess, pickled

__all__ = ["GuardedReward", "RewardFunctionError"]

logger = logging.getLogger(__name__)

LONGEST_TIMEOUT_S = 86_400
"""A day."""


class GuardedReward:
    """A reward function with a deadline, itself a reward function in TRL's sense.

    A call that takes longer than `timeout_s`, or that ends its process, returns NaN for each of its rows, is logged as
    a warning and is counted in `failed_calls`; the next call finds a new process. An exception is raised here as
    [`RewardFunctionError`] with its traceback. Calls from several threads take turns.

    Arguments that can be called (`log_metric` and `log_extra` of a trainer) stay here: what the function calls them
    with is recorded, and they are called with it when it has returned. In the function they return `None`.

    The process ends with `close()`, with the last reference to this object, and with the process that made it, also
    when that one is killed. It reads nothing from the terminal; what it prints comes out where the training prints.

    Args:
        function (`Callable`): `function(prompts=, completions=, **columns) -> list`, synchronous or asynchronous, that
            pickle takes: a function of a module or of the script, a `functools.partial` of one, or an object with
            `__call__`. For one defined in the script itself, the script is imported once more, so that what it runs
            must stand below `if __name__ == "__main__":`.
        timeout_s (`float`): seconds from the call to the last of its rewards, at most a day. Starting the process does
            not count.

    Raises:
        TypeError: `function` cannot be called or pickled, as lambdas and nested functions cannot be.
        ValueError: `timeout_s` is not a number of seconds, or the function is defined in a session without a file.
        OSError: a system without POSIX processes.
        RuntimeError: the script is being imported for its function and makes a guard, for want of
            `if __name__ == "__main__":`.
    """

    def __init__(self, function: Callable[..., Any], timeout_s: float):
        if os.name != "posix":
            raise OSError(f"timeout_s needs POSIX processes, and this system is {os.name!r}; leave timeout_s out")
        is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
        if not is_number or not 0 < timeout_s <= LONGEST_TIMEOUT_S:
            raise ValueError(
                f"timeout_s={timeout_s!r} must be a number of seconds above 0, at most {LONGEST_TIMEOUT_S}"
            )
        self.__name__ = _name_of(function)
        self.failed_calls = 0
        self._lock = threading.Lock()
        self._process = RewardProcess(function, self.__name__, timeout_s)
        self._process.start()
        self._finalizer = weakref.finalize(self, self._process.end)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Any]:
        """What the function returns, as a list; NaN for every completion if it hangs or crashes.

        Raises:
            RewardFunctionError: the function raised, or its process could not load it.
            TypeError: an argument that cannot be pickled.
            RuntimeError: the guard is closed.
        """
        columns = {"prompts": prompts, "completions": completions, **columns}
        callbacks = {name: value for name, value in columns.items() if callable(value)}
        data = {
            name: pickled(value, f"the argument {name!r} of reward function {self.__name__!r}")
            for name, value in columns.items()
            if name not in callbacks
        }
        with self._lock:
            if not self._finalizer.alive:
                raise RuntimeError(f"the guard of reward function {self.__name__!r} is closed; make a new one")
            try:
                rewards, calls = self._process.ask(pickle.dumps((data, list(callbacks))))
            except CallLostError as lost:
                self._process.start()
                self.failed_calls += 1
                logger.warning(
                    "reward function %r %s; its %d rows count as failed (NaN) and a new process takes the next call",
                    self.__name__,
                    lost,
                    len(completions),
                )
                return [math.nan] * len(completions)
        for name, arguments, keywords in calls:
            callbacks[name](*arguments, **keywords)
        return rewards

    def close(self) -> None:
        """End the process, after the call that is running if one is. A second call does nothing."""
        with self._lock:
            self._finalizer()


def _name_of(function: Any) -> str:
    """The name under which TRL logs the function."""
    while isinstance(function, functools.partial):
        function = function.func
    if not callable(function):
        raise TypeError(f"function is {function!r:.80}, which cannot be called; give a reward function")
    return function.__name__ if hasattr(function, "__name__") else type(function).__name__
