"""ES-LoRA: a population in one pass against PEFT's ways to run many adapters, and against the base alone.

    python benchmarks/es_lora.py              # all of it, minutes; writes benchmarks/results/<machine>.json
    python benchmarks/es_lora.py --quick      # does it run? under a minute, toy shapes, its numbers mean nothing

All sides generate the same number of tokens for the same prompts, greedily, in turns, and those with adapters must
give the same tokens before their times are compared. Ratios are of CPU time, to which other processes on the machine
add nothing; those of the wall clock stand beside them.
"""

import os
import statistics
from typing import Any

# Set before torch and the Hub client are imported, because they read them then; every new thread reads the first.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from claims import Claim
from common import run_command
from es_lora_shapes import measure_shapes, on_gpu, toy
from es_lora_workloads import (
    LIMIT_TARGETS,
    PEFT_TARGETS,
    QUICK_SHAPE,
    QUICK_STRAGGLERS,
    STRAGGLERS,
    TRAINED,
    EndAt,
    Shape,
    Sides,
    Target,
    seconds_of_steps,
)
from memory import PeakRecorder, check_peak_recorder
from timing import raw_times, run_in_turns, seconds, time_ratio
from torch import Tensor

from alignkit.es_lora.population import evaluate_population, population

TURNS = 5


def _require_same_tokens(tokens: dict[str, Tensor]) -> None:
    """Every side with adapters gives the population's tokens."""
    for name, other in tokens.items():
        if not torch.equal(other, tokens["population"]):
            raise RuntimeError(f"{name} gives other tokens than the population; comparing their times means nothing")


def against_peft(shape: Shape, targets: tuple[Target, Target], turns: int) -> list[Claim]:
    """The population against a loop over members, and against a batch whose rows name their adapter."""
    sides = Sides(shape)
    ways = {"population": sides.population, "loop": sides.loop(), "adapter_names": sides.adapter_names()}
    _require_same_tokens({name: way() for name, way in ways.items()})
    times = run_in_turns({**ways, "plain": sides.plain}, turns)
    peers = {"loop": "a PEFT model per member in turn", "adapter_names": "PEFT with adapter_names"}
    at = f"{shape.members} members x {shape.prompts} prompts, hidden {shape.hidden_size}"
    claims = []
    for (name, peer), target in zip(peers.items(), targets, strict=True):
        ratio = time_ratio(times[name], times["population"])
        claims.append(
            Claim(
                name=f"time of a generation: {peer} / the population, {at}",
                measured_in=ratio.measured_in,
                values=ratio.values,
                relation=">=",
                target=target.value,
                limit=statistics.median(time_ratio(times[name], times["plain"]).values),
                limit_is="the base alone in the place of the population, as many rows in one batch, in the same run",
                if_missed=target.if_missed,
                setting=shape.setting(),
                raw=raw_times({side: times[side] for side in (name, "population", "plain")}),
                also=ratio.also,
            )
        )
    return claims


def against_the_base(shape: Shape, target: Target, turns: int) -> Claim:
    """The population against as many rows of the base without adapters: what no population can pass."""
    sides = Sides(shape)
    times = run_in_turns({"population": sides.population, "plain": sides.plain}, turns)
    ratio = time_ratio(times["plain"], times["population"])
    tokens = shape.members * shape.prompts * shape.new_tokens
    return Claim(
        name=f"tokens per second: the population / the base alone, {shape.members} x {shape.prompts} rows",
        measured_in=ratio.measured_in,
        values=ratio.values,
        relation=">=",
        target=target.value,
        limit=1.0,
        limit_is="the products of the adapters are free",
        if_missed=target.if_missed,
        setting=shape.setting(),
        raw=raw_times(times),
        also=ratio.also
        | {f"{name}_tokens_per_s": tokens / statistics.median(seconds(side)) for name, side in times.items()},
    )


def peak_memory(shape: Shape) -> Claim:
    """Peak bytes of a generation, above those of the base alone, over the bytes of the given adapters."""
    sides = Sides(shape)
    peaks = {}
    for name, side in {"plain": sides.plain, "population": sides.population}.items():
        recorder = PeakRecorder()
        recorder.start()
        side()
        peaks[name] = recorder.stop()
    return Claim(
        name="peak bytes above plain generate / bytes of P adapters",
        measured_in="bytes",
        values=[(peaks["population"] - peaks["plain"]) / sides.adapter_bytes()],
        relation="<=",
        target=1.0,
        limit=0.0,
        limit_is="the given adapters are used as they are; a cast or a faster layout copies them",
        setting=shape.setting(),
        raw={"peak_bytes": peaks, "adapter_bytes": sides.adapter_bytes()},
        also={"recorder_check": check_peak_recorder()},
    )


