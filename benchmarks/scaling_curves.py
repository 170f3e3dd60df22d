"""The scaling curves: what grows, the sides, and the memory from which the size that breaks follows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from dpo_reward_model import rated_lists
from dpo_shapes import Lengths
from dpo_workloads import new_trainer as new_dpo_trainer
from dpo_workloads import random_model
from es_lora_workloads import Shape as Population
from es_lora_workloads import Sides
from kl_barrier_shapes import Side
from kl_barrier_workloads import new_trainer as new_barrier_trainer
from kl_barrier_workloads import random_model as random_gemma
from reward_model_workloads import attribute_pairs, pairs_of_head
from reward_model_workloads import new_trainer as new_reward_trainer
from scaling_workloads import Point, Work, of_functions, of_trainers, planned_bytes, simulated_bytes

from alignkit.fused_head import fused_nll_kl, plain_nll_kl
from alignkit.plan.request import PlanRequest

HEADS: dict[str, Callable[..., Any]] = {"fused": fused_nll_kl, "whole logits": plain_nll_kl}
HEAD_WIDTH = 640  # Gemma-3-270m's
PAIRS, PAIR_TOKENS = 4, 64
POPULATION_PROMPTS, POPULATION_TOKENS, POPULATION_LAYERS = 2, 8, 2


@dataclass(frozen=True)
class Simulated:
    """Memory without running anything: the bytes of a side at a size, and what of."""

    setting: str
    sides: dict[str, Callable[[int], int]]


@dataclass(frozen=True)
class Curve:
    """One quantity that grows.

    Attributes:
        name (`str`): of the quantity, which counts `sizes`.
        about (`str`): what a step is, and of what.
        measure: the point of every side at a size.
        simulated (`Simulated`, *optional*): in place of the counted bytes.
    """

    name: str
    about: str
    sizes: tuple[int, ...]
    measure: Callable[[int], dict[str, Point]]
    simulated: Simulated | None = None


def curves(work: Work) -> list[Curve]:
    """All of them."""
    model = f"hidden {work.hidden_size}, {work.layers} layers, float32"
    return [
        Curve(
            "heads",
            f"a reward model's step on {PAIRS} pairs of {PAIR_TOKENS} tokens, every head judging every pair, against "
            f"a step of each of as many of TRL's trainers with one head; Llama, {model}, all weights trained",
            work.heads,
            partial(heads, work),
        ),
        Curve(
            "completions of a prompt",
            f"a reward model's step on one prompt of {work.prompt_tokens} tokens and completions of "
            f"{work.completion_tokens}, the prompt shared or not; Qwen 3, {model}, all weights trained",
            work.completions,
            partial(completions, work),
        ),
        Curve(
            "vocabulary",
            f"NLL and KL of {work.positions} positions of width {HEAD_WIDTH}, forward and backward, float32",
            work.vocabularies,
            partial(vocabulary, work),
            Simulated(
                f"{work.simulated_positions:,} positions of width {HEAD_WIDTH}, float32, tiles as on a GPU",
                {name: partial(_simulated_head, work, name) for name in HEADS},
            ),
        ),
        Curve(
            "population",
            f"one generation, {POPULATION_PROMPTS} prompts x {POPULATION_TOKENS} new tokens for each member, by the "
            f"population and by a PEFT model that becomes each member in turn; Llama, hidden {work.hidden_size}, "
            f"{POPULATION_LAYERS} layers, float32, LoRA 4",
            work.populations,
            partial(population, work),
            Simulated(
                f"{_planned_title(work)}, LoRA 16, 2 prompts of 128 tokens, 128 new, the whole population at once",
                {"population": lambda size: _planned(work, "es", 128, population_size=size, batch_size=2)},
            ),
        ),
        Curve(
            "tokens of a row, KL barrier",
            f"a step on one row, gate open; Gemma 3, full attention, {model}, V = 8,192, LoRA 8, checkpointing",
            work.sequences,
            partial(barrier, work),
            Simulated(
                f"{_planned_title(work)}, LoRA 16, checkpointing, one row",
                {
                    "barrier mean open": lambda size: _planned(work, "barrier", size // 2),
                    "SFTTrainer": lambda size: _planned(work, "sft", size // 2),
                },
            ),
        ),
        Curve(
            "tokens of a row, shared prompt of a pair",
            f"a DPO step on one pair, completions of {work.completion_tokens // 2} tokens and the rest the prompt; "
            f"Qwen 3, {model}, V = 512, LoRA 8, checkpointing",
            work.sequences,
            partial(pair, work),
        ),
    ]


def heads(work: Work, size: int) -> dict[str, Point]:
    dataset = _judged_by(attribute_pairs(2 * PAIRS, PAIR_TOKENS), size)
    config = Population(2, 1, work.hidden_size, work.layers).new_model().config
    settings: dict[str, Any] = {"config": config, "batch_size": PAIRS}
    return of_trainers(
        {
            "alignkit": lambda: new_reward_trainer(dataset, heads=[f"head_{k}" for k in range(size)], **settings),
            "TRL, one run per head": lambda: new_reward_trainer(pairs_of_head(dataset, "head_0"), **settings),
        },
        work.turns,
        steps={"TRL, one run per head": size},
    )


def _judged_by(dataset: Any, n_heads: int) -> Any:
    margins = [{f"head_{k}": 1.0 for k in range(n_heads)}] * len(dataset)
    return dataset.remove_columns("head_margins").add_column("head_margins", margins)


def completions(work: Work, size: int) -> dict[str, Point]:
    dataset = rated_lists(1, work.prompt_tokens, work.completion_tokens, size)
    trainer = partial(new_reward_trainer, dataset, config=work.qwen().config(), batch_size=1, heads=["head_0"])
    sides = {"shared": True, "not shared": False}
    return of_trainers(
        {name: partial(trainer, share_prefix=share_prefix) for name, share_prefix in sides.items()},
        work.turns,
        have_same_loss=True,
    )


def vocabulary(work: Work, size: int) -> dict[str, Point]:
    return of_functions({name: partial(_head_step, name, work.positions, size) for name in HEADS}, work.turns)


def _head_step(name: str, positions: int, vocabulary_size: int) -> Callable[[], torch.Tensor]:
    """A function that gives the gradient of the hidden states, and all that it needs."""
    torch.manual_seed(0)
    hidden = torch.randn(positions, HEAD_WIDTH).requires_grad_()
    ref_hidden, weight = torch.randn(positions, HEAD_WIDTH), torch.randn(vocabulary_size, HEAD_WIDTH)
    labels = torch.zeros(positions, dtype=torch.long)

    def step() -> torch.Tensor:
        hidden.grad = None
        found = HEADS[name](hidden, ref_hidden, weight, None, labels)
        (found.nll.sum() + found.kl.sum()).backward()
        return hidden.grad

    return step


def _simulated_head(work: Work, name: str, size: int) -> int:
    return simulated_bytes(lambda: _head_step(name, work.simulated_positions, size)())


def population(work: Work, size: int) -> dict[str, Point]:
    shape = Population(size, POPULATION_PROMPTS, work.hidden_size, POPULATION_LAYERS, new_tokens=POPULATION_TOKENS)
    in_turn = "one member after the other"

    def two_members() -> Callable[[], torch.Tensor]:
        sides = Sides(shape)  # which holds all members
        sides.shape = replace(shape, members=2)
        return sides.loop()

    return of_functions(
        {"population": lambda: Sides(shape).population, in_turn: lambda: Sides(shape).loop()},
        work.turns,
        same_peak={in_turn: two_members},
    )


def barrier(work: Work, size: int) -> dict[str, Point]:
    shape = work.gemma(size)

    def trainer(side: Side) -> Any:
        return new_barrier_trainer(shape, side, random_gemma(shape))

    sides = (Side("barrier", is_open=True), Side("sft"))
    return of_trainers({side.name: partial(trainer, side) for side in sides}, work.turns)


def pair(work: Work, size: int) -> dict[str, Point]:
    shape, completion = work.qwen(), work.completion_tokens // 2
    rows = Lengths("pair", (size - completion,) * 2, (completion,) * 2, pairs=1).rows()

    def trainer(side: Any) -> Any:
        return new_dpo_trainer(side, random_model(shape), rows, pairs=1, max_length=2 * size)

    sides = ("alignkit", "TRL")
    return of_trainers({side: partial(trainer, side) for side in sides}, work.turns, have_same_loss=True)


def _planned(work: Work, method: Any, half: int, **settings: Any) -> int:
    settings = {"lora_rank": 16, "prompt_tokens": half, "completion_tokens": half} | settings
    return planned_bytes(work, PlanRequest(method, **settings))


def _planned_title(work: Work) -> str:
    return "Qwen3-1.7B's shape, bfloat16" if work.published else "a toy, bfloat16"
