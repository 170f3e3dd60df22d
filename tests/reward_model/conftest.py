"""Tiny models, tokenizers and trainers for the tests of the reward model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from alignkit import MultiHeadRewardConfig, MultiHeadRewardTrainer
from alignkit.tasks.toy import byte_tokenizer, preference_pairs, tiny_sequence_classifier

QUIET = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "max_length": 512,
    "learning_rate": 1e-3,
}


@pytest.fixture
def quiet_settings() -> dict[str, Any]:
    """Settings of every trainer here: CPU, float32, nothing saved, each step logged."""
    return dict(QUIET)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def two_head_pairs() -> Dataset:
    return preference_pairs(16, seed=3)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., MultiHeadRewardConfig]:
    def make(head_names: list[str], **settings: Any) -> MultiHeadRewardConfig:
        return MultiHeadRewardConfig(str(tmp_path / "out"), head_names=head_names, **{**QUIET, **settings})

    return make


@pytest.fixture
def make_trainer(make_config, tokenizer) -> Callable[..., MultiHeadRewardTrainer]:
    """A trainer of a tiny untrained model; keywords go to the config unless the trainer takes them."""
    own = {
        "model",
        "quantization_config",
        "eval_dataset",
        "negatives",
        "eval_negatives",
        "peft_config",
        "processing_class",
        "callbacks",
    }

    def make(head_names: list[str], train_dataset: Any, **settings: Any) -> MultiHeadRewardTrainer:
        arguments = {name: settings.pop(name) for name in own & set(settings)}
        arguments.setdefault("model", tiny_sequence_classifier(head_names, seed=1))
        arguments.setdefault("processing_class", tokenizer)
        return MultiHeadRewardTrainer(
            args=make_config(head_names, **settings), train_dataset=train_dataset, **arguments
        )

    return make
