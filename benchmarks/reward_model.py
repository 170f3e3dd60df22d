"""Reward models: alignkit against TRL's `RewardTrainer`, in the same process, on the same texts and weights.

    python benchmarks/reward_model.py              # all of it, minutes; writes benchmarks/results/<machine>.json
    python benchmarks/reward_model.py --quick      # does it run? under a minute, toy shapes, its numbers mean nothing

What is timed is `trainer.train()` of both, step by step in turns. Logging, saving, gradient checkpointing and gradient
clipping are off; everything is float32, but for the shapes of published models on a GPU. README.md beside this file
lists the claims and says how to read the JSON.
"""

import os
import statistics
from typing import Any

# Set before torch and the Hub client are imported, because they read them then; every new thread reads the first.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from claims import Claim
from common import FirstGradient, require_equal, run_command
from memory import check_peak_recorder
from reward_model_shapes import measure_shapes, published_shapes
from reward_model_workloads import (
    FULL,
    HEADS,
    QUICK,
    Workload,
    attribute_pairs,
    micro_batch_peak,
    new_trainer,
    pairs_of_head,
    pairs_of_tiers,
    tiered_texts,
)
from timing import StepTimes, raw_times, time_ratio, train_interleaved

NO_GPU = "not run: no GPU"


def seven_heads(work: Workload) -> list[Claim]:
    """A step with 7 heads against one of TRL's with 1, and one run with 7 heads against 7 runs of TRL's."""
    dataset = attribute_pairs(4 * work.pairs, work.pair_tokens)
    settings = {"config": work.config(), "batch_size": work.pairs}
    trainers = {"alignkit": new_trainer(dataset, heads=HEADS, **settings)}
    trainers |= {f"trl_{head}": new_trainer(pairs_of_head(dataset, head), **settings) for head in HEADS}
    step = train_interleaved({name: trainers[name] for name in ("alignkit", f"trl_{HEADS[0]}")}, 8 * work.runs)
    runs = train_interleaved(trainers, work.steps_per_run * work.runs)

    seven = _added([runs[f"trl_{head}"] for head in HEADS])
    of_a_step = time_ratio(step["alignkit"], step[f"trl_{HEADS[0]}"])
    of_runs = time_ratio(seven, runs["alignkit"], turns_of_a_round=work.steps_per_run)
    setting = work.setting(
        pairs_per_step=work.pairs, tokens_per_text=work.pair_tokens, comparisons_per_pair=len(HEADS)
    )
    return [
        Claim(
            name="time of a step: alignkit with 7 heads / TRL with 1, on the same pairs",
            measured_in=of_a_step.measured_in,
            values=of_a_step.values,
            relation="<=",
            target=1.03,
            limit=1.0,
            limit_is="the backbone runs on the same tokens; six more rows of `score` on the pooled positions are free",
            setting=setting,
            raw=raw_times(step),
            also=of_a_step.also,
        ),
        Claim(
            name="time of training: 7 runs of TRL, one per head / one run of alignkit with 7 heads",
            measured_in=of_runs.measured_in,
            values=of_runs.values,
            relation=">=",
            target=6.5,
            limit=7.0,
            limit_is="seven passes over the pairs against one; tokenising, seven times against once, is left out",
            setting=setting | {"steps_per_run": work.steps_per_run},
            raw=raw_times(runs),
            also=of_runs.also,
        ),
    ]


def _added(sides: list[StepTimes]) -> StepTimes:
    """Turn by turn, as if the sides were one."""
    return StepTimes(
        [sum(turn) for turn in zip(*(side.wall_s for side in sides), strict=True)],
        [sum(turn) for turn in zip(*(side.cpu_s for side in sides), strict=True)],
    )


def tiers(work: Workload) -> list[Claim]:
    """Positives against shared negatives, all pairs, against the same comparisons as TRL pairs."""
    positives, negatives = tiered_texts(work.positives, work.negatives, work.tier_tokens)
    pairs = pairs_of_tiers(positives, negatives)
    gradients = {
        name: FirstGradient() for name in ("alignkit", *(f"trl_micro_batch_{n}" for n in work.trl_micro_batches))
    }
    # Equal weights, and every negative drawn at every step, so that both sides have the same loss.
    ours = new_trainer(
        positives,
        config=work.config(),
        heads=HEADS[:1],
        negatives=negatives,
        batch_size=work.positives,
        tier_weights=dict.fromkeys(set(negatives["tier"]), 1.0),
        negatives_per_tier=work.negatives,
        pairing="all",
        callbacks=[gradients["alignkit"]],
    )
    theirs = {
        f"trl_micro_batch_{n}": new_trainer(
            pairs,
            config=work.config(),
            batch_size=n,
            gradient_accumulation_steps=len(pairs) // n,
            callbacks=[gradients[f"trl_micro_batch_{n}"]],
        )
        for n in work.trl_micro_batches
    }
    # A step of TRL's lasts as long as a score of ours, which is therefore the mean of a few.
    times = train_interleaved({"alignkit": ours, **theirs}, work.runs, steps_per_turn={"alignkit": 12})
    differences = {
        name: require_equal(
            f"gradient of alignkit and {name}", gradients["alignkit"].gradient, gradients[name].gradient
        )
        for name in theirs
    }
    return [_tiers_claim(work, len(pairs), times, differences)]


