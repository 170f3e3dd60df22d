"""DPO and shared prompts: `ScheduledDPOTrainer` against TRL's `DPOTrainer`, on the same pairs and weights.

    python benchmarks/dpo.py              # all of it, 15 minutes; writes benchmarks/results/<machine>.json
    python benchmarks/dpo.py --quick      # does it run? under a minute, toy shapes, its numbers mean nothing

What is timed is `trainer.train()` of both, step by step in turns, in CPU time of one thread: LoRA on all linear
layers, gradient checkpointing on, the adapter switched off as the reference. A limit is the ratio of the
floating-point operations of the same steps, counted by torch in the run. With a GPU it measures the low-memory preset
in the shape of Qwen3-1.7B instead. README.md beside this file lists the claims and says how to read the JSON.
"""

import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

# Set before torch and the Hub client are imported, because they read them then; every new thread reads the first.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import torch
from claims import Claim
from common import require_equal, run_command
from dpo_gpu_shapes import measure_shapes
from dpo_reward_model import measure_reward_model
from dpo_shapes import FULL, QUICK, SMALLEST, Lengths, Shape, Workload
from dpo_sweep import measure_sweep
from dpo_workloads import (
    SIDES,
    Counted,
    Side,
    head_at_completions,
    host_waits,
    micro_batch_peak,
    new_trainer,
    random_model,
)
from memory import check_peak_recorder
from timing import StepTimes, raw_times, seconds, time_ratio, train_interleaved

SHARE_OF_LIMIT = 0.9
RAGGED_SPEED_UP = 1.4
PEAK_OVER_TRL = 0.65
COLLATIONS = 20
NO_GPU = "not run: no GPU"


def measure_speed(shape: Shape, lengths: Lengths, turns: int, *, head: str | None = None) -> tuple[list[Claim], Any]:
    """Time of TRL's steps over that of ours, and how much their first loss and gradient differ.

    Raises:
        RuntimeError: loss or gradient differ.
    """
    rows, sides = lengths.rows(), SIDES[:2]

    def trainer(side: Side, **settings: Any) -> Any:
        return new_trainer(side, random_model(shape), rows, pairs=lengths.pairs, **settings)

    counted = {side: Counted(trainer(side, learning_rate=0.0), lengths.batches) for side in sides}
    theirs, ours = counted.values()
    name = f"{shape.title}, {lengths.name}{f', {head}' if head else ''}"
    differences = {
        "loss": require_equal(f"loss, {name}", ours.loss, theirs.loss),
        "gradient": require_equal(f"gradient, {name}", ours.gradient, theirs.gradient),
    }
    # A round over one batch is short, and is taken more often.
    rounds = 2 * turns if lengths.batches == 1 else turns
    times = train_interleaved({side: trainer(side) for side in sides}, rounds * lengths.batches)
    setting = shape.setting() | lengths.setting() | {"head_projects": head}
    return _speed_claims(name, lengths, counted, times, setting), differences


def _speed_claims(
    name: str, lengths: Lengths, counted: dict[Side, Counted], times: dict[str, StepTimes], setting: dict[str, Any]
) -> list[Claim]:
    (theirs, ours), batches = SIDES[:2], lengths.batches
    limit = counted[theirs].flops / counted[ours].flops
    ratio = time_ratio(times[theirs], times[ours], turns_of_a_round=batches)
    limit_is = "floating-point operations of TRL's padded steps over those of ours"
    is_ragged = lengths.name.startswith("ragged")
    claims = [
        Claim(
            name=f"time of a step, TRL / alignkit: {name}",
            measured_in=ratio.measured_in,
            values=ratio.values,
            relation=">=",
            target=RAGGED_SPEED_UP if is_ragged else round(SHARE_OF_LIMIT * limit, 4),
            limit=limit,
            limit_is=limit_is + ("" if is_ragged else f"; the target is {SHARE_OF_LIMIT} of it"),
            setting=setting,
            raw=raw_times(times),
            also=ratio.also
            | {
                "flops_per_step": {side: counted[side].flops / batches for side in counted},
                "counted_flops_per_s": {
                    side: counted[side].flops / batches / statistics.mean(seconds(times[side])) for side in counted
                },
            },
        )
    ]
    if lengths.name == "512/512":
        claims.append(
            Claim(
                name=f"the slowest of these steps, TRL / alignkit: {name}",
                measured_in=ratio.measured_in,
                values=[min(ratio.values)],
                relation=">=",
                target=1.0,
                limit=limit,
                limit_is=limit_is,
                setting=setting,
            )
        )
    return claims


