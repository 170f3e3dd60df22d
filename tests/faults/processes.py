"""Processes that cost little: torch and TRL are imported once, and each child is forked from the process that did.

A child is a process of its own, with its own file limits and signals, and dies of a real SIGKILL.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.faults.trainings"])


def start(work: Callable[..., Any], *arguments: Any, output: Path, **keywords: Any) -> BaseProcess:
    """Begin `work` in a new process; what it prints goes to the end of `output`. Everything given is pickled.

    The first call of a test session takes the seconds of the imports. An error in `work` ends the process with exit
    code 1, a `SystemExit` with its own.
    """
    process = _CONTEXT.Process(target=_work, args=(output, work, arguments, keywords), daemon=True)
    process.start()
    return process


def start_ranks(
    n_ranks: int, work: Callable[..., Any], *arguments: Any, output: Path, **keywords: Any
) -> list[BaseProcess]:
    """Begin `work` in several processes that train together; the output of each rank is in `output-<rank>`."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    return [
        start(
            _as_rank, rank, n_ranks, port, work, arguments, keywords, output=output.with_name(f"{output.name}-{rank}")
        )
        for rank in range(n_ranks)
    ]


def _as_rank(
    rank: int, n_ranks: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    work(*arguments, **keywords)


def finish(process: BaseProcess, timeout_s: float = 100) -> int:
    """Wait for the end of a process. Its exit code; -9 when it was killed with SIGKILL."""
    process.join(timeout_s)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"process {process.pid} did not end within {timeout_s} s")
    return process.exitcode


def _work(output: Path, work: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    import torch

    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    work(*arguments, **keywords)
