"""Callbacks that several trainers' tests use."""

import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from alignkit.fused_head.modeling import whole


class WaitAfter(TrainerCallback):
    """Stands still after a step, so that the process can be killed at a known place."""

    def __init__(self, step: int, flag: Path):
        self.step, self.flag = step, flag

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.flag.touch()
            time.sleep(300)


class KeepGradients(TrainerCallback):
    """Copies the gradients of every step, after they have been summed over micro-batches and ranks.

    Attributes:
        steps: of each step, by its number, the gradients by the parameters' names in the model without a wrapper.
    """

    def __init__(self):
        self.steps: dict[int, dict[str, torch.Tensor]] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        named = model.named_parameters()
        self.steps[state.global_step] = {
            name.removeprefix("module."): whole(p.grad).clone() for name, p in named if p.grad is not None
        }

    @property
    def last(self) -> dict[str, torch.Tensor]:
        return next(reversed(self.steps.values()))

    def by_step(self) -> dict[str, torch.Tensor]:
        """All of them under `step.name`, for a file."""
        return {f"{step}.{name}": value for step, found in self.steps.items() for name, value in found.items()}
