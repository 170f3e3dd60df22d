"""Pairs and trainers for the tests of scheduled DPO."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from alignkit import ScheduledDPOConfig, ScheduledDPOTrainer
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
    "learning_rate": 1e-3,
    "max_grad_norm": 0.0,
    "beta": 0.1,
}
OURS = {"kl_steps": 0}


def pairs(n: int, seed: int = 0) -> Dataset:
    """Rows of unequal length: n prompts of 20 to 38 tokens, completions of 4 to 23."""
    texts, others = generate("ledger", n, seed=seed), generate("fable", n, seed=seed)
    rows = []
    for number, (text, other) in enumerate(zip(texts, others, strict=True)):
        prompt, chosen, rejected = 20 + 7 * number % 19, 4 + 5 * number % 13, 4 + 11 * number % 20
        rows.append({"prompt": text[:prompt], "chosen": text[prompt:][:chosen], "rejected": other[:rejected]})
    return Dataset.from_list(rows)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def rows() -> Dataset:
    return pairs(16)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., ScheduledDPOConfig]:
    def make(**settings: Any) -> ScheduledDPOConfig:
        return ScheduledDPOConfig(str(tmp_path / "out"), **{**QUIET, **OURS, **settings})

    return make


@pytest.fixture
def make_trainer(make_config, rows, tokenizer) -> Callable[..., ScheduledDPOTrainer]:
    """A trainer of a tiny untrained model; keywords go to the config unless the trainer takes them."""
    own = {"model", "train_dataset", "eval_dataset", "ref_model", "peft_config", "processing_class", "callbacks"}

    def make(**settings: Any) -> ScheduledDPOTrainer:
        arguments = {name: settings.pop(name) for name in (own | {"data_collator"}) & set(settings)}
        arguments.setdefault("model", lively_lm(1))
        arguments.setdefault("train_dataset", rows)
        arguments.setdefault("processing_class", tokenizer)
        return ScheduledDPOTrainer(args=make_config(**settings), **arguments)

    return make
