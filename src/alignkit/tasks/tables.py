"""Toy table look-up in the form of TAT-QA: contexts made in code, small enough to be learned on a CPU.

The contexts are what `alignkit.tasks.tatqa.load_tatqa` returns, so that prompts, preference pairs and scores come from
the code that handles the real dataset. Beside them stand what a model must not forget on the way: a second task
(recall of a fact just read) and prose that has nothing to do with tables. Equal arguments give equal results.
`alignkit.tasks.tables_model` has a tokenizer and a model to match, `alignkit.tasks.tables_lessons` what teaches it.

How this differs from TAT-QA:

1. Items of a table are single words and its values whole numbers up to 20, because a model this small reads a number
   as one token and learns sums by heart.
2. Every question is answered from the table; there are no passages.
3. Questions name the item last, near the answer.
"""

import random
from collections.abc import Mapping
from typing import Any

from alignkit.tasks.toy import STYLES, generate

_WORDS = {
    "items": "Sales Costs Taxes Rent Wages Cash Debt Loans Leases Stock Grants Fees "
    "Goods Land Plant Tools Energy Travel Software Hardware Services Interest Dividends Pensions",
    "names": "Ada Ben Cleo Dan Eve Fay Gus Hal Ida Jon Kim Leo Mia Ned Ola Pam Quin Ron Sue Tom Uma Vic Wes Zoe",
}
ITEMS, NAMES = (_WORDS[kind].split() for kind in ("items", "names"))
SCALES = ("thousand", "million", "billion")
NEWEST_YEARS = (2019, 2020, 2021)
MOST_YEARS = 3
VALUES = range(1, 21)
KINDS: Mapping[str, int] = {"cell": 6, "best_year": 2, "two_cells": 2, "change": 2, "sum": 2, "count": 2}
"""Kinds of questions, each with how often it is asked."""

_TRIES_PER_QUESTION = 20

Table = list[list[str]]


