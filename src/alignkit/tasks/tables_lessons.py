"""What teaches a tiny model to look up cells of tables: five lessons, from finding a name again to sums.

How this differs from fine-tuning on the questions themselves: a row and a column at once come last, after facts that
are repeated, facts that are asked for, and tables of one year, each of which is a step towards the next.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from alignkit.evaluation.tatqa_text import answer_text
from alignkit.tasks.tables import outside_texts, random_context, recall_facts
from alignkit.tasks.tatqa_prompts import PromptForm, prompt_makers

LESSONS: Mapping[str, int] = {"repeat": 350, "recall": 120, "one_year": 150, "cells": 250, "questions": 800}
"""Optimiser steps of each lesson, in the order in which they should come."""

_SHARE_OF_OTHERS = 8  # in the last lesson every eighth batch recalls facts, and every eighth is prose
_N_QUESTIONS = 8

Pieces = list[tuple[str, bool]]
"""A sequence as texts, True for those that are learned."""


def lesson_rows(
    tokenizer: PreTrainedTokenizerBase,
    *,
    lessons: Mapping[str, int] = LESSONS,
    batch_size: int = 16,
    seed: int = 0,
) -> Dataset:
    """Rows `input_ids`, `labels` for `SFTTrainer`, to be taken in their order, `batch_size` at a time.

    A sequence has one table, or list of facts, and several questions with their answers; labels are -100 outside the
    answers. A batch has one kind of sequence: `repeat` says a list of facts in another order, `recall` asks for the
    facts, `one_year` for the cells of a table with one column, `cells` for those of whole tables, and `questions` asks
    everything that [`alignkit.tasks.tables.table_contexts`] asks, with recall and prose in between.

    Args:
        tokenizer: [`alignkit.tasks.tables_model.tables_tokenizer`].
        lessons: steps by name, at least one in all.
        batch_size: rows of a step.
        seed: of facts and tables. Its tables are none of `table_contexts`, whatever the seed.

    Raises:
        ValueError: an unknown lesson, no step, or a negative number of them.
    """
    for name, steps in lessons.items():
        if name not in LESSONS:
            raise ValueError(f"lessons names {name!r}; use {', '.join(LESSONS)}.")
        if steps < 0:
            raise ValueError(f"lessons[{name!r}]={steps} must not be negative.")
    if not any(lessons.values()):
        raise ValueError("lessons has no step; give at least one.")
    rows = []
    for name, steps in lessons.items():
        makers = _batch_makers(name, seed)
        for step in range(steps):
            rows += [_row(pieces, tokenizer) for pieces in makers[step % len(makers)](batch_size)]
    return Dataset.from_list(rows)


_Maker = Callable[[int], list[Pieces]]


def _batch_makers(lesson: str, seed: int) -> list[_Maker]:
    """What makes the batches of a lesson, in turn."""
    facts = _facts(f"{lesson}:{seed}")
    if lesson in ("repeat", "recall"):
        repeat = lesson == "repeat"
        return [lambda n: [_fact_pieces(next(facts), repeat=repeat) for _ in range(n)]]
    generator = random.Random(f"lesson:{lesson}:{seed}")
    options: dict[str, Any] = {"n_questions": _N_QUESTIONS}
    if lesson == "one_year":
        options |= {"n_years": 1, "rows": (2, 5)}
    if lesson != "questions":
        options |= {"kinds": {"cell": 1}}

    def tables(n: int) -> list[Pieces]:
        return [_table_pieces(random_context(generator, "lesson", **options)) for _ in range(n)]

    if lesson == "cells":
        return [tables]
    others: list[_Maker] = [lambda n: [_fact_pieces(next(facts), repeat=False) for _ in range(n)]]
    if lesson == "one_year":
        return [tables, *others]
    prose = _prose(seed)
    others.append(lambda n: [[(next(prose), True)] for _ in range(n)])
    return [*[tables] * (_SHARE_OF_OTHERS - len(others)), *others]


def _facts(seed: str) -> Iterator[dict[str, Any]]:
    generator = random.Random(seed)
    while True:
        yield from recall_facts(1, seed=generator.getrandbits(32))


def _prose(seed: int) -> Iterator[str]:
    generator = random.Random(seed)
    while True:
        yield from outside_texts(64, seed=generator.getrandbits(32))


def _fact_pieces(listed: Mapping[str, Any], *, repeat: bool) -> Pieces:
    pieces: Pieces = []
    for name, number in listed["questions"]:
        before = (", " if pieces else f"{listed['facts']}\n\n ") if repeat else "\n\nQuestion: "
        if not pieces and not repeat:
            before = listed["facts"] + before
        pieces += [(f"{before}{name}" if repeat else f"{before}{name}\nAnswer:", False), (f" {number}", True)]
    return pieces


def _table_pieces(context: Mapping[str, Any]) -> Pieces:
    """The prompt of the first question and its answer, then the other questions and answers about the same table."""
    makers = prompt_makers(context, None, PromptForm())
    pieces: Pieces = []
    for question in context["questions"]:
        prompt = str(makers[question["uid"]]())
        text = "\n\n" + prompt[prompt.rindex("Question:") :] if pieces else prompt
        pieces += [(text, False), (f" {answer_text(question['answer'], question['scale'])}", True)]
    return pieces


def _row(pieces: Pieces, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Tokens of the pieces one by one, as prompt and completion are tokenised in DPO; each learned one ends."""
    input_ids: list[int] = []
    labels: list[int] = []
    for text, learned in pieces:
        ids = list(tokenizer(text, add_special_tokens=not input_ids)["input_ids"])
        if learned:
            ids.append(tokenizer.eos_token_id)
        input_ids += ids
        labels += ids if learned else [-100] * len(ids)
    return {"input_ids": input_ids, "labels": labels}
