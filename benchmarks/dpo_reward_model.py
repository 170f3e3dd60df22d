"""The reward model on completions of shared prompts: against itself without sharing, and against TRL's pairs."""

import random
import statistics
from itertools import combinations
from typing import Any

from claims import Claim
from common import require_equal
from datasets import Dataset
from dpo_shapes import LETTERS, Workload
from dpo_workloads import Counted
from reward_model_workloads import HEADS, new_trainer
from timing import StepTimes, raw_times, time_ratio, train_interleaved

SHARE_OF_LIMIT = 0.85
COMPLETIONS = (2, 4)
SHARED, UNSHARED, PAIRS = "alignkit", "alignkit, unshared", "TRL"


def measure_reward_model(work: Workload) -> list[Claim]:
    """Time of a step with K completions for a prompt.

    Raises:
        RuntimeError: loss or gradient differ.
    """
    return [_measure(work, k) for k in COMPLETIONS]


def _measure(work: Workload, k: int) -> Claim:
    config = work.backbones[0].config()
    lists = rated_lists(work.reward_prompts, work.reward_prompt, work.reward_completion, k)
    pairs = _pairs(lists)
    ours: dict[str, Any] = {"dataset": lists, "batch_size": len(lists), "heads": HEADS[:1]}
    sides: dict[str, dict[str, Any]] = {
        SHARED: ours | {"share_prefix": True},
        UNSHARED: ours | {"share_prefix": False},
        PAIRS: {"dataset": pairs, "batch_size": len(pairs)},
    }
    counted = {side: Counted(new_trainer(config=config, **settings), 1) for side, settings in sides.items()}
    for side in (UNSHARED, PAIRS):
        require_equal(f"loss of the reward model, {k} completions, {side}", counted[side].loss, counted[SHARED].loss)
        require_equal(
            f"gradient of the reward model, {k} completions, {side}", counted[side].gradient, counted[SHARED].gradient
        )
    trainers = {side: new_trainer(config=config, **settings) for side, settings in sides.items()}
    return _claim(work, k, counted, train_interleaved(trainers, work.turns))


def _claim(work: Workload, k: int, counted: dict[str, Counted], times: dict[str, StepTimes]) -> Claim:
    limit = counted[UNSHARED].flops / counted[SHARED].flops
    ratio, against_trl = (time_ratio(times[side], times[SHARED]) for side in (UNSHARED, PAIRS))
    return Claim(
        name=f"time of a reward model's step, K = {k} completions of a prompt, without sharing / with",
        measured_in=ratio.measured_in,
        values=ratio.values,
        relation=">=",
        target=round(SHARE_OF_LIMIT * limit, 4),
        limit=limit,
        limit_is=f"floating-point operations; the target is {SHARE_OF_LIMIT} of it",
        setting={
            **work.backbones[0].setting(),
            "lora_rank": None,
            "gradient_checkpointing": False,
            "prompts_per_step": work.reward_prompts,
            "prompt_tokens": work.reward_prompt,
            "completion_tokens": work.reward_completion,
        },
        raw=raw_times(times),
        also=ratio.also
        | {
            "trl_pairs_over_alignkit": statistics.median(against_trl.values),
            "limit_of_trl_pairs": counted[PAIRS].flops / counted[SHARED].flops,
        },
    )


def rated_lists(prompts: int, prompt_tokens: int, completion_tokens: int, k: int) -> Dataset:
    """Prompts with K completions each, the first the best; `<bos>` and `<eos>` count as tokens."""
    generator = random.Random(0)

    def text(n_tokens: int) -> str:
        return "".join(generator.choices(LETTERS, k=n_tokens - 1))

    return Dataset.from_list(
        [
            {
                "prompt": text(prompt_tokens),
                "completions": [text(completion_tokens) for _ in range(k)],
                "ratings": {HEADS[0]: [float(-rank) for rank in range(k)]},
            }
            for _ in range(prompts)
        ]
    )


def _pairs(lists: Dataset) -> Dataset:
    """Every comparison of the lists as a pair, for TRL."""
    return Dataset.from_list(
        [
            {"chosen": row["prompt"] + better, "rejected": row["prompt"] + worse}
            for row in lists
            for better, worse in combinations(row["completions"], 2)
        ]
    )