def measure_memory(shape: Shape, lengths: Lengths) -> Claim:
    """Peak memory of a micro-batch, against TRL's, both projecting the positions of completions only.

    Off a GPU TRL's head takes a buffer of every position times 32,768, whatever the vocabulary, beside which nothing
    else would count; that ratio stands in `also`.
    """
    rows, sides = lengths.rows(), SIDES[:2]
    with head_at_completions():
        peaks = {side: micro_batch_peak(side, shape, rows, lengths.pairs) for side in sides}
    every = {side: micro_batch_peak(side, shape, rows, lengths.pairs) for side in sides}
    return Claim(
        name=f"peak bytes above weights, gradients and optimiser state, alignkit / TRL: {shape.title}, {lengths.name}",
        measured_in="bytes",
        values=[peaks["alignkit"] / peaks["TRL"]],
        relation="<=",
        target=PEAK_OVER_TRL,
        limit=None,
        limit_is="none: it depends on how attention computes",
        setting=shape.setting() | lengths.setting(),
        raw={"peak_bytes": peaks, "peak_bytes_with_head_at_every_position": every},
        also={"with_head_at_every_position": every["alignkit"] / every["TRL"]},
    )


def measure_overhead(lengths: Lengths, turns: int) -> dict[str, Any]:
    """What a step costs beside the model's work: times with so small a model that nothing else is left.

    Returns:
        `dict`: `cpu_s` of a step, `collate_cpu_s` of its batch, and `host_waits`, operations of a micro-batch's
        forward, loss and backward for which a host waits for a GPU, by the package whose code asks for them.
    """
    rows = lengths.rows()

    def trainer(side: Side) -> Any:
        return new_trainer(side, random_model(SMALLEST), rows, pairs=lengths.pairs)

    trainers = {side: trainer(side) for side in SIDES}
    collate = {}
    for side, each in trainers.items():
        examples = [each.train_dataset[row] for row in range(lengths.pairs)]
        start = time.process_time()
        for _ in range(COLLATIONS):
            each.data_collator(examples)
        collate[side] = (time.process_time() - start) / COLLATIONS
    times = train_interleaved(trainers, 5 * turns, warm_up=2)
    return {
        "setting": SMALLEST.setting() | lengths.setting(),
        "cpu_s": {side: statistics.median(times[side].cpu_s) for side in SIDES},
        "collate_cpu_s": collate,
        "host_waits": {side: host_waits(trainer(side)) for side in SIDES},
        "raw": raw_times(times),
    }


def measure_claims(work: Workload, differences: dict[str, Any]) -> Iterator[Claim]:
    """Everything that a CPU measures; `differences` is filled in."""

    def speed(shape: Shape, lengths: Lengths, head: str | None = None) -> list[Claim]:
        claims, found = measure_speed(shape, lengths, work.turns, head=head)
        differences[claims[0].name] = found
        return claims

    for shape in work.backbones:
        for lengths in work.every_length:
            yield from speed(shape, lengths)
    for lengths in work.head_lengths:
        with head_at_completions():
            yield from speed(work.with_head, lengths, "positions of completions")
        yield from speed(work.with_head, lengths, "every position of its rows, as TRL does off a GPU")
    for shape in work.backbones:
        yield measure_memory(shape, work.memory)
    yield from measure_sweep(work)
    yield from measure_reward_model(work)


def measure(quick: bool) -> dict[str, Any]:
    """All measurements of this machine."""
    work = QUICK if quick else FULL
    record: dict[str, Any] = {"claims": [], "recorder_check": check_peak_recorder(), "relative_differences": {}}
    if torch.cuda.is_available():
        record["gpu_shapes"] = measure_shapes(3 * work.turns, small=quick)
    else:
        record["gpu_shapes"] = NO_GPU
        if quick:  # the same code, so that it does not rot between two GPUs
            record["small_shapes"] = measure_shapes(1, small=True)
        for claim in measure_claims(work, record["relative_differences"]):
            claim.print()
            record["claims"].append(claim.record())
        record["overhead"] = measure_overhead(work.memory, work.turns)
    return record


if __name__ == "__main__":
    run_command("dpo", __doc__, measure)
