"""Sizes, texts, models and trainers of the reward model benchmark."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from memory import MicroBatchPeak
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    PretrainedConfig,
    PrinterCallback,
    TrainerCallback,
)
from trl import RewardConfig, RewardTrainer

from alignkit import MultiHeadRewardConfig, MultiHeadRewardTrainer
from alignkit.tasks.toy import byte_tokenizer

HEADS = [f"head_{index}" for index in range(7)]
TIERS = ("soft", "semi_firm", "furthest")
LETTERS = "abcdefghijklmnopqrstuvwxyz "


@dataclass(frozen=True)
class Workload:
    """Sizes of what is measured. The texts of a step have the same length, so that no side pads.

    Attributes:
        hidden_size, layers (`int`): of a Llama with 64 numbers per attention head and a vocabulary of 259 bytes. What
            a step does beside the backbone takes a few milliseconds with both trainers; a step lasts hundreds.
        pairs, pair_tokens (`int`): pairs of a step with 7 heads, and the length of each of their texts.
        positives, negatives, tier_tokens (`int`): likewise for positives against negatives in three tiers.
        trl_micro_batches (`tuple[int, int]`): pairs of a micro-batch of TRL's when it makes the tiers' comparisons.
        cache_pairs (`int`): pairs of a batch that the score cache encodes in eight parts.
        runs (`int`): paired runs; of what is short, several times as many.
        steps_per_run (`int`): optimiser steps of a run when whole runs are compared.
    """

    hidden_size: int
    layers: int
    pairs: int
    pair_tokens: int
    positives: int
    negatives: int
    tier_tokens: int
    trl_micro_batches: tuple[int, int]
    cache_pairs: int
    runs: int
    steps_per_run: int

    def config(self) -> PretrainedConfig:
        return LlamaConfig(
            hidden_size=self.hidden_size,
            intermediate_size=4 * self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.hidden_size // 64),
            vocab_size=259,
        )

    def setting(self, **more: Any) -> dict[str, Any]:
        """What a claim depends on: the model and what is given."""
        return {"model": f"Llama, hidden {self.hidden_size}, {self.layers} layers, float32 weights", **more}


FULL = Workload(
    hidden_size=256,
    layers=4,
    pairs=4,
    pair_tokens=128,
    positives=16,
    negatives=48,
    tier_tokens=32,
    trl_micro_batches=(8, 32),
    cache_pairs=16,
    runs=5,
    steps_per_run=4,
)
QUICK = Workload(
    hidden_size=32,
    layers=2,
    pairs=4,
    pair_tokens=16,
    positives=4,
    negatives=12,
    tier_tokens=16,
    trl_micro_batches=(8, 16),
    cache_pairs=8,
    runs=2,
    steps_per_run=2,
)


# ---- Texts ----


def _text(generator: random.Random, tokens: int) -> str:
    """A random text of so many tokens, `<bos>` and `<eos>` among them."""
    return "".join(generator.choices(LETTERS, k=tokens - 2))


def attribute_pairs(n: int, tokens: int) -> Dataset:
    """Pairs about which each of the 7 heads has an opinion: 7 comparisons, two texts to encode."""
    generator = random.Random(0)

    def pair() -> dict[str, Any]:
        margins = {head: generator.choice([-1.0, 1.0]) for head in HEADS}
        return {"chosen": _text(generator, tokens), "rejected": _text(generator, tokens), "head_margins": margins}

    return Dataset.from_list([pair() for _ in range(n)])


def pairs_of_head(dataset: Dataset, head: str) -> Dataset:
    """The same pairs as one head sees them, for TRL."""
    names = [("chosen", "rejected") if row["head_margins"][head] > 0 else ("rejected", "chosen") for row in dataset]
    return Dataset.from_list(
        [{"chosen": row[better], "rejected": row[worse]} for row, (better, worse) in zip(dataset, names, strict=True)]
    )


def tiered_texts(positives: int, negatives: int, tokens: int) -> tuple[Dataset, Dataset]:
    """Texts of one head, and negatives of three tiers, equally many of each."""
    generator = random.Random(0)
    return (
        Dataset.from_list([{"text": _text(generator, tokens), "head": HEADS[0]} for _ in range(positives)]),
        Dataset.from_list(
            [{"text": _text(generator, tokens), "tier": TIERS[index % len(TIERS)]} for index in range(negatives)]
        ),
    )


def pairs_of_tiers(positives: Dataset, negatives: Dataset) -> Dataset:
    """Every positive with every negative, for TRL."""
    return Dataset.from_list(
        [{"chosen": chosen, "rejected": rejected} for chosen in positives["text"] for rejected in negatives["text"]]
    )


# ---- Trainers ----


def new_trainer(
    dataset: Dataset,
    *,
    config: PretrainedConfig,
    batch_size: int,
    heads: list[str] | None = None,
    negatives: Dataset | None = None,
    gradient_accumulation_steps: int = 1,
    callbacks: list[TrainerCallback] | None = None,
    bf16: bool = False,
    **settings: Any,
) -> RewardTrainer:
    """alignkit's trainer with these heads, or TRL's when there are none; all else, also the weights, alike."""
    cuda = torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "output_dir": "trainer",
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "max_length": None,
        "max_grad_norm": 0.0,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "bf16": bf16,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    tokenizer = byte_tokenizer()
    config = type(config).from_dict(
        config.to_dict() | {"num_labels": len(heads or HEADS[:1]), "pad_token_id": tokenizer.pad_token_id}
    )
    torch.manual_seed(0)
    shared: dict[str, Any] = {
        "model": AutoModelForSequenceClassification.from_config(config),
        "train_dataset": dataset,
        "processing_class": tokenizer,
        "callbacks": callbacks,
    }
    if heads is None:
        trainer = RewardTrainer(args=RewardConfig(**arguments, **settings), **shared)
    else:
        # Shared prompts have a benchmark of their own, dpo.py.
        args = MultiHeadRewardConfig(head_names=heads, **{"share_prefix": False, **arguments, **settings})
        trainer = MultiHeadRewardTrainer(args=args, negatives=negatives, **shared)
    trainer.remove_callback(PrinterCallback)
    return trainer


def micro_batch_peak(dataset: Dataset, **settings: Any) -> int:
    """Peak of tensor bytes of a micro-batch above weights, gradients and optimiser state; see `MicroBatchPeak`."""
    peak = MicroBatchPeak()
    trainer = new_trainer(dataset, gradient_accumulation_steps=2, callbacks=[peak], **settings)
    trainer.args.max_steps = 2
    trainer.train()
    return peak.peak_bytes
