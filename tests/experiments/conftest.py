"""A tiny model on disk and a specification that names it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.tasks.toy import byte_tokenizer, tiny_causal_lm

TRAINING = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "max_length": 96,
    "kl_steps": 0,
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_causal_lm(hidden_size=32, layers=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def spec(tmp_path: Path, model: str) -> dict[str, Any]:
    """The content of a specification: one LoRA run, one baseline."""
    return {
        "name": "tiny",
        "output_dir": str(tmp_path / "out"),
        "method": "dpo",
        "task": "tests.experiments.tiny_task:task",
        "model": model,
        "training": dict(TRAINING),
        "lora": {"r": 2, "target_modules": ["q_proj"]},
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def to_file(content: dict[str, Any], name: str = "spec.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content))
        return path

    return to_file
