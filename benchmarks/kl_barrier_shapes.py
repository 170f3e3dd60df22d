"""What the KL barrier's benchmark runs: shapes of models and batches, sides, and the products each side cannot avoid.

Two units count floating-point operations, 2 for each multiplication and addition of a matrix product:

    b   one forward of the backbone without adapters: its linear layers and its attention, every key for every query
    u   one projection of the labelled positions on the vocabulary, 2 N H V

A step of LoRA with gradient checkpointing is forward, forward again and backward (no gradient of a frozen weight), of
the backbone and of the head alike: 3 b + 3 u. A reference adds a forward b. Where a projection needs a backward, its
logits are made again, because they were not kept. LoRA's own products, the same on all sides, are left out.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import Gemma3TextConfig

from alignkit.kl_barrier import Aggregate

LORA_RANK = 8


@dataclass(frozen=True)
class Shape:
    """A model and a batch.

    Attributes:
        name (`str`): of the body.
        hidden_size, layers, intermediate_size, heads, kv_heads, head_dim, vocab_size (`int`): of a Gemma 3.
        rows, tokens (`int`): of a batch. Every token but a row's first is a labelled position.
        dtype (`torch.dtype`): of the weights. bfloat16 also means mixed precision.
        is_headline (`bool`): whether the targets against other ways of computing the same are set for this shape.
    """

    name: str
    hidden_size: int
    layers: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    rows: int
    tokens: int
    dtype: torch.dtype = torch.float32
    is_headline: bool = False

    @property
    def title(self) -> str:
        return f"{self.name}, V = {self.vocab_size:,}"

    @property
    def positions(self) -> int:
        """N, labelled positions of a step."""
        return self.rows * (self.tokens - 1)

    def setting(self) -> dict[str, Any]:
        """What a claim depends on."""
        return {
            "model": f"{self.title}: Gemma 3, hidden {self.hidden_size}, {self.layers} layers, random weights",
            "dtype": str(self.dtype).removeprefix("torch."),
            "rows": self.rows,
            "tokens_per_row": self.tokens,
            "labelled_positions": self.positions,
            "lora_rank": LORA_RANK,
            "gradient_checkpointing": True,
            "b_flops": self.backbone_flops,
            "u_flops": self.projection_flops,
        }

    def config(self) -> Gemma3TextConfig:
        return Gemma3TextConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            intermediate_size=self.intermediate_size,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            sliding_window=1024,
            tie_word_embeddings=True,
        )

    @property
    def backbone_flops(self) -> int:
        """b"""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        linear = 2 * self.hidden_size * (queries + 2 * keys + queries + 3 * self.intermediate_size)
        attention = 2 * 2 * self.tokens * queries
        return self.layers * (linear + attention) * self.rows * self.tokens

    @property
    def projection_flops(self) -> int:
        """u"""
        return 2 * self.positions * self.hidden_size * self.vocab_size


@dataclass(frozen=True)
class Side:
    """One way to do a step.

    Attributes:
        trainer (`str`): TRL's own; alignkit's; TRL's with two kernels of TRL's; TRL's with whole logits.
        is_open (`bool`): whether every sequence's divergence lies above tau (0), or far below it.
        aggregate (`str`): D of a sequence.
        is_cached (`bool`): whether the reference's hidden states are read from files.
    """

    trainer: Literal["sft", "barrier", "composition", "logits"]
    is_open: bool = False
    aggregate: Aggregate = "mean"
    is_cached: bool = False

    @property
    def name(self) -> str:
        if self.trainer == "sft":
            return "SFTTrainer"
        return f"{self.trainer} {self.aggregate} {'open' if self.is_open else 'closed'}{' cached' * self.is_cached}"

    @property
    def tau_nats(self) -> float:
        return 0.0 if self.is_open else 1e4

    def flops(self, shape: Shape) -> float:
        """Of one step."""
        b, u = shape.backbone_flops, shape.projection_flops
        if self.trainer == "sft":
            return 3 * b + 3 * u
        if self.trainer == "composition":  # a kernel for the NLL, 3 u; and one for the KL, 2 u and 2 u + u, always
            return 4 * b + 8 * u
        if self.trainer == "logits":  # kept, so that nothing is projected again
            return 4 * b + 3 * u
        return (3 if self.is_cached else 4) * b + (4 + self._share_of_rows(shape.tokens - 1)) * u

    def _share_of_rows(self, positions: int) -> float:
        """Of a sequence's positions, those whose divergence has a gradient and needs the reference's logits again."""
        if not self.is_open:
            return 0.0
        rows = {
            "mean": positions,
            "rmse": positions,
            "p95": 1 if 95 * (positions - 1) % 100 == 0 else 2,
            "max": 1,
            "cvar95": math.ceil(positions / 20),
        }
        return rows[self.aggregate] / positions


def gemma_270m(vocab_size: int, **batch: Any) -> Shape:
    return Shape("Gemma-3-270m", 640, 18, 2048, 4, 1, 256, vocab_size, **batch)


def gemma_4b(vocab_size: int, **batch: Any) -> Shape:
    return Shape("Gemma-3-4b", 2560, 34, 10_240, 8, 4, 256, vocab_size, **batch)


@dataclass(frozen=True)
class Workload:
    """What is run.

    Attributes:
        shapes (`tuple[Shape, ...]`): what is measured one after the other.
        turns (`int`): timed steps of each side.
        warm_up (`int`): steps before those.
        tolerance (`float`): relative, of the losses and gradients of two sides that must be equal.
    """

    shapes: tuple[Shape, ...]
    turns: int
    warm_up: int
    tolerance: float


VOCABULARIES = (32_768, 151_936, 262_144)


def _bodies(vocabularies: tuple[int, ...], **batch: Any) -> tuple[Shape, ...]:
    return tuple(gemma_270m(size, is_headline=size == max(vocabularies), **batch) for size in vocabularies)


CPU = Workload(_bodies(VOCABULARIES, rows=2, tokens=65), turns=5, warm_up=1, tolerance=1e-4)
# 8192 positions; a row fits into the sliding window, so that every layer's attention is what `b` counts.
_GPU_BATCH: dict[str, Any] = {"rows": 16, "tokens": 513, "dtype": torch.bfloat16}
# bfloat16 rounds at 2^-9; the peers add up what they rounded in another order.
GPU = Workload(
    (*_bodies(VOCABULARIES, **_GPU_BATCH), gemma_4b(max(VOCABULARIES), **_GPU_BATCH)),
    turns=10,
    warm_up=3,
    tolerance=2e-2,
)
_TOY = Shape("toy", 64, 2, 128, 2, 1, 32, 2048, rows=2, tokens=17, is_headline=True)
QUICK = Workload((_TOY,), turns=1, warm_up=1, tolerance=1e-4)
