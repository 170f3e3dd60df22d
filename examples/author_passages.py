"""Data of two examples: passages of seven novelists against each other, simple stories and encyclopaedia text."""

import json
import os
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value

from alignkit.reward_model import RewardModel

# The novel of each author to train on, and the one to evaluate on.
NOVELS = {
    "broughton": ("Broughton_1883", "Broughton_1890"),
    "eliot": ("Eliot_1861", "Eliot_1866"),
    "nesbit": ("Nesbit_1889", "Nesbit_1902"),
    "ouida": ("Ouida_1874", "Ouida_1883"),
    "trollope": ("Trollope_1855", "Trollope_1874"),
    "ward": ("Ward_1895", "Ward_1909"),
    "wells": ("Wells_1895", "Wells_1909"),
}
OTHER_TEXTS = {"semi_firm": "tinystories_1000", "furthest": "wikitext_1000"}
TIERS = ("soft", *OTHER_TEXTS)


def data_folder() -> Path:
    if not os.environ.get("ALIGNKIT_DATA"):
        raise SystemExit("set ALIGNKIT_DATA to the folder with eltec_authors, tinystories_1000 and models/stories260K")
    return Path(os.environ["ALIGNKIT_DATA"])


def passages(text: str, n: int, words: int) -> list[str]:
    """`n` evenly spaced passages of `words` words that do not overlap."""
    split = text.split()
    if n * words > len(split):
        raise ValueError(f"{n} passages of {words} words need {n * words} words, the text has {len(split)}: lower one")
    return [" ".join(split[start : start + words]) for start in np.arange(n) * (len(split) // n)]


def membership_data(folder: Path, book: int, n: int, words: int) -> tuple[Dataset, Dataset]:
    """Positives (`n` per author) and negatives (`n` per author and other tier), to train (`book` 0) or evaluate (1).

    Book 0 goes with the first half of the other texts, book 1 with the second half: both files run through their
    sources in order, so that pieces of one article do not land on both sides.
    """
    positives, negatives = [], []
    for author, novels in NOVELS.items():
        others = [name for name in NOVELS if name != author]
        for text in passages((folder / "eltec_authors" / f"{novels[book]}.txt").read_text("utf-8"), n, words):
            positives.append({"text": text, "head": author})
            negatives.append({"text": text, "tier": "soft", "heads": others})
    for tier, name in OTHER_TEXTS.items():
        texts = json.loads((folder / "tinystories_1000" / f"{name}.json").read_text("utf-8"))
        half = len(texts) // 2
        for text in texts[book * half : book * half + min(n, half)]:
            negatives.append({"text": " ".join(text.split()[:words]), "tier": tier, "heads": None})
    columns = Features({"text": Value("string"), "tier": Value("string"), "heads": List(Value("string"))})
    return Dataset.from_list(positives), Dataset.from_list(negatives, features=columns)


def scores_by_tier(model: RewardModel, positives: Dataset, negatives: Dataset) -> dict[str, dict[str, tuple]]:
    """Per head and tier, the head's scores of its own author's passages and of the negatives it may meet."""
    own, other = model.score(positives["text"]).numpy(), model.score(negatives["text"]).numpy()
    authors, tiers = np.array(positives["head"]), np.array(negatives["tier"])
    scores: dict[str, dict[str, tuple]] = {}
    for k, head in enumerate(model.head_names):
        usable = np.array([heads is None or head in heads for heads in negatives["heads"]])
        scores[head] = {tier: (own[authors == head, k], other[usable & (tiers == tier), k]) for tier in TIERS}
    return scores
