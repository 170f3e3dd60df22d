"""One tiny training for each of our trainers and, with the same data and model, for its parent."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer, TrainingArguments
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

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
from alignkit.tasks.toy import byte_tokenizer, generate, preference_pairs, tiny_causal_lm, tiny_sequence_classifier

PARENT_OF: dict[type, type] = {
    MultiHeadRewardTrainer: RewardTrainer,
    KLBarrierTrainer: SFTTrainer,
    ScheduledDPOTrainer: DPOTrainer,
    ESLoRATrainer: Trainer,
}
CONFIG_OF: dict[type, type] = {
    MultiHeadRewardTrainer: MultiHeadRewardConfig,
    KLBarrierTrainer: KLBarrierConfig,
    ScheduledDPOTrainer: ScheduledDPOConfig,
    ESLoRATrainer: ESLoRAConfig,
    RewardTrainer: RewardConfig,
    SFTTrainer: SFTConfig,
    DPOTrainer: DPOConfig,
    Trainer: TrainingArguments,
}
# The deprecated names of checkpointing are those that all allowed versions of transformers have.
QUIET = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
WITH_GRADIENTS = {"bf16": False, "gradient_checkpointing": False}
POPULATION = {"population_size": 4, "prompts_per_step": 2, "max_completion_length": 4, "sigma": 0.1}


def make(trainer_class: type, folder: Path, **settings: Any) -> Any:
    """A trainer with eight rows to train on and three to evaluate; `trainer_class` may be derived from a known one."""
    config: type = next(CONFIG_OF[base] for base in trainer_class.__mro__ if base in CONFIG_OF)
    arguments: dict[str, Any] = {"processing_class": byte_tokenizer()}
    if issubclass(trainer_class, ESLoRATrainer):
        settings = {**POPULATION, **settings}
        arguments |= {"reward_funcs": count_of_a, "peft_config": LoraConfig(r=2, target_modules=["q_proj"])}
    elif config is not TrainingArguments:
        settings = {**WITH_GRADIENTS, **settings}
    if issubclass(trainer_class, MultiHeadRewardTrainer):
        settings["head_names"] = ["tidy", "short"]
    if issubclass(trainer_class, RewardTrainer):
        heads = settings.get("head_names", ["reward"])
        arguments["model"] = tiny_sequence_classifier(heads, hidden_size=16, layers=1)
    else:
        arguments["model"] = tiny_causal_lm(1, hidden_size=16, layers=1)
    if trainer_class is DPOTrainer:
        arguments["ref_model"] = tiny_causal_lm(1, hidden_size=16, layers=1)
    args = config(str(folder), **{**QUIET, **settings})
    return trainer_class(
        args=args, train_dataset=rows(trainer_class, 8), eval_dataset=rows(trainer_class, 3), **arguments
    )


def rows(trainer_class: type, n: int) -> Dataset:
    """Data of the kind that the trainer takes."""
    if issubclass(trainer_class, RewardTrainer):
        return preference_pairs(n)
    texts = [text[:30] for text in generate("ledger", n, seed=n)]
    if issubclass(trainer_class, DPOTrainer):
        return Dataset.from_list([{"prompt": text[:10], "chosen": text[10:], "rejected": text[12:]} for text in texts])
    return Dataset.from_dict({"prompt" if issubclass(trainer_class, ESLoRATrainer) else "text": texts})


def count_of_a(completions: list[str], **columns: Any) -> list[float]:
    return [float(text.count("a")) for text in completions]
