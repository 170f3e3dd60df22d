"""A process that answers the calls of one reward function, replaced whenever its next answer could not be trusted."""

import contextlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

START_LIMIT_S = 120.0
"""How long the import of the function's module may take."""

is_importing_the_script = False
"""Whether this is a guard's process that is importing the script in which its function is defined."""

_START = "import sys; sys.path[:] = {path!r}; from alignkit.rewards.guard_worker import serve; serve(*{descriptors})"


class RewardFunctionError(RuntimeError):
    """A guarded function raised, or could not be loaded in its process; the message holds the traceback."""


class CallLostError(Exception):
    """There is no answer; the message says why, to stand behind the name of the function."""


class RewardProcess:
    """The process, which runs `guard_worker.serve`, and the two pipes to it: one for messages, one as a lifeline.

    Raises:
        TypeError, ValueError, RuntimeError: as [`GuardedReward`] says of `function`.
    """

    def __init__(self, function: Callable[..., Any], name: str, timeout_s: float):
        self._name = name
        self._loading_message = _loading_message(function, name)
        self._timeout_s = timeout_s
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and have it load the function, without waiting for that."""
        self._connection, other_end = Pipe()
        lifeline, self._lifeline = os.pipe()
        descriptors = (other_end.fileno(), lifeline)
        # A session of its own, so that all it starts can be killed with it, and Ctrl-C stops the training first.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=sys.path, descriptors=descriptors)],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,
        )
        other_end.close()
        os.close(lifeline)
        self._is_ready = False
        # A process that ended before it read this has closed the connection, which the first call finds and reports.
        with contextlib.suppress(ConnectionError):
            self._connection.send_bytes(self._loading_message)
        _limit_blocking(self._connection, self._timeout_s)

    def ask(self, message: bytes) -> tuple[list[Any], list[tuple[str, tuple[Any, ...], dict[str, Any]]]]:
        """Rewards, and the calls of callbacks that were recorded. Any failure ends the process.

        Raises:
            CallLostError: no answer in time, or the process ended.
            RewardFunctionError: the function raised, or cannot be loaded.
        """
        if self._process is None or (self._is_ready and self._process.poll() is not None):
            self.end()
            self.start()
        answered = False
        try:
            if not self._is_ready:
                self._wait_until_ready()
            deadline = time.monotonic() + self._timeout_s
            self._connection.send_bytes(message)
            rewards, calls = self._receive(deadline)
            answered = True
        except (TimeoutError, BlockingIOError) as error:
            raise CallLostError(f"took longer than timeout_s={self._timeout_s} and was killed") from error
        except (EOFError, ConnectionError) as error:
            raise CallLostError(f"ended its process ({self._end_in_words()})") from error
        finally:
            # Also on Ctrl-C: a late answer would be taken for that of the next call.
            if not answered:
                self.end()
        return rewards, calls

    def _wait_until_ready(self) -> None:
        try:
            self._receive(time.monotonic() + START_LIMIT_S)
        except TimeoutError as error:
            raise RewardFunctionError(
                f"the process of reward function {self._name!r} took longer than {START_LIMIT_S} s to load it; put "
                "the function into a module that imports faster"
            ) from error
        except (EOFError, ConnectionError) as error:
            raise RewardFunctionError(
                f"the process of reward function {self._name!r} ended before it had loaded the function "
                f"({self._end_in_words()}); see what the import of its module runs"
            ) from error
        self._is_ready = True

    def _receive(self, deadline: float) -> Any:
        """The next answer, which must begin to arrive before the deadline."""
        if not self._connection.poll(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        kind, *answer = pickle.loads(self._connection.recv_bytes())
        if kind == "raised":
            raise RewardFunctionError(f"reward function {self._name!r} failed in its process:\n{answer[0]}")
        return answer

    def _end_in_words(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"exit code {code}" if code >= 0 else f"signal {-code}: {signal.strsignal(-code)}"

    def end(self) -> None:
        """Kill the process and everything it started. A second call does nothing."""
        # A fork of the training process inherits this object, but not the right to end the process.
        if self._process is None or os.getpid() != self._owner:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self._connection.close()
        os.close(self._lifeline)


def pickled(value: Any, what: str) -> bytes:
    """`value` for another process.

    Raises:
        TypeError: it cannot be pickled; the message begins with `what`.
    """
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"{what} cannot be sent to another process ({error}); use a function of a module or an object that pickle "
            "takes, not a lambda or a nested function"
        ) from error


def _loading_message(function: Callable[..., Any], name: str) -> bytes:
    """The function, with the module or the script to import first where the function is defined in `__main__`."""
    if is_importing_the_script:
        raise RuntimeError(
            f"the script that defines a guarded reward function is being imported for it, and guards {name!r} again; "
            'put what the script runs below `if __name__ == "__main__":`, or the function into a module of its own'
        )
    function_bytes = pickled(function, f"reward function {name!r}")
    module = script = None
    if b"__main__" in function_bytes:
        main = sys.modules["__main__"]
        module = main.__spec__.name if main.__spec__ is not None else None
        script = main.__dict__.get("__file__")
        if module is None and script is None:
            raise ValueError(
                f"reward function {name!r} is defined in a session without a file, which another process cannot "
                "import; put it into a module"
            )
    return pickle.dumps((function_bytes, module, script))


def _limit_blocking(connection: Connection, timeout_s: float) -> None:
    """Let no send and no half-arrived answer block for longer than the deadline: BlockingIOError comes instead."""
    seconds, fraction = divmod(timeout_s, 1)
    limit = struct.pack("@ll", int(seconds), max(1, int(fraction * 1e6)))
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
