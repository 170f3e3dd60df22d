"""The other side of [`GuardedReward`]: a process that holds one reward function and answers one call at a time.

Started with `python -c` by `alignkit.rewards.guard_process`.
"""

import asyncio
import fcntl
import inspect
import io
import os
import pickle
import runpy
import select
import sys
import traceback
import types
from collections.abc import Awaitable
from multiprocessing.connection import Connection
from typing import Any

from alignkit.rewards import guard_process


def serve(connection_descriptor: int, lifeline_descriptor: int) -> None:
    """Load the function that comes first over the connection, then answer calls until the connection closes.

    Every message is answered: the function and each call with `("done", rewards, callback calls)`, or, before the
    process ends, with `("raised", traceback)`.
    """
    _end_with_the_parent(lifeline_descriptor)
    # What a call printed must not wait in a buffer that is lost when the process is killed.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=True)
    with Connection(connection_descriptor) as connection, asyncio.Runner() as runner:
        function = None
        while True:
            try:
                message = connection.recv_bytes()
            except EOFError:
                return
            try:
                if function is None:
                    function = _load(message)
                    answer = pickle.dumps(("done", [], []))
                else:
                    answer = _answer(function, message, runner)
            except BaseException as error:  # whatever it is, the caller has to hear of it
                connection.send_bytes(pickle.dumps(("raised", traceback.format_exc())))
                # A function that was interrupted half way may have left anything behind, so the process ends too.
                raise SystemExit(1) from error
            connection.send_bytes(answer)


def _end_with_the_parent(lifeline_descriptor: int) -> None:
    """Have the system end this process and its children as soon as the parent is gone, however either is occupied.

    The parent holds the other end of this pipe and never writes to it. Its closing raises SIGIO, whose default action
    ends a process; a thread that watches would not run while a regular expression or a power holds the interpreter.
    """
    fcntl.fcntl(lifeline_descriptor, fcntl.F_SETOWN, -os.getpgrp())
    flags = fcntl.fcntl(lifeline_descriptor, fcntl.F_GETFL)
    fcntl.fcntl(lifeline_descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)
    if select.select([lifeline_descriptor], [], [], 0)[0]:
        raise SystemExit("the process that asked for rewards ended before this one was ready")


def _load(message: bytes) -> Any:
    """The function, after the script that defines it, if one does, has been run under the name `__mp_main__`.

    That is multiprocessing's convention, so that `if __name__ == "__main__":` keeps the training out of it.
    """
    pickled, module, script = pickle.loads(message)
    guard_process.is_importing_the_script = True
    if module is not None:
        _take_as_main(runpy.run_module(module, run_name="__mp_main__", alter_sys=True))
    elif script is not None:
        _take_as_main(runpy.run_path(script, run_name="__mp_main__"))
    guard_process.is_importing_the_script = False
    return pickle.loads(pickled)


def _take_as_main(contents: dict[str, Any]) -> None:
    main = types.ModuleType("__mp_main__")
    main.__dict__.update(contents)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main


def _answer(function: Any, message: bytes, runner: asyncio.Runner) -> bytes:
    """Call the function, await it if it is asynchronous, and read its result to the end within the deadline."""
    columns, callback_names = pickle.loads(message)
    keywords = {name: pickle.loads(pickled) for name, pickled in columns.items()}
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for name in callback_names:
        keywords[name] = _recorder(name, calls)
    result = function(**keywords)
    if inspect.isawaitable(result):
        result = runner.run(_wait_for(result))
    return pickle.dumps(("done", list(result), calls))


def _recorder(name: str, calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> Any:
    def record(*arguments: Any, **keywords: Any) -> None:
        calls.append((name, arguments, keywords))

    return record


async def _wait_for(result: Awaitable[Any]) -> Any:
    return await result
