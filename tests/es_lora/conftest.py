"""Tiny models, rows, a reward and trainers for the tests of ES-LoRA."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from alignkit import ESLoRAConfig, ESLoRATrainer
from alignkit.tasks.toy import byte_tokenizer, tiny_causal_lm

QUIET = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "max_steps": 2,
    "population_size": 6,
    "prompts_per_step": 2,
    "max_completion_length": 6,
    "sigma": 0.2,
    "sigma_mode": "weight",
    "perturb": "both",
    "temperature": 1.0,
    "learning_rate": 0.01,
}
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}


def lively_lm(seed: int = 0) -> LlamaForCausalLM:
    """An untrained model whose next-token distributions are far from uniform."""
    model = tiny_causal_lm(seed, hidden_size=32, layers=2)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)
    return model


def prompts(n: int = 5) -> Dataset:
    return Dataset.from_list([{"prompt": f"say {'a' * i}", "number": i} for i in range(n)])


def share_of_small_letters(completions: list[str], **columns: Any) -> list[float]:
    return [sum("a" <= letter <= "z" for letter in text) / max(len(text), 1) for text in completions]


def mean_code(completions: list[str], **columns: Any) -> list[float]:
    """A reward that differs for almost any two completions."""
    return [sum(ord(letter) % 128 for letter in text) / (128 * max(len(text), 1)) for text in completions]


def make_es_trainer(output: Path, **settings: Any) -> ESLoRATrainer:
    """A trainer of a tiny model; keywords go to the config unless the trainer takes them."""
    own = {"model", "reward_funcs", "train_dataset", "eval_dataset", "peft_config", "processing_class", "callbacks"}
    arguments = {name: settings.pop(name) for name in own & set(settings)}
    arguments.setdefault("model", lively_lm())
    arguments.setdefault("reward_funcs", mean_code)
    arguments.setdefault("train_dataset", prompts())
    arguments.setdefault("processing_class", byte_tokenizer())
    arguments.setdefault("peft_config", LoraConfig(**LORA))
    return ESLoRATrainer(args=ESLoRAConfig(str(output), **{**QUIET, **settings}), **arguments)


def trained(trainer: ESLoRATrainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters() if "lora_" in name}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., ESLoRATrainer]:
    def make(**settings: Any) -> ESLoRATrainer:
        return make_es_trainer(tmp_path / "out", **settings)

    return make
