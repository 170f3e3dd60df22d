"""Numbers of a step and of an evaluation for the log, named as GRPO's where they mean the same."""

import math
from collections.abc import Mapping, Sequence
from typing import get_args

from torch import Tensor

from alignkit.es_lora.fitness import Verdict
from alignkit.es_lora.outcome import Outcome, completion_rewards
from alignkit.es_lora.rewards import RewardFunctions

VERDICTS = get_args(Verdict)


def step_metrics(
    outcome: Outcome, rewards: Tensor, names: Sequence[str], lengths: Tensor, ended: Tensor, sigma: float
) -> dict[str, float]:
    """Of one step, over the members of all ranks and without the centre; the log has the mean over steps.

    `reward` is the mean fitness, `reward_std` the spread over members; `rewards/NAME/mean` and `/std` are over
    completions; `verdict/NAME` is 1 for the verdict of the step.

    Args:
        outcome: of the step.
        rewards (`Tensor`, (P + 1, M, J, F)), names: of the functions; the centre last.
        lengths, ended (`Tensor`, (P + 1, M · J)): tokens of each completion, and whether it ended by itself.
        sigma: mean over modules.
    """
    record = outcome.record()
    found = {
        "reward": record["mean"],
        "reward_std": record["std"],
        "reward_best": record["best"],
        "reward_centre": record["centre"],
        "failed_members": float(outcome.failed),
        "frac_no_variance": float(not outcome.moves),
        "signal_to_noise": record["signal_to_noise"],
        "sigma": sigma,
    }
    found |= {f"verdict/{verdict}": float(record["verdict"] == verdict) for verdict in VERDICTS}
    for place, name in enumerate(names):
        values = rewards[:-1, ..., place]
        values = values[values.isfinite()]
        found[f"rewards/{name}/mean"] = values.mean().item()
        found[f"rewards/{name}/std"] = values.std(correction=0).item() if len(values) else math.nan
    found["completions/mean_length"] = lengths[:-1].mean().item()
    found["completions/max_length"] = lengths[:-1].max().item()
    found["completions/clipped_ratio"] = 1 - ended[:-1].mean().item()
    return found


def evaluation_metrics(totals: Tensor, rewards: RewardFunctions, prefix: str) -> dict[str, float]:
    """Of the centre, from (N, F + 2): the functions' rewards, the length and whether it ended, of each completion.

    A completion that failed, or to which no function applies, does not count in the mean; `failed` says how many.
    """
    values = completion_rewards(totals[:, :-2], rewards.weights)
    known = values[values.isfinite()]
    found = {
        f"{prefix}_loss": -known.mean().item(),
        f"{prefix}_reward": known.mean().item(),
        f"{prefix}_reward_std": known.std(correction=0).item() if len(known) else math.nan,
        f"{prefix}_failed": float(totals[:, :-2].isinf().any(1).sum()),
        f"{prefix}_completions/mean_length": totals[:, -2].mean().item(),
        f"{prefix}_completions/clipped_ratio": 1 - totals[:, -1].mean().item(),
    }
    for place, name in enumerate(rewards.names):
        column = totals[:, place]
        found[f"{prefix}_rewards/{name}/mean"] = column[column.isfinite()].mean().item()
    return found


def mean_of_each(metrics: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Mean of each name's finite values, over all that ranks have; NaN where none is finite."""
    found = {}
    for name in dict.fromkeys(name for part in metrics for name in part):
        values = [value for part in metrics for value in part.get(name, ())]
        finite = [value for value in values if math.isfinite(value)]
        found[name] = math.fsum(finite) / len(finite) if finite else math.nan
    return found
