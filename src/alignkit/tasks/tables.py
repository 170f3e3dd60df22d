"""Toy table look-up in the form of TAT-QA: contexts made in code, a tokenizer and a tiny model that can learn them.

The contexts are what `alignkit.tasks.tatqa.load_tatqa` returns, so that prompts, preference pairs and scores come from
the code that handles the real dataset. Beside them stand what a model must not forget on the way: a second task
(recall of a fact just read) and text that has nothing to do with tables. Equal arguments give equal results.

How this differs from TAT-QA:

1. Items of a table are single words and its values whole numbers below 50, because a model this small reads a number
   as one token and learns sums by heart.
2. Every question is answered from the table; there are no passages.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignkit.evaluation.tatqa_text import answer_text
from alignkit.tasks.tatqa_prompts import ROLE, PromptForm, prompt_makers
from alignkit.tasks.toy import STYLES, generate

ITEMS = (
    "Sales Costs Taxes Rent Wages Cash Debt Loans Leases Stock Grants Fees "
    "Goods Land Plant Tools Energy Travel Software Hardware Services Interest Dividends Pensions"
).split()
SCALES = ("thousand", "million", "billion")
YEARS = 3  # columns of a table
SMALLEST_VALUE, LARGEST_VALUE = 1, 49
_KINDS = {"cell": 6, "highest_year": 2, "two_cells": 2, "change": 2, "sum": 2, "count": 2}
"""Kinds of questions with how often each is asked."""

_SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


def table_contexts(n: int, *, seed: int = 0, n_questions: int = 4, rows: tuple[int, int] = (3, 5)) -> list[dict[str, Any]]:
    """`n` contexts in the form of TAT-QA's JSON, each of one table, no paragraph and `n_questions` questions.

    No table comes twice and no question twice within a context: slices of one call are disjoint splits; two seeds are
    not. Span questions ask for a cell or the year of the largest value of an item, multi-span ones for two cells,
    arithmetic ones for a change or a sum, count ones for the years with at least a given value.

    Args:
        n: contexts, at least 1.
        seed: of tables and questions; uids carry it.
        n_questions: of each context, 1 to 12.
        rows: fewest and most items of a table, 1 to 24.

    Raises:
        ValueError: if a number is outside its range.
    """
    for name, value, least, most in (
        ("n", n, 1, 1_000_000),
        ("n_questions", n_questions, 1, 12),
        ("rows[0]", rows[0], 1, rows[1]),
        ("rows[1]", rows[1], 1, len(ITEMS)),
    ):
        if not least <= value <= most:
            raise ValueError(f"{name}={value} must lie between {least} and {most}.")
    generator = random.Random(f"tables:{seed}")
    made: dict[str, dict[str, Any]] = {}
    while len(made) < n:
        table = _table(generator, rows)
        made.setdefault(str(table), _context(table, f"tables-{seed}-{len(made)}", n_questions, generator))
    return list(made.values())


def _table(generator: random.Random, rows: tuple[int, int]) -> list[list[str]]:
    """Header of corner and years, newest first; then a row for each item, its values all different."""
    newest = generator.randint(2012, 2021)
    header = [f"In {generator.choice(SCALES)}s", *(str(newest - column) for column in range(YEARS))]
    values = range(SMALLEST_VALUE, LARGEST_VALUE + 1)
    items = generator.sample(ITEMS, generator.randint(*rows))
    return [header, *([item, *map(str, generator.sample(values, YEARS))] for item in items)]


def _context(table: list[list[str]], uid: str, n_questions: int, generator: random.Random) -> dict[str, Any]:
    questions: dict[str, dict[str, Any]] = {}
    while len(questions) < n_questions:
        question = _question(table, generator)
        questions.setdefault(question["question"], question)
    return {
        "table": {"uid": uid, "table": table},
        "paragraphs": [],
        "questions": [
            {"uid": f"{uid}-{order}", "order": order, **question, "answer_from": "table", "rel_paragraphs": []}
            for order, question in enumerate(questions.values(), start=1)
        ],
    }


def _question(table: Sequence[Sequence[str]], generator: random.Random) -> dict[str, Any]:
    """Question, answer, derivation, type, scale and whether cells are compared."""
    [kind] = generator.choices(list(_KINDS), weights=list(_KINDS.values()))
    [corner, *years], row = table[0], generator.choice(table[1:])
    item, values = row[0], [int(cell) for cell in row[1:]]
    scale = corner.removeprefix("In ").removesuffix("s")
    column, other = generator.sample(range(len(years)), 2)
    late, early = sorted((column, other))
    answer: Any
    if kind == "cell":
        text, answer, form = f"What was {item} in {years[column]}?", [str(values[column])], "span"
        derivation = ""
    elif kind == "highest_year":
        text, answer, form = f"In which year was {item} highest?", [years[values.index(max(values))]], "span"
        derivation, scale = ">".join(map(str, sorted(values, reverse=True))), ""
    elif kind == "two_cells":
        text, form = f"What was {item} in {years[column]} and in {years[other]}?", "multi-span"
        answer, derivation = [str(values[column]), str(values[other])], ""
    elif kind == "change":
        text, form = f"What was the change in {item} from {years[early]} to {years[late]}?", "arithmetic"
        answer, derivation = values[late] - values[early], f"{values[late]}-{values[early]}"
    elif kind == "sum":
        text, form = f"What was the sum of {item} in {years[column]} and in {years[other]}?", "arithmetic"
        answer, derivation = values[column] + values[other], f"{values[column]}+{values[other]}"
    else:
        least = values[column]
        text, form = f"In how many years was {item} at least {least}?", "count"
        at_least = [year for year, value in zip(years, values, strict=True) if value >= least]
        answer, derivation, scale = len(at_least), "##".join(at_least), ""
    return {
        "question": text,
        "answer": answer,
        "derivation": derivation,
        "answer_type": form,
        "scale": scale,
        "req_comparison": kind in ("highest_year", "count"),
    }
