"""The optimiser steps of a training: what share is done, and a call after each."""

from collections.abc import Callable

from transformers import TrainerCallback, TrainerState


class StepCallback(TrainerCallback):
    """Calls one function when a training begins, and another after every optimiser step."""

    def __init__(self, begin: Callable[[], None], after_step: Callable[[], None]):
        self._begin = begin
        self._after_step = after_step

    def on_train_begin(self, args, state, control, **kwargs):
        self._begin()

    def on_step_end(self, args, state, control, **kwargs):
        self._after_step()


def share_done(state: TrainerState) -> float:
    """Share of the training's optimiser steps that is done, in [0, 1]; 0 before a training."""
    return min(1.0, state.global_step / state.max_steps) if state.max_steps > 0 else 0.0
