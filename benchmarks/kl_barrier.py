"""KL barrier: alignkit against TRL's `SFTTrainer`, and against the same loss as a user of TRL can write it today.

    python benchmarks/kl_barrier.py              # all of it, 20 minutes; writes benchmarks/results/<machine>.json
    python benchmarks/kl_barrier.py --quick      # does it run? two minutes, toy shapes, its numbers mean nothing

LoRA on all linear layers of Gemma 3 with random weights, gradient checkpointing on, no masked prompt, the reference is
the adapter switched off. On a CPU the body of Gemma-3-270m in float32, a step of 128 positions; on a GPU also that of
Gemma-3-4b, bfloat16, 8,192 positions. README.md beside this file lists the claims and says how to read the JSON.
"""

import os
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, get_args

# Set before torch and the Hub client are imported, because they read them then; every new thread reads the first.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from claims import Claim
from common import FirstGradient, require_equal, run_command
from kl_barrier_shapes import CPU, GPU, QUICK, Shape, Side, Workload
from kl_barrier_workloads import STEPS_PER_EPOCH, new_trainer, peak_memory, random_model
from memory import check_peak_recorder
from timing import StepTimes, raw_times, seconds, time_ratio, train_interleaved
from transformers import PreTrainedModel
from trl import SFTTrainer

from alignkit.kl_barrier import Aggregate

AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)
SFT = Side("sft")
# Of the limit's ratio, against `SFTTrainer`.
EXCESS = {False: 1.08, True: 1.15}
# How many times faster than the composition at the headline shape; elsewhere the same share of the limit.
SPEED_UP = {False: 1.5, True: 1.3}
SHARE_OF_LIMIT = 0.92
PEAK_OVER_SFT = 1.05
PEAK_OF_LOGITS = 8.0


def measure_equality(shape: Shape, model: PreTrainedModel, aggregates: Sequence[Aggregate], tolerance: float) -> Any:
    """Largest differences of a step's loss and gradient from the composition's, gate open and closed.

    Raises:
        RuntimeError: they differ by more than `tolerance`.
    """
    differences = {}
    for aggregate in aggregates:
        for is_open in (False, True):
            sides = [Side(trainer, is_open, aggregate) for trainer in ("barrier", "composition")]
            ours, theirs = (_first_step(shape, side, model) for side in sides)
            differences[sides[0].name] = {
                what: require_equal(f"{what} of {sides[0].name} and of the composition", *values, tolerance=tolerance)
                for what, *values in (("loss", ours[0], theirs[0]), ("gradient", ours[1], theirs[1]))
            }
    return differences


