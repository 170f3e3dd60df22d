"""Tiny models, rows and trainers for the tests of the KL barrier."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from alignkit import KLBarrierConfig, KLBarrierTrainer
from alignkit.tasks.toy import byte_tokenizer, generate
from tests.tiny_models import lively_lm

QUIET = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "max_length": 128,
    "learning_rate": 1e-3,
    "max_grad_norm": 0.0,
    "shuffle_dataset": False,
    "pressure_steps": 0,
}


def prompts_and_completions(n: int, seed: int = 0) -> Dataset:
    """Rows of unequal length: n prompts of 5 to 15 tokens, completions of 4 to 60."""
    texts = generate("ledger", n, seed=seed)
    cuts = [(5 + 3 * i % 11, 12 + 17 * i % 50) for i in range(n)]
    rows = [
        {"prompt": text[:prompt], "completion": text[prompt : prompt + completion]}
        for text, (prompt, completion) in zip(texts, cuts, strict=True)
    ]
    return Dataset.from_list(rows)


def masked_rows(pattern: list[bool]) -> Dataset:
    """Tokenized rows of ten tokens, half of them completion; where False, no token has a label."""
    ids = [[257, *range(65 + number, 74 + number)] for number in range(len(pattern))]
    labels = [
        [-100] * 5 + row[5:] if is_labelled else [-100] * 10 for row, is_labelled in zip(ids, pattern, strict=True)
    ]
    return Dataset.from_dict({"input_ids": ids, "labels": labels, "attention_mask": [[1] * 10 for _ in ids]})


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def rows() -> Dataset:
    return prompts_and_completions(16)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., KLBarrierConfig]:
    def make(**settings: Any) -> KLBarrierConfig:
        return KLBarrierConfig(str(tmp_path / "out"), **{**QUIET, **settings})

    return make


@pytest.fixture
def make_trainer(make_config, rows, tokenizer) -> Callable[..., KLBarrierTrainer]:
    """A trainer of a tiny untrained model; keywords go to the config unless the trainer takes them."""
    own = {"model", "train_dataset", "eval_dataset", "ref_model", "peft_config", "processing_class", "callbacks"}

    def make(**settings: Any) -> KLBarrierTrainer:
        arguments = {name: settings.pop(name) for name in own & set(settings)}
        arguments.setdefault("model", lively_lm(1))
        arguments.setdefault("train_dataset", rows)
        arguments.setdefault("processing_class", tokenizer)
        return KLBarrierTrainer(args=make_config(**settings), **arguments)

    return make