def table_contexts(n: int, *, seed: int = 0, n_questions: int = 4) -> list[dict[str, Any]]:
    """`n` contexts in the form of TAT-QA's JSON, each of one table of 3 to 5 items and 3 years, and no paragraph.

    No table comes twice and no question twice within a context, so that slices of one call are disjoint splits. Span
    questions ask for a cell or the year of the largest value of an item, multi-span ones for two cells, arithmetic
    ones for a change or a sum, count ones for the years with at least a given value.

    Args:
        n: contexts, at least 1.
        seed: of tables and questions; uids carry it.
        n_questions: of each context, 1 to 12.

    Raises:
        ValueError: if a number is outside its range.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1.")
    if not 1 <= n_questions <= 12:
        raise ValueError(f"n_questions={n_questions} must lie between 1 and 12.")
    generator = random.Random(f"tables:{seed}")
    contexts: dict[str, dict[str, Any]] = {}
    while len(contexts) < n:
        uid = f"tables-{seed}-{len(contexts)}"
        context = random_context(generator, uid, n_questions=n_questions)
        contexts.setdefault(str(context["table"]["table"]), context)
    return list(contexts.values())


def random_context(
    generator: random.Random,
    uid: str,
    *,
    n_questions: int,
    rows: tuple[int, int] = (3, 5),
    n_years: int = MOST_YEARS,
    kinds: Mapping[str, int] = KINDS,
) -> dict[str, Any]:
    """One context. A table with few items or years may have fewer different questions than are asked for.

    Args:
        generator: of everything that is random.
        uid: of the table; its questions' are numbered.
        n_questions: at the most.
        rows: fewest and most items.
        n_years: columns, 1 to 3; with one, `cell` is the only kind there is.
        kinds: as `KINDS`.
    """
    table = _table(generator, rows, n_years)
    questions: dict[str, dict[str, Any]] = {}
    for _ in range(_TRIES_PER_QUESTION * n_questions):
        [kind] = generator.choices(list(kinds), weights=list(kinds.values()))
        question = _question(table, kind, generator)
        questions.setdefault(question["question"], question)
        if len(questions) == n_questions:
            break
    return {
        "table": {"uid": uid, "table": table},
        "paragraphs": [],
        "questions": [
            {"uid": f"{uid}-{order}", "order": order, **question, "answer_from": "table", "rel_paragraphs": []}
            for order, question in enumerate(questions.values(), start=1)
        ],
    }


def _table(generator: random.Random, rows: tuple[int, int], n_years: int) -> Table:
    """Header of scale and years, newest first; then a row for each item, its values all different."""
    newest = generator.choice(NEWEST_YEARS)
    header = [f"In {generator.choice(SCALES)}s", *(str(newest - column) for column in range(n_years))]
    items = generator.sample(ITEMS, generator.randint(*rows))
    return [header, *([item, *map(str, generator.sample(VALUES, n_years))] for item in items)]


def _question(table: Table, kind: str, generator: random.Random) -> dict[str, Any]:
    """Question, answer, derivation, type, scale and whether cells are compared."""
    [corner, *years], [item, *cells] = table[0], generator.choice(table[1:])
    values = [int(cell) for cell in cells]
    column = generator.randrange(len(years))
    derivation, scale = "", corner.removeprefix("In ").removesuffix("s")
    answer: Any
    if kind == "cell":
        text, answer, answer_type = f"What was {years[column]} {item}?", [cells[column]], "span"
    elif kind == "best_year":
        text, answer, answer_type = f"What was the best year for {item}?", [years[values.index(max(values))]], "span"
        derivation, scale = ">".join(map(str, sorted(values, reverse=True))), ""
    elif kind == "count":
        text = f"How many years had at least {cells[column]} {item}?"
        enough = [year for year, value in zip(years, values, strict=True) if value >= values[column]]
        answer, answer_type, derivation, scale = len(enough), "count", "##".join(enough), ""
    else:
        other = generator.choice([index for index in range(len(years)) if index != column])
        newer, older = sorted((column, other))
        if kind == "two_cells":
            text = f"What was {years[column]} and {years[other]} {item}?"
            answer, answer_type = [cells[column], cells[other]], "multi-span"
        elif kind == "change":
            text, answer_type = f"What was the {years[older]} to {years[newer]} change in {item}?", "arithmetic"
            answer, derivation = values[newer] - values[older], f"{cells[newer]}-{cells[older]}"
        else:
            text, answer_type = f"What was the sum of {years[column]} and {years[other]} {item}?", "arithmetic"
            answer, derivation = values[column] + values[other], f"{cells[column]}+{cells[other]}"
    return {
        "question": text,
        "answer": answer,
        "derivation": derivation,
        "answer_type": answer_type,
        "scale": scale,
        "req_comparison": kind in ("best_year", "count"),
    }


def recall_facts(n: int, *, seed: int = 0, n_facts: int = 6) -> list[dict[str, Any]]:
    """`n` lists of facts with a question for each fact: `{"facts": text, "questions": [(name, number), ...]}`.

    The second task. Names and numbers are drawn anew for each list, so that the answer stands nowhere but in it. The
    prompt is `{facts}\\n\\nQuestion: {name}\\nAnswer:`, the answer ` {number}`.
    """
    generator = random.Random(f"recall:{seed}")
    made = []
    for _ in range(n):
        questions = [(name, str(generator.choice(VALUES))) for name in generator.sample(NAMES, n_facts)]
        facts = "Facts: " + ", ".join(f"{name} {number}" for name, number in questions) + "."
        generator.shuffle(questions)
        made.append({"facts": facts, "questions": questions})
    return made


def outside_texts(n: int, *, seed: int = 0) -> list[str]:
    """`n` lines of prose that have nothing to do with tables, the writing styles of `alignkit.tasks.toy` in turn.

    Slices of one call are disjoint; two seeds are not.
    """
    per_style = -(-n // len(STYLES))
    drawn = [generate(style, per_style, seed=seed) for style in STYLES]
    return [text for texts in zip(*drawn, strict=True) for text in texts][:n]
