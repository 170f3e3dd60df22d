"""Reward functions that guards run in other processes: good ones, and each way to go wrong."""

import asyncio
import ctypes
import os
import re
import subprocess
import sys
import time
from pathlib import Path


def length(prompts, completions, **columns):
    return [float(len(completion)) for completion in completions]


def scaled_length(prompts, completions, scale, **columns):
    return [scale * len(completion) for completion in completions]


def bonus_column(prompts, completions, bonus, **columns):
    return [None if value is None else value + len(prompt) for value, prompt in zip(bonus, prompts, strict=True)]


class Weighted:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, prompts, completions, **columns):
        return [self.weight * len(completion) for completion in completions]


class AsynchronousJudge:
    """Keeps a lock that belongs to the event loop of its first call."""

    def __init__(self):
        self.turn = None

    async def __call__(self, prompts, completions, **columns):
        self.turn = self.turn or asyncio.Lock()
        async with self.turn:
            await asyncio.sleep(0.01)
            return [float(len(completion)) for completion in completions]


async def judged_together(prompts, completions, **columns):
    async def judge(completion):
        await asyncio.sleep(0)
        return float(len(completion))

    return await asyncio.gather(*map(judge, completions))


def lazy(prompts, completions, **columns):
    """Rewards that are computed only when they are read; the last of them never."""
    for completion in completions:
        if completion == "hang":
            time.sleep(60)
        yield float(len(completion))


def obedient(prompts, completions, **columns):
    """Does what the first completion says, and otherwise returns lengths."""
    order = completions[0]
    if order == "sleep":
        time.sleep(60)
    if order == "hold the interpreter":
        re.match("(a+)+b", "a" * 60)
    if order == "print and sleep":
        print("half a line", end="")
        time.sleep(60)
    if order == "print":
        print("a whole line")
    if order == "start a child and sleep":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        Path(columns["note"]).write_text(str(child.pid))
        time.sleep(60)
    if order == "leave":
        os._exit(3)
    if order == "segfault":
        ctypes.string_at(0)
    if order == "raise":
        raise KeyError("no such city")
    if order == "exit":
        sys.exit("enough")
    if order == "read":
        return [float(len(input()))]
    if order == "process id":
        return [os.getpid()]
    if order == "return a function":
        return [lambda: 0]
    return [float(len(completion)) for completion in completions]


def logging_length(prompts, completions, log_metric, log_extra, **columns):
    lengths = [float(len(completion)) for completion in completions]
    log_metric("mean_length", sum(lengths) / len(lengths))
    log_extra(column="lengths", values=lengths)
    return lengths


class Unloadable:
    """Pickles here and cannot be read back there."""

    def __reduce__(self):
        return _fail_to_load, ()

    def __call__(self, prompts, completions, **columns):
        return []


def _fail_to_load():
    if os.environ.get("GUARDED_FUNCTIONS_LEAVE"):
        os._exit(5)
    raise RuntimeError("the model file is missing")