def stragglers(shape: Shape, turns: int) -> list[Claim]:
    """What rows cost that go on long after the others: one endless member, and one endless row in every tenth."""
    generator = torch.Generator().manual_seed(0)
    usual = torch.randint(
        shape.new_tokens // 8, shape.new_tokens // 2, (shape.members, shape.prompts), generator=generator
    )
    one_member, some_rows = usual.clone(), usual.clone()
    one_member[0] = shape.new_tokens
    some_rows[::10, 0] = shape.new_tokens
    return [
        _straggler_claim(shape, name, lengths.flatten(), turns)
        for name, lengths in {"one endless member": one_member, "an endless row in each tenth": some_rows}.items()
    ]


def _straggler_claim(shape: Shape, name: str, lengths: Tensor, turns: int) -> Claim:
    sides = Sides(shape)
    settings = {
        "do_sample": False,
        "max_new_tokens": shape.new_tokens,
        "logits_processor": [EndAt(lengths, shape.prompt_tokens)],
    }

    def dropping() -> Tensor:
        return evaluate_population(sides.model, sides.adapters, sides.ids, sides.mask, **settings)

    def keeping() -> Tensor:
        rows = sides.ids.repeat(shape.members, 1), sides.mask.repeat(shape.members, 1)
        with population(sides.model, sides.adapters) as base:
            return base.generate(rows[0], attention_mask=rows[1], **settings).view(shape.members, shape.prompts, -1)

    ways = {"population": dropping, "keeping": keeping}
    run: dict[str, int] = dict.fromkeys(ways, 0)
    tokens = {}
    for way, generate in ways.items():

        def count(module: Any, args: Any, kwargs: dict[str, Any], way: str = way) -> None:
            run[way] += len(kwargs["input_ids"])

        handle = sides.model.model.register_forward_pre_hook(count, with_kwargs=True)
        tokens[way] = generate()
        handle.remove()
    _require_same_tokens(tokens)
    times = run_in_turns(ways, turns)
    wasted = {way: 1 - lengths.sum().item() / steps for way, steps in run.items()}
    return Claim(
        name=f"share of row-steps that give no token, {name}",
        measured_in="row-steps",
        values=[wasted["population"]],
        relation="<=",
        target=0.2,
        limit=0.0,
        limit_is="a row leaves with its last token; all rows look in turn for the end of every member",
        setting=shape.setting(),
        raw={"row_steps": run, "tokens": int(lengths.sum()), **raw_times(times)},
        also={
            "share_with_all_rows_kept": wasted["keeping"],
            "time_with_all_rows_kept": statistics.median(time_ratio(times["keeping"], times["population"]).values),
        },
    )


def noise_and_update(shape: Shape, steps: int) -> Claim:
    """What a training step spends on anything but generating and scoring."""
    phases = seconds_of_steps(shape, steps)
    return Claim(
        name="share of a training step spent on noise and update",
        measured_in="wall time",
        values=[(step["noise"] + step["update"]) / sum(step.values()) for step in phases],
        relation="<=",
        target=0.02,
        limit=0.0,
        limit_is="nothing but generating and scoring; the noise of a pair is drawn twice, for members and update",
        setting=shape.setting()
        | {"antithetic": True, "perturb": "both", "tokens_per_member": shape.prompts * shape.new_tokens},
        raw={"seconds": phases},
    )


def claims_of(quick: bool) -> list[Claim]:
    """All claims of a CPU, printed as they come."""
    turns = 2 if quick else TURNS
    claims: list[Claim] = []

    def add(new: list[Claim]) -> None:
        for claim in new:
            claim.print()
        claims.extend(new)

    for shape, targets in ({QUICK_SHAPE: (Target(1.0), Target(2.0))} if quick else PEFT_TARGETS).items():
        add(against_peft(shape, targets, turns))
    for shape, target in ({QUICK_SHAPE: Target(0.75)} if quick else LIMIT_TARGETS).items():
        add([against_the_base(shape, target, turns)])
    add([peak_memory(QUICK_SHAPE if quick else Shape(30, 2))])
    add(stragglers(QUICK_STRAGGLERS if quick else STRAGGLERS, turns))
    add([noise_and_update(QUICK_SHAPE if quick else TRAINED, turns)])
    return claims


def measure(quick: bool) -> dict[str, Any]:
    """All measurements as one record: on a GPU those of published shapes, else those of a CPU."""
    if quick:
        return {"claims": [claim.record() for claim in claims_of(quick) + measure_shapes(toy())]}
    claims = measure_shapes(on_gpu()) if torch.cuda.is_available() else claims_of(quick)
    return {"claims": [claim.record() for claim in claims]}


if __name__ == "__main__":
    run_command("es_lora", __doc__, measure)
