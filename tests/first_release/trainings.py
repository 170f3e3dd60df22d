"""The trainings whose files are kept, on a model and a tokenizer that are kept as well.

Paths are relative to the folder of the files, so that no machine's own is in them. Plain SGD: Adam makes steps of full
size of the rounding of gradients near zero, and the files are compared on other machines.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit import (
    ESLoRAConfig,
    ESLoRATrainer,
    KLBarrierConfig,
    KLBarrierTrainer,
    MultiHeadRewardConfig,
    MultiHeadRewardTrainer,
    ScheduledDPOConfig,
    ScheduledDPOTrainer,
)
from alignkit.reward_model import load_reward_model

BASE = "base"
HEADS = ["tidy", "short"]
TEXTS = ["the ledger of a small shop", "a fox & a crow: 12 lines", "Zürich, 3 o'clock"]
STEPS, SAVED_STEP = 4, 2

COMMON: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "max_steps": STEPS,
    "save_steps": SAVED_STEP,
    "logging_steps": 1,
    "optim": "sgd",
    "learning_rate": 0.5,
    "model_init_kwargs": {"dtype": "float32"},
}
WITH_GRADIENTS: dict[str, Any] = {"bf16": False, "per_device_train_batch_size": 2, "gradient_checkpointing": False}


def make_trainer(method: str, output: Path | str, *, full: bool = False) -> Any:
    """A trainer of the method, of a LoRA unless `full`; the working directory is the folder of the files."""
    lora = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    given: dict[str, Any] = {"processing_class": AutoTokenizer.from_pretrained(BASE)}
    given |= {} if full else {"peft_config": LoraConfig(**lora, task_type=TASK_TYPES.get(method, "CAUSAL_LM"))}
    torch.manual_seed(0)  # draws the adapter
    return MAKERS[method](str(output), given)


def _reward(output: str, given: dict[str, Any]) -> MultiHeadRewardTrainer:
    args = MultiHeadRewardConfig(output, head_names=HEADS, **COMMON, **WITH_GRADIENTS)
    pairs = [{"head": head, **row} for head in HEADS for row in _pairs(4)]
    return MultiHeadRewardTrainer(BASE, args, train_dataset=Dataset.from_list(pairs), **given)


def _barrier(output: str, given: dict[str, Any]) -> KLBarrierTrainer:
    args = KLBarrierConfig(output, barrier_weight=0.5, tau_nats=0.0, pressure_steps=0, **COMMON, **WITH_GRADIENTS)
    return KLBarrierTrainer(BASE, args, train_dataset=Dataset.from_dict({"text": _texts(8)}), **given)


def _es(output: str, given: dict[str, Any]) -> ESLoRATrainer:
    population = {"population_size": 4, "prompts_per_step": 2, "max_completion_length": 6, "sigma": 0.5}
    args = ESLoRAConfig(output, **{**COMMON, **population})
    rows = Dataset.from_dict({"prompt": [text[:12] for text in _texts(8)]})
    return ESLoRATrainer(BASE, mean_code, args, train_dataset=rows, **given)


def _dpo(output: str, given: dict[str, Any]) -> ScheduledDPOTrainer:
    args = ScheduledDPOConfig(output, beta=0.5, beta_schedule="linear", beta_end=0.1, **COMMON, **WITH_GRADIENTS)
    return ScheduledDPOTrainer(BASE, args=args, train_dataset=Dataset.from_list(_pairs(8)), **given)


MAKERS = {"reward": _reward, "barrier": _barrier, "es": _es, "dpo": _dpo}
TASK_TYPES = {"reward": "SEQ_CLS"}


def mean_code(completions: list[str], **columns: Any) -> list[float]:
    """A reward that differs for almost any two completions."""
    return [sum(ord(letter) % 128 for letter in text) / (128 * max(len(text), 1)) for text in completions]


def _texts(n: int) -> list[str]:
    return [f"entry {number}: {number * 37 % 101} coins paid on day {number * 7 % 30}" for number in range(n)]


def _pairs(n: int) -> list[dict[str, str]]:
    return [{"prompt": text[:10], "chosen": text[10:], "rejected": text[:9:-1]} for text in _texts(n)]


@torch.no_grad()
def values_of(method: str, folder: str) -> Tensor:
    """What a saved model says of `TEXTS`: scores `(3, K)` of a reward model, else log-probabilities `(3,)`, nats."""
    if method == "reward":
        return load_reward_model(folder).score(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE, dtype="float32"), folder)
    return torch.stack([_log_prob(model, tokenizer(text, return_tensors="pt").input_ids) for text in TEXTS])


def _log_prob(model: Any, ids: Tensor) -> Tensor:
    log_probs = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    return log_probs.gather(-1, ids[:, 1:, None]).sum()