def _tiers_claim(work: Workload, comparisons: int, times: dict[str, Any], differences: dict[str, float]) -> Claim:
    found = {name: time_ratio(times[name], times["alignkit"]) for name in differences}
    medians = {name: statistics.median(ratio.values) for name, ratio in found.items()}
    best = min(medians, key=lambda name: medians[name])
    encoded = work.positives + work.negatives
    return Claim(
        name="time of a step: TRL pairs, better of two micro-batch sizes / alignkit's shared negatives",
        measured_in=found[best].measured_in,
        values=found[best].values,
        relation=">=",
        target=18.0,
        limit=2 * comparisons / encoded,
        limit_is=f"{2 * comparisons} encoded texts against {encoded}; the optimiser's step is the same for both",
        setting=work.setting(
            positives=work.positives,
            negatives=work.negatives,
            comparisons=comparisons,
            tokens_per_text=work.tier_tokens,
            best=best,
        ),
        raw=raw_times(times),
        also=found[best].also
        | {
            "median_of_each": medians,
            "relative_difference_of_gradients": differences,
        },
    )


def score_cache(work: Workload) -> list[Claim]:
    """Encoding an eighth of the batch at a time: peak memory, time, gradient."""
    dataset = attribute_pairs(4 * work.cache_pairs, work.pair_tokens)
    chunk = 2 * work.cache_pairs // 8
    settings = {"config": work.config(), "heads": HEADS, "batch_size": work.cache_pairs}
    chunks = {"without": None, "with": chunk}
    gradients = {name: FirstGradient() for name in chunks}
    times = train_interleaved(
        {
            name: new_trainer(dataset, encode_batch_size=size, callbacks=[gradients[name]], **settings)
            for name, size in chunks.items()
        },
        4 * work.runs,
    )
    difference = require_equal("gradient with and without score cache", *(g.gradient for g in gradients.values()))
    peaks = {name: micro_batch_peak(dataset, encode_batch_size=size, **settings) for name, size in chunks.items()}
    ratio = time_ratio(times["with"], times["without"])
    setting = work.setting(
        texts_per_batch=2 * work.cache_pairs, encode_batch_size=chunk, tokens_per_text=work.pair_tokens
    )
    return [
        Claim(
            name="peak bytes above weights, gradients and optimiser state: with score cache / without",
            measured_in="bytes",
            values=[peaks["with"] / peaks["without"]],
            relation="<=",
            target=0.35,
            limit=1 / 8,
            limit_is="the activations of one chunk of eight; temporaries of the backward pass come on top",
            setting=setting,
            raw={"peak_bytes": peaks},
            also={"recorder_check": check_peak_recorder()},
        ),
        Claim(
            name="time of a step: with score cache / without",
            measured_in=ratio.measured_in,
            values=ratio.values,
            relation="<=",
            target=1.5,
            limit=4 / 3,
            limit_is="forward, forward, backward (two forwards) against forward, backward",
            setting=setting,
            raw=raw_times(times),
            also=ratio.also,
        ),
        Claim(
            name="largest difference of the gradient with and without score cache / largest entry",
            measured_in="gradient entries",
            values=[difference],
            relation="<=",
            target=1e-5,
            limit=0.0,
            limit_is="the same sum in another order",
            setting=setting,
        ),
    ]


def measure(quick: bool) -> dict[str, Any]:
    """All measurements as one record."""
    work = QUICK if quick else FULL
    record: dict[str, Any] = {"claims": []}
    for part in (seven_heads, tiers, score_cache):
        for claim in part(work):
            claim.print()
            record["claims"].append(claim.record())
    if torch.cuda.is_available():
        record["gpu_shapes"] = measure_shapes(published_shapes(small=quick), pairs=16, tokens=512, n_turns=work.runs)
    else:
        record["gpu_shapes"] = NO_GPU
        if quick:  # the same code, so that it does not rot between two GPUs
            record["small_shapes"] = measure_shapes(published_shapes(small=True), pairs=4, tokens=16, n_turns=2)
    return record


if __name__ == "__main__":
    run_command("reward_model", __doc__, measure)
