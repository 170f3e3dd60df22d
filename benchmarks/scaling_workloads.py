"""Sizes and settings of the scaling curves, and how one side is measured at one size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common import require_equal
from dpo_shapes import Shape as QwenShape
from dpo_workloads import Counted
from flops import flop_counter
from kl_barrier_shapes import Shape as GemmaShape
from plan_workloads import PeakOfTraining
from timing import StepTimes, run_in_turns, train_interleaved
from torch import Tensor
from transformers import Gemma3TextConfig, Qwen3Config

from alignkit.plan.estimate import estimate
from alignkit.plan.gpu_heads import heads_as_on_a_gpu
from alignkit.plan.request import PlanRequest
from alignkit.plan.simulation import MemorySimulation

# Relative, of gradients that are sums over the whole vocabulary; tokens differ by 0 or by far more.
FUNCTION_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Work:
    """What is run.

    Attributes:
        turns (`int`): timed steps of each side at each size.
        heads, completions, vocabularies, populations, sequences: the sizes of each curve.
        hidden_size, layers (`int`): of every model.
        positions (`int`): labelled positions of the head's curve.
        prompt_tokens, completion_tokens (`int`): where the lengths are not what grows.
        simulated_positions (`int`): of the head, where memory is simulated.
        published (`bool`): whether the memory of a published shape is simulated; else that of a toy.
    """

    turns: int
    heads: tuple[int, ...]
    completions: tuple[int, ...]
    vocabularies: tuple[int, ...]
    populations: tuple[int, ...]
    sequences: tuple[int, ...]
    hidden_size: int
    layers: int
    positions: int
    prompt_tokens: int
    completion_tokens: int
    simulated_positions: int
    published: bool

    def gemma(self, tokens: int) -> GemmaShape:
        """A row of so many tokens, every layer attending to all of them."""
        size = self.hidden_size
        return _FullAttention(
            "Gemma 3", size, self.layers, 4 * size, max(1, size // 64), 1, 64, 8192, rows=1, tokens=tokens
        )

    def qwen(self) -> QwenShape:
        size, heads = self.hidden_size, max(1, self.hidden_size // 64)
        return QwenShape("Qwen 3", 512, size, self.layers, 3 * size, heads, heads)

    def planned(self) -> Qwen3Config:
        """The shape whose memory is simulated: Qwen3-1.7B's, or a toy's."""
        if not self.published:
            return Qwen3Config(
                vocab_size=512,
                hidden_size=32,
                num_hidden_layers=2,
                intermediate_size=64,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=16,
            )
        return Qwen3Config(
            vocab_size=151_936,
            hidden_size=2048,
            num_hidden_layers=28,
            intermediate_size=6144,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
        )


class _FullAttention(GemmaShape):
    def config(self) -> Gemma3TextConfig:
        config = super().config()
        config.layer_types = ["full_attention"] * self.layers
        return config


FULL = Work(
    turns=5,
    heads=(1, 2, 4, 8, 16, 32, 64),
    completions=(2, 4, 8, 16),
    vocabularies=(32_768, 65_536, 131_072, 262_144),
    populations=(8, 16, 32, 64, 128, 256),
    sequences=(256, 512, 1024, 2048, 4096),
    hidden_size=256,
    layers=4,
    positions=128,
    prompt_tokens=512,
    completion_tokens=64,
    simulated_positions=8192,
    published=True,
)
QUICK = Work(
    turns=2,
    heads=(1, 2, 4),
    completions=(2, 3, 4),
    vocabularies=(512, 1024, 2048),
    populations=(2, 4, 8),
    sequences=(16, 32, 64),
    hidden_size=64,
    layers=2,
    positions=16,
    prompt_tokens=24,
    completion_tokens=8,
    simulated_positions=64,
    published=False,
)


# ---- One side at one size ----

# Of the largest entry. In float32 the sides add up the same thousands of terms in another order.
GRADIENT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Point:
    """A side's cost of one step.

    Attributes:
        times (`StepTimes`): of every turn.
        flops (`int`): floating-point operations, counted.
        peak_bytes (`int`): alive at once, weights and all that stays included, counted.
    """

    times: StepTimes
    flops: int
    peak_bytes: int


def of_trainers(
    new: dict[str, Callable[[], Any]],
    turns: int,
    *,
    steps: dict[str, int] | None = None,
    have_same_loss: bool = False,
) -> dict[str, Point]:
    """A point for each of these trainers, which are made anew to be counted, timed in turns, and for their peak.

    Args:
        steps (`dict[str, int]`, *optional*): optimiser steps that make one step of a side, where it needs many.
        have_same_loss (`bool`): whether loss and gradient must be those of the first trainer.

    Raises:
        RuntimeError: they must, and are not.
    """
    steps_of = dict.fromkeys(new, 1) | (steps or {})
    counted = {name: Counted(make(), 1) for name, make in new.items()}
    if have_same_loss:
        first, *others = counted
        for name in others:
            require_equal(f"loss of {name} and {first}", counted[name].loss, counted[first].loss)
            gradients = (counted[side].gradient for side in (name, first))
            require_equal(f"gradient of {name} and {first}", *gradients, tolerance=GRADIENT_TOLERANCE)
    flops = {name: steps_of[name] * counted[name].flops for name in new}
    peaks = {name: _peak_of_training(make) for name, make in new.items()}
    times = train_interleaved({name: make() for name, make in new.items()}, turns, steps_per_turn=steps_of)
    return {name: Point(_scaled(times[name], steps_of[name]), flops[name], peaks[name]) for name in new}


def of_functions(
    new: dict[str, Callable[[], Callable[[], Tensor]]],
    turns: int,
    *,
    same_peak: dict[str, Callable[[], Callable[[], Tensor]]] | None = None,
) -> dict[str, Point]:
    """A point for each of these functions; a maker gives one with all that it needs.

    Args:
        same_peak: of a function that does the same many times over, one that does it less often, with as high a peak:
            every allocation is written down.

    Raises:
        RuntimeError: they give different tensors.
    """
    flops, results = {}, {}
    functions = {name: make() for name, make in new.items()}
    for name, function in functions.items():
        with flop_counter() as counter:
            results[name] = function()
        flops[name] = counter.get_total_flops()
    first, *others = results
    for name in others:
        require_equal(f"result of {name} and of {first}", results[name], results[first], FUNCTION_TOLERANCE)
    times = run_in_turns(functions, turns)
    del functions, function
    makers = new | (same_peak or {})
    return {name: Point(times[name], flops[name], _peak_of_function(makers[name])) for name in new}


def _peak_of_function(make: Callable[[], Callable[[], Tensor]]) -> int:
    recorder = PeakOfTraining()
    recorder.start()
    function = make()
    recorder.mark()
    function()
    return recorder.stop()


def _peak_of_training(make: Callable[[], Any]) -> int:
    """Of two optimiser steps, the optimiser's state included."""
    recorder = PeakOfTraining()
    recorder.start()
    trainer = make()
    trainer.args.max_steps = 2
    recorder.mark()
    trainer.train()
    return recorder.stop()


def _scaled(times: StepTimes, by: int) -> StepTimes:
    return StepTimes([by * t for t in times.wall_s], [by * t for t in times.cpu_s])


# ---- Memory that is simulated ----


def planned_bytes(work: Work, request: PlanRequest) -> int:
    """Peak of a training in the planned shape, as on a GPU."""
    return estimate(work.planned(), request).total_bytes


def simulated_bytes(function: Callable[[], Any]) -> int:
    """Peak of a function that makes its own tensors, which pass for real and have no memory, as on a GPU."""
    simulation = MemorySimulation()
    with simulation, heads_as_on_a_gpu(simulation):
        simulation.begin()
        function()
    return simulation.peak_bytes
