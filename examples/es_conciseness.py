"""Conciseness: two training questions, eight test questions, and a reward that sees nothing but a length.

    ALIGNKIT_DATA=/path/to/data python examples/es_conciseness.py
    python examples/es_conciseness.py --model Qwen/Qwen2.5-0.5B-Instruct --chat

Seen on 2026-11-21 with 2 CPU cores, no GPU, about a minute of CPU time (30 steps, one thread):

    test questions          before     after
    ConcisenessReward      -161.38    -95.50
    characters              164.88     99.00
    is_correct                0.00      0.00

One run. stories260K answers no question: this is a length, and nothing else. What it learned is to fill the 100 tokens
with short ones ('Anna," Anna.' again and again), not to stop.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import TrlParser

from alignkit import ESLoRAConfig, ESLoRATrainer
from alignkit.tasks.conciseness import ConcisenessReward, conciseness_splits


@dataclass
class ScriptArguments:
    model: str | None = None  # any causal language model; None is $ALIGNKIT_DATA/models/stories260K
    chat: bool = False  # put the question into the model's chat template
    worst_reward: float = -1000.0  # of an empty answer, and a bound for all others
    rank: int = 8
    threads: int = 1  # of the CPU; for a model this small one is enough


def data_folder() -> Path:
    if not os.environ.get("ALIGNKIT_DATA"):
        raise SystemExit("set ALIGNKIT_DATA to the folder with models/stories260K, or give --model")
    return Path(os.environ["ALIGNKIT_DATA"])


def characters(completions: list[Any], **columns: Any) -> list[float]:
    """Mean length of the answers. It has the weight 0: it is shown, and not learned from."""
    return [float(len(text if isinstance(text, str) else text[-1]["content"])) for text in completions]


def is_correct(completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
    """Share of answers that contain the right one as a word. It has the weight 0: the reward does not know it."""
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [
        float(bool(re.search(rf"\b{re.escape(right)}\b", text, re.IGNORECASE)))
        for text, right in zip(texts, answer, strict=True)
    ]


def as_messages(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": row["prompt"]}]}


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = TrlParser((ScriptArguments, ESLoRAConfig))
    parser.set_defaults(
        **{"output_dir": "outputs/es_conciseness", "max_steps": 30, "eval_steps": 5, "max_completion_length": 100},
        **{"population_size": 30, "prompts_per_step": 2, "reward_weights": [1.0, 0.0, 0.0], "completions_steps": 5},
        **{"save_strategy": "no", "logging_steps": 5, "report_to": "none", "use_cpu": not has_gpu},
    )
    script, args = parser.parse_args_and_config()
    torch.set_num_threads(script.threads)

    # 1. Model: a chat model answers; a model of stories only learns to stop
    model = script.model or str(data_folder() / "models" / "stories260K")

    # 2. Data
    train, test = (Dataset.from_list(rows) for rows in conciseness_splits())
    if script.chat:
        train, test = train.map(as_messages), test.map(as_messages)

    # 3. Trainer
    trainer = ESLoRATrainer(
        model,
        [ConcisenessReward(script.worst_reward), characters, is_correct],
        args=args,
        train_dataset=train,
        eval_dataset=test,
        peft_config=LoraConfig(r=script.rank, lora_alpha=2 * script.rank, target_modules="all-linear"),
    )
    before = trainer.evaluate()
    trainer.train()

    # 4. Evaluate: greedily, the centre
    after = trainer.evaluate()
    if trainer.is_world_process_zero():
        print(f"\n{'test questions':20}{'before':>10}{'after':>10}")
        for name in ("ConcisenessReward", "characters", "is_correct"):
            print(f"{name:20}{before[f'eval_rewards/{name}/mean']:10.2f}{after[f'eval_rewards/{name}/mean']:10.2f}")

    # 5. Save: the adapter, beside results.jsonl, evolution.png and time_breakdown.png
    trainer.save_model()


if __name__ == "__main__":
    main()