def _first_step(shape: Shape, side: Side, model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient."""
    gradient = FirstGradient()
    trainer = new_trainer(shape, side, model, callbacks=[gradient])
    trainer.args.max_steps = 1
    loss = trainer.train().training_loss
    assert gradient.gradient is not None
    return torch.tensor(loss, dtype=torch.float64), gradient.gradient


def measure_gate(shape: Shape, model: PreTrainedModel, work: Workload, *, is_open: bool) -> list[Claim]:
    """Time of a step with every aggregate, against `SFTTrainer` and against the composition."""
    composition = Side("composition", is_open)
    ours = [Side("barrier", is_open, aggregate) for aggregate in AGGREGATES]
    times = _time(shape, [SFT, *ours, composition], model, work.turns, work.warm_up)
    claims = [_against_sft(shape, side, times) for side in ours]
    claims += [_against_composition(shape, side, composition, times) for side in ours]
    return claims


def measure_cache(shape: Shape, model: PreTrainedModel, work: Workload) -> list[Claim]:
    """Time of a step with the reference's hidden states in files, from the second epoch on."""
    sides = [Side("barrier", is_open, is_cached=True) for is_open in (False, True)]
    times = _time(shape, [SFT, *sides], model, work.turns, max(work.warm_up, STEPS_PER_EPOCH))
    return [_against_sft(shape, side, times) for side in sides]


def _time(shape: Shape, sides: list[Side], model: PreTrainedModel, turns: int, warm_up: int) -> dict[str, StepTimes]:
    trainers = {side.name: new_trainer(shape, side, model) for side in sides}
    times = train_interleaved(trainers, turns, warm_up=warm_up)
    for side in sides:
        if side.trainer == "barrier":
            _require_gate(trainers[side.name], side)
    return times


def _require_gate(trainer: SFTTrainer, side: Side) -> None:
    """Raise a RuntimeError unless the gate was open, or closed, for every sequence of every step."""
    share = trainer.state.log_history[-1]["kl/gate_open"]
    if share != float(side.is_open):
        raise RuntimeError(f"{side.name}: the gate was open for {share:.0%} of the divergences")


def _against_sft(shape: Shape, side: Side, times: dict[str, StepTimes]) -> Claim:
    limit = side.flops(shape) / SFT.flops(shape)
    excess = EXCESS[side.is_open and not side.is_cached]
    ratio = time_ratio(times[side.name], times[SFT.name])
    return Claim(
        name=f"{shape.title}: time of a step, {side.name} / SFTTrainer",
        measured_in=ratio.measured_in,
        values=ratio.values,
        relation="<=",
        target=round(excess * limit, 4),
        limit=limit,
        limit_is=f"floating-point operations; the target is {excess} of it",
        setting=shape.setting(),
        raw=raw_times({name: times[name] for name in (side.name, SFT.name)}),
        also=ratio.also | _speeds(shape, times, side, SFT),
    )


def _against_composition(shape: Shape, side: Side, composition: Side, times: dict[str, StepTimes]) -> Claim:
    limit = composition.flops(shape) / side.flops(shape)
    share_of_limit = round(SHARE_OF_LIMIT * limit, 4)
    ratio = time_ratio(times[composition.name], times[side.name])
    return Claim(
        name=f"{shape.title}: time of a step, composition of TRL's kernels / {side.name}",
        measured_in=ratio.measured_in,
        values=ratio.values,
        relation=">=",
        target=SPEED_UP[side.is_open] if shape.is_headline else share_of_limit,
        limit=limit,
        limit_is="floating-point operations; the composition needs the same for every aggregate, and is run with mean",
        setting=shape.setting(),
        raw=raw_times({name: times[name] for name in (composition.name, side.name)}),
        also=ratio.also | _speeds(shape, times, composition, side),
    )


def _speeds(shape: Shape, times: dict[str, StepTimes], top: Side, bottom: Side) -> dict[str, Any]:
    """How fast each side does the operations that its limit counts."""
    return {
        "counted_flops_per_s": {
            side.name: side.flops(shape) / statistics.median(seconds(times[side.name])) for side in (top, bottom)
        },
    }


def measure_memory(shape: Shape) -> list[Claim]:
    """Peak memory of a step, gate closed and open, against `SFTTrainer` and against whole logits."""
    closed, opened, logits = Side("barrier"), Side("barrier", is_open=True), Side("logits", is_open=True)
    peaks = peak_memory(shape, [SFT, closed, opened, *([logits] if shape.is_headline else [])])
    claims = [_memory_claim(shape, side, SFT, peaks, "<=", PEAK_OVER_SFT) for side in (closed, opened)]
    if shape.is_headline:
        claims.append(_memory_claim(shape, logits, opened, peaks, ">=", PEAK_OF_LOGITS))
    return claims


def _memory_claim(
    shape: Shape, top: Side, bottom: Side, peaks: dict[str, dict[str, int]], relation: Any, target: float
) -> Claim:
    above, below = peaks[top.name], peaks[bottom.name]
    return Claim(
        name=f"{shape.title}: peak memory of a step above the model, {top.name} / {bottom.name}",
        measured_in="bytes",
        values=[above["allocated_bytes"] / below["allocated_bytes"]],
        relation=relation,
        target=target,
        limit=None,
        limit_is="none: it depends on the size of the tiles of the vocabulary",
        setting=shape.setting(),
        raw={top.name: above, bottom.name: below},
        also={"ratio_of_resident_bytes": above["resident_bytes"] / below["resident_bytes"]},
    )


def measure_shape(shape: Shape, model: PreTrainedModel, work: Workload) -> Iterator[Claim]:
    yield from measure_gate(shape, model, work, is_open=False)
    yield from measure_gate(shape, model, work, is_open=True)
    yield from measure_cache(shape, model, work)
    yield from measure_memory(shape)


def measure(quick: bool) -> dict[str, Any]:
    """All measurements of this machine."""
    work = QUICK if quick else GPU if torch.cuda.is_available() else CPU
    record: dict[str, Any] = {"claims": [], "recorder_check": check_peak_recorder(), "relative_differences": {}}
    for index, shape in enumerate(work.shapes):
        model = random_model(shape)
        # What an aggregate computes has nothing to do with the shape.
        aggregates = AGGREGATES if index == 0 else AGGREGATES[:1]
        record["relative_differences"][shape.title] = measure_equality(shape, model, aggregates, work.tolerance)
        for claim in measure_shape(shape, model, work):
            claim.print()
            record["claims"].append(claim.record())
    return record


if __name__ == "__main__":
    run_command("kl_barrier", __doc__, measure)
