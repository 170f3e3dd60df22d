"""Where the time of a step goes, and what makes the host wait: the four trainers and their TRL parents.

    python benchmarks/profile_steps.py            # minutes; writes benchmarks/results/<machine>.json
    python benchmarks/profile_steps.py --quick    # does it run? toy shapes, its numbers mean nothing

torch.profiler watches some optimiser steps of each trainer, as `trainer.train()` takes them with logging on. The time
that each operation takes by itself is put into a group by what it is, or by what asked for it; what no operation takes
is Python. Host syncs are counted by [`HostSyncs`] in one more step, without a GPU.
"""

import os

# Set before torch and the Hub client are imported, because they read them then; every new thread reads the first.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import run_command
from dpo_workloads import head_at_completions
from host_syncs import PACKAGES, HostSyncs
from profile_workloads import MICRO_BATCHES, NewTrainer, setting, sides
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from alignkit.es_lora.noise import member_noise
from alignkit.reliability.manifest import digest

WARM_UP = 2
TOP = 5
# What is asked for inside one of these belongs to it, whatever it is; the first that matches.
BY_CALLER = {
    "head and KL": ("FusedHead", "Chunked", "fused head"),
    "optimiser": ("Optimizer.step",),
    "data loader and collator": ("get_batch_samples",),
    "logging": ("trainer.log",),
    "tokenizer": ("tokenizer",),
    "rewards": ("reward functions",),
    "noise": ("noise",),
}
BY_OPERATION = {
    "attention": ("scaled_dot_product",),
    "products of matrices": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::matmul", "aten::linear"),
}
RANGES = ("training_step", "get_batch_samples", "trainer.log", "tokenizer", "reward functions", "noise", "fused head")


class _Profiled(TrainerCallback):
    """Profiles the steps after the first [`WARM_UP`]."""

    def __init__(self, n_steps: int):
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self.profile = profile(activities=activities)
        self._last = WARM_UP + n_steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self._last:
            self.profile.stop()
        elif state.global_step == WARM_UP:
            self.profile.start()


@contextmanager
def _named(owner: Any, method: str, name: str) -> Iterator[None]:
    """Within the context a method shows under this name in a profile."""
    run = getattr(owner, method)

    def watched(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return run(*args, **kwargs)

    with patch.object(owner, method, watched):
        yield


def profile_steps(trainer: Any, n_steps: int) -> dict[str, Any]:
    """Milliseconds of a step by group, the largest [`TOP`] first, and in all."""
    trainer.args.max_steps = WARM_UP + n_steps
    trainer.args.logging_strategy, trainer.args.logging_steps = IntervalStrategy.STEPS, 1
    watch = _Profiled(n_steps)
    trainer.add_callback(watch)
    methods = {"training_step": "training_step", "get_batch_samples": "get_batch_samples", "log": "trainer.log"}
    with ExitStack() as stack:
        for method, name in methods.items():
            stack.enter_context(_named(trainer, method, name))
        if hasattr(trainer, "rewards"):  # ES-LoRA
            stack.enter_context(_named(trainer.processing_class, "batch_decode", "tokenizer"))
            stack.enter_context(_named(trainer._rollout, "_score", "reward functions"))
            for method in ("members", "write_gradients"):
                stack.enter_context(_named(trainer._update, method, "noise"))
        trainer.train()
    groups: Counter[str] = Counter()
    for event in watch.profile.events():
        groups[_group(event)] += event.self_cpu_time_total / 1000 / n_steps
    return {
        "step_ms": sum(groups.values()),
        "top_ms": dict(groups.most_common(TOP)),
        "all_ms": dict(groups.most_common()),
    }


def _group(event: Any) -> str:
    names, at = [], event
    while at is not None:
        names.append(at.name)
        at = at.cpu_parent
    for group, parts in BY_CALLER.items():
        if any(part in name for part in parts for name in names):
            return group
    for group, parts in BY_OPERATION.items():
        if any(part in event.name for part in parts):
            return group
    return "Python beside the operations" if event.name in RANGES else "other operations"


def host_syncs(trainer: Trainer) -> dict[str, Any]:
    """Host syncs of an optimiser step: per micro-batch, and of the rest of the step, by package; and every line."""
    syncs = HostSyncs(trainer)
    syncs.train()
    counts = syncs.counts()
    per_micro_batch = Counter[str]()
    for phase in ("fetch", "micro_batch"):
        per_micro_batch.update(counts.get(phase, {}))
    return {
        "per_micro_batch": {package: count / MICRO_BATCHES for package, count in per_micro_batch.items()},
        "rest_of_the_step": counts.get("step", {}),
        "lines": syncs.lines(),
    }


def measure_rates(n_bytes: int) -> dict[str, float]:
    """What the arithmetic of docs/scale.md starts from, by CPU time: the hash of a file, noise of ES-LoRA."""
    file = Path("bytes")
    file.write_bytes(os.urandom(n_bytes))
    numbers = n_bytes // 32
    return {
        "sha256_bytes_per_s": n_bytes / _median_cpu_s(lambda: digest(file)),
        "normals_per_s": numbers / _median_cpu_s(lambda: member_noise(0, 0, 0, "weight", (numbers,))),
    }


def _median_cpu_s(run: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    lines = [
        "| trainer | step, ms | largest costs, ms | syncs per micro-batch: "
        + " / ".join(PACKAGES)
        + " | rest of a step |",
        "|---|---|---|---|---|",
    ]
    for name, found in record["trainers"].items():
        costs = ", ".join(f"{group} {ms:.1f}" for group, ms in found["profile"]["top_ms"].items())
        each = " / ".join(f"{found['host_syncs']['per_micro_batch'].get(package, 0):g}" for package in PACKAGES)
        rest = ", ".join(f"{package} {count}" for package, count in found["host_syncs"]["rest_of_the_step"].items())
        lines.append(f"| `{name}` | {found['profile']['step_ms']:.0f} | {costs} | {each} | {rest} |")
    return "\n".join(lines)


def measure(quick: bool) -> dict[str, Any]:
    """All measurements of this machine."""
    rates = measure_rates(1 << (20 if quick else 28))
    print(", ".join(f"{name} {rate:.3g}" for name, rate in rates.items()), flush=True)
    record: dict[str, Any] = {"claims": [], "setting": setting(quick), "rates": rates, "trainers": {}}
    for (method, name), new_trainer in sides(quick).items():
        record["trainers"][name] = {"method": method, **_measure_side(new_trainer, n_steps=1 if quick else 5)}
        print(table({"trainers": {name: record["trainers"][name]}}).splitlines()[-1], flush=True)
    return record


def _measure_side(new_trainer: NewTrainer, n_steps: int) -> dict[str, Any]:
    with head_at_completions():
        return {"profile": profile_steps(new_trainer(), n_steps), "host_syncs": host_syncs(new_trainer())}


if __name__ == "__main__":
    run_command("profile_steps", __doc__, measure)
