"""Openings of stories, and a reward for how one goes on: cheerful words, short sentences, nothing said twice."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset

CHEERFUL = {
    *("happy", "glad", "fun", "funny", "smile", "smiled", "smiling", "laugh", "laughed", "laughing", "love", "loved"),
    *("loves", "play", "played", "playing", "friend", "friends", "hug", "hugged", "nice", "kind", "good", "great"),
    *("best", "sun", "sunny", "sing", "sang", "dance", "danced", "joy", "excited", "proud", "beautiful", "pretty"),
    *("wonderful", "yay", "thank", "together", "share", "shared"),
}
ENOUGH_WORDS = 5  # different cheerful words: more of them gain nothing
SENTENCE_WORDS = 5.0


def openings(folder: Path, *sizes: int) -> list[Dataset]:
    """First sentences of different stories, in sets of these sizes; none is in two sets."""
    stories = json.loads((folder / "tinystories_1000" / "tinystories_1000.json").read_text("utf-8"))
    sentences = [re.split(r"(?<=[.!?])\s", " ".join(story.split()), maxsplit=1)[0] for story in stories]
    texts = [text for text in dict.fromkeys(sentences) if 5 <= len(text.split()) <= 15]
    if len(texts) < sum(sizes):
        raise SystemExit(f"there are {len(texts)} openings and {sum(sizes)} were asked for")
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [
        Dataset.from_dict({"prompt": texts[start : start + size]}) for start, size in zip(starts, sizes, strict=True)
    ]


def style_parts(text: str) -> tuple[float, float, float]:
    """What the reward is made of, each from 0 to 1: cheerful words, short sentences, repetition.

    A cheerful word counts once. Repetition is the share of pairs of neighbouring words that were there before, so that
    neither one word over and over nor one sentence over and over pays.
    """
    words = re.findall(r"[a-z']+", text.lower())
    if len(words) < 2:
        return 0.0, 0.0, 1.0
    cheerful = min(len(CHEERFUL.intersection(words)) / ENOUGH_WORDS, 1.0)
    per_sentence = len(words) / max(len(re.findall(r"[.!?]+", text)), 1)
    short = min(SENTENCE_WORDS, per_sentence) / max(SENTENCE_WORDS, per_sentence)
    repetition = 1 - len(set(pairwise(words))) / (len(words) - 1)
    return cheerful, short, repetition


def story_style(completions: Sequence[str], **columns: Any) -> list[float]:
    """Reward function: cheerful words + short sentences - repetition, from -1 to 2."""
    return [cheerful + short - repetition for cheerful, short, repetition in map(style_parts, completions)]
