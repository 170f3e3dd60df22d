"""Evaluation of the centre: greedily, on prompts that never change."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import ProgressCallback

from alignkit.es_lora.centre import Centre
from alignkit.es_lora.population_step import summed_over_ranks
from alignkit.es_lora.rewards import RewardFunctions
from alignkit.es_lora.rollout import Rollout
from alignkit.es_lora.step_metrics import evaluation_metrics, mean_of_each


def evaluate_centre(
    centre: Centre,
    rollout: Rollout,
    batches: DataLoader,
    rewards: RewardFunctions,
    *,
    prefix: str,
    max_completion_length: int,
    accelerator: Any,
) -> tuple[Tensor, dict[str, float]]:
    """Rewards (N, F) of the functions for each prompt's completion, and what the log says of them.

    Batches are shared out over ranks, and every rank has the result.
    """
    n_prompts, n_functions = len(batches.dataset), len(rewards.names)  # type: ignore[arg-type]  # a list of prompts
    found = torch.zeros(n_prompts, n_functions + 2, dtype=torch.float64)
    adapters = centre.itself()
    start = 0
    for number, prompts in enumerate(batches):
        end = start + len(prompts)
        if number % accelerator.num_processes == accelerator.process_index:
            rollouts = rollout.run(
                [None],
                adapters,
                prompts,
                step=0,
                rollouts=1,
                max_completion_length=max_completion_length,
                temperature=0.0,
            )
            found[start:end] = torch.cat([rollouts.rewards[0, :, 0], rollouts.lengths.T, rollouts.ended.T], dim=1)
        start = end
    found = summed_over_ranks(found, accelerator)
    metrics = evaluation_metrics(found, rewards, prefix)
    user_metrics = mean_of_each(gather_object([rewards.pop_metrics()]))
    return found[:, :n_functions], metrics | {f"{prefix}_{name}": value for name, value in user_metrics.items()}


def show_in_progress_bar(callbacks: Sequence[Any], name: str, reward: float) -> None:
    """Put the centre's last evaluation behind the bar of the training, if it has one."""
    for callback in callbacks:
        if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
            callback.training_bar.set_postfix({name: f"{reward:.4g}"})
