"""A task that takes no time: toy preference pairs, and how much likelier the model finds the chosen text."""

import os
from typing import Any

import torch
from datasets import Dataset

from alignkit.experiments.task import ItemScores
from alignkit.tasks.toy import preference_pairs


class TinyTask:
    def train_dataset(self, tokenizer: Any) -> Dataset:
        return preference_pairs(8).select_columns(["prompt", "chosen", "rejected"])

    def eval_dataset(self, tokenizer: Any) -> Dataset:
        return preference_pairs(12).select_columns(["prompt", "chosen", "rejected"]).select(range(8, 12))

    def evaluate(self, model: Any, tokenizer: Any, *, decoding: dict[str, Any], seed: int) -> list[ItemScores]:
        margins, lengths = {}, {}
        for number, row in enumerate(self.eval_dataset(tokenizer)):
            chosen, rejected = (_nll(model, tokenizer, row["prompt"] + row[side]) for side in ("chosen", "rejected"))
            margins[f"pair{number}"] = rejected - chosen
            generator = torch.Generator().manual_seed(seed)
            lengths[f"pair{number}"] = float(torch.rand((), generator=generator)) if decoding["do_sample"] else 0.5
        return [
            ItemScores("held_out", "margin", "task", True, margins, unit="nats"),
            ItemScores("other", "draws", "general", True, lengths),
        ]


def _nll(model: Any, tokenizer: Any, text: str) -> float:
    ids = tokenizer(text, return_tensors="pt").input_ids
    return model(input_ids=ids, labels=ids).loss.item()


class CrashingTask(TinyTask):
    """Crashes on the items of one seed, as if the GPU had been lost."""

    def evaluate(self, model: Any, tokenizer: Any, *, decoding: dict[str, Any], seed: int) -> list[ItemScores]:
        if seed == int(os.environ.get("CRASH_ON_SEED", "-1")):
            raise RuntimeError(f"the lights went out at seed {seed}")
        return super().evaluate(model, tokenizer, decoding=decoding, seed=seed)


task = TinyTask()
crashing = CrashingTask()
