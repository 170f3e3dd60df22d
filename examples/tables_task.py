"""The task of the tables experiment: pairs about generated tables, and what is measured of a model.

The tables of the pairs, of the check after each epoch and of the exam are all different, and none of those that the
start model was taught with.
"""

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.evaluation.generation import generate_completions
from alignkit.evaluation.tatqa_generation import evaluate_tatqa
from alignkit.experiments.task import ItemScores
from alignkit.tasks.tables import outside_texts, recall_facts, table_contexts
from alignkit.tasks.tatqa import tatqa_pairs

N_PAIRED, N_CHECKED, N_EXAMINED = 250, 40, 275  # tables, of four questions each
EXAM_SEED = 1_000_003  # of facts and prose


def tables(first: int, number: int) -> list[dict[str, Any]]:
    """Slices of one call, which repeats no table."""
    return table_contexts(N_PAIRED + N_CHECKED + N_EXAMINED, seed=1)[first : first + number]


class Tables:
    """Pairs from tables; exact match on held-out tables, recall of facts and the loss of prose."""

    def train_dataset(self, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        return tatqa_pairs(tables(0, N_PAIRED), tokenizer)[0]

    def eval_dataset(self, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        return tatqa_pairs(tables(N_PAIRED, N_CHECKED), tokenizer)[0]

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, decoding: dict[str, Any], seed: int
    ) -> list[ItemScores]:
        how = {"batch_size": 128, "seed": seed, **decoding}
        answered = evaluate_tatqa(model, tokenizer, tables(N_PAIRED + N_CHECKED, N_EXAMINED), **how)
        exact = {uid: score["em"] for uid, score in answered["per_question"].items()}
        return [
            ItemScores("tables", "exact_match", "task", True, exact),
            ItemScores("facts", "exact_match", "general", True, recalled(model, tokenizer, how)),
            ItemScores("prose", "nll", "general", False, prose_nll(model, tokenizer), unit="nats"),
        ]


def recalled(model: Any, tokenizer: Any, how: Mapping[str, Any]) -> dict[str, float]:
    """Whether each fact of a list just read is repeated when it is asked for."""
    asked = {
        f"{number}/{name}": (f"{listed['facts']}\n\nQuestion: {name}\nAnswer:", answer)
        for number, listed in enumerate(recall_facts(100, seed=EXAM_SEED))
        for name, answer in listed["questions"][:3]
    }
    texts = generate_completions(model, tokenizer, [prompt for prompt, _ in asked.values()], **how)
    found = [
        text.strip().partition("\n")[0] == answer for text, (_, answer) in zip(texts, asked.values(), strict=True)
    ]
    return dict(zip(asked, map(float, found), strict=True))


@torch.no_grad()
def prose_nll(model: Any, tokenizer: Any) -> dict[str, float]:
    """Mean NLL per token, in nats, of texts that have nothing to do with tables."""
    texts = outside_texts(200, seed=EXAM_SEED)
    scores = {}
    for start in range(0, len(texts), 50):
        batch = tokenizer(texts[start : start + 50], return_tensors="pt", padding=True).to(model.device)
        labels = batch["input_ids"][:, 1:]
        mask = batch["attention_mask"][:, 1:]
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none") * mask
        for number, value in enumerate((nll.sum(1) / mask.sum(1)).tolist(), start):
            scores[f"prose/{number}"] = value
    return scores


task = Tables()
