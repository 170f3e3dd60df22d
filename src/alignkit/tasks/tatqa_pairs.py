"""Preference pairs from TAT-QA: the gold answer against a wrong one that differs from it in one named respect.

How this differs from pairs that are made and never checked: each side goes the way that a model's answer goes, from
text through extraction to the official score. A chosen answer has exact match 1 and a rejected one 0, or there is no
pair, and the report says how many there are not and why.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from alignkit.evaluation.tatqa_rules import ANSWER_TYPES, gold_items, score_answer
from alignkit.evaluation.tatqa_text import answer_text, extract_answer
from alignkit.tasks.tatqa_corruptions import CORRUPTIONS, corruptions_of
from alignkit.tasks.tatqa_files import check_contexts
from alignkit.tasks.tatqa_prompts import PromptForm, PromptTooLongError, prompt_makers

CHOSEN_IS_WRONG = "the written gold answer has no exact match"
NO_REJECTED = "no wrong answer differs in one respect"
NO_PROMPT = "the prompt does not fit"


@dataclass(frozen=True)
class PairReport:
    """What became of the questions.

    Attributes:
        n_questions, n_pairs: of each answer type.
        n_dropped: questions without a pair, by answer type and reason.
        n_corrupted: pairs of each corruption.
        length_accuracy: accuracy of guessing the chosen answer by its length alone, 0.5 to 1: of "the longer one" or
            "the shorter one", whichever is right more often over all pairs, ties counting 1/2. In `characters`, and in
            `tokens` where there is a tokenizer.
        longer_is_chosen: of "the longer one", in characters, for each corruption.
    """

    n_questions: dict[str, int]
    n_pairs: dict[str, int]
    n_dropped: dict[str, dict[str, int]]
    n_corrupted: dict[str, int]
    length_accuracy: dict[str, float]
    longer_is_chosen: dict[str, float]


def tatqa_pairs(
    contexts: Sequence[Mapping[str, Any]], tokenizer: Any = None, form: PromptForm | None = None, *, seed: int = 0
) -> tuple[Dataset, PairReport]:
    """A pair for every question that can have one, in the order of the questions, and what became of the others.

    Args:
        contexts: from [`alignkit.tasks.tatqa.load_tatqa`].
        tokenizer, form: as for [`alignkit.tasks.tatqa.tatqa_prompts`].
        seed: of the corruptions, with the uid of the question.

    Returns:
        A dataset of `prompt`, `chosen`, `rejected`, `uid`, `answer_type`, `corruption` (a name of [`CORRUPTIONS`]), as
        texts or, with `form.chat`, as messages with `chat_template_kwargs`; and the report.

    Raises:
        ValueError: contexts with a missing field, a limit without a tokenizer, or no pair at all.
    """
    check_contexts(contexts)
    form = form or PromptForm()
    rows, dropped = [], []
    for context in contexts:
        makers = prompt_makers(context, tokenizer, form)
        for question in context["questions"]:
            made = _answers(question, context, seed)
            if isinstance(made, str):
                dropped.append((question["answer_type"], made))
                continue
            try:
                prompt = makers[question["uid"]]()
            except PromptTooLongError:
                dropped.append((question["answer_type"], NO_PROMPT))
                continue
            rows.append({"prompt": prompt, "uid": question["uid"], "answer_type": question["answer_type"], **made})
    if not rows:
        raise ValueError(
            f"none of {len(dropped)} questions has a pair: {dict(Counter(reason for _, reason in dropped))}"
        )
    report = _report(rows, dropped, tokenizer)
    return Dataset.from_list([_in_form(row, form) for row in rows]), report


def _answers(question: Mapping[str, Any], context: Mapping[str, Any], seed: int) -> dict[str, str] | str:
    """`chosen`, `rejected` and `corruption`, or the reason why there are none."""
    items, scale = extract_answer(answer_text(question["answer"], question["scale"]))
    chosen = answer_text(items, scale)
    if not items or extract_answer(chosen) != [items, scale] or not _exact_match(chosen, question):
        return CHOSEN_IS_WRONG
    generator = random.Random(f"{seed}/{question['uid']}")
    for corruption, (wrong_items, wrong_scale) in corruptions_of(question, (items, scale), context, generator):
        rejected = answer_text(wrong_items, wrong_scale)
        # Read back as it was meant, because only then is nothing else different.
        if extract_answer(rejected) == [wrong_items, wrong_scale] and not _exact_match(rejected, question):
            return {"chosen": chosen, "rejected": rejected, "corruption": corruption}
    return NO_REJECTED


def _exact_match(text: str, question: Mapping[str, Any]) -> bool:
    answer, scale = extract_answer(text)
    gold = gold_items(question["answer"], question["answer_type"])
    return score_answer(answer, scale, gold, question["scale"], question["answer_type"]).em == 1


def _in_form(row: Mapping[str, Any], form: PromptForm) -> dict[str, Any]:
    sides = ("chosen", "rejected")
    if not form.chat:
        # The blank belongs to the answer: most tokenizers join it to the word behind it.
        return {**row, **{side: f" {row[side]}" for side in sides}}
    messages = {side: [{"role": "assistant", "content": row[side]}] for side in sides}
    kwargs = {"chat_template_kwargs": dict(form.chat_template_kwargs)} if form.chat_template_kwargs else {}
    return {**row, **messages, **kwargs}


def _report(rows: Sequence[Mapping[str, Any]], dropped: Sequence[tuple[str, str]], tokenizer: Any) -> PairReport:
    pairs = Counter(row["answer_type"] for row in rows)
    questions = pairs + Counter(answer_type for answer_type, _ in dropped)
    reasons = {name: Counter(reason for answer_type, reason in dropped if answer_type == name) for name in questions}
    lengths = {"characters": [(len(row["chosen"]), len(row["rejected"])) for row in rows]}
    if tokenizer is not None:
        lengths["tokens"] = list(
            zip(
                *(_token_counts([f" {row[side]}" for row in rows], tokenizer) for side in ("chosen", "rejected")),
                strict=True,
            )
        )
    longer = {unit: _longer_is_chosen(of_unit) for unit, of_unit in lengths.items()}
    by_corruption = {
        name: [pair for pair, row in zip(lengths["characters"], rows, strict=True) if row["corruption"] == name]
        for name in CORRUPTIONS
    }
    return PairReport(
        n_questions={name: questions[name] for name in ANSWER_TYPES if name in questions},
        n_pairs={name: pairs[name] for name in ANSWER_TYPES if name in questions},
        n_dropped={name: dict(reasons[name]) for name in ANSWER_TYPES if reasons.get(name)},
        n_corrupted={name: len(of_name) for name, of_name in by_corruption.items() if of_name},
        length_accuracy={unit: max(share, 1 - share) for unit, share in longer.items()},
        longer_is_chosen={name: _longer_is_chosen(of_name) for name, of_name in by_corruption.items() if of_name},
    )


def _token_counts(texts: list[str], tokenizer: Any) -> list[int]:
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _longer_is_chosen(lengths: Sequence[tuple[int, int]]) -> float:
    """Share of pairs whose chosen side is longer, ties counting 1/2."""
    return sum((chosen > rejected) + 0.5 * (chosen == rejected) for chosen, rejected in lengths) / len(lengths)
