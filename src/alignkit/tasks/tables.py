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
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignkit.evaluation.tatqa_text import answer_text
from alignkit.tasks.tatqa_prompts import ROLE, PromptForm, prompt_makers
from alignkit.tasks.toy import STYLES, generate

ITEMS = ["Sales", "Costs", "Taxes", "Rent", "Wages", "Cash", "Debt", "Loans", "Leases", "Stock", "Grants", "Fees", "Goods", "Land", "Plant", "Tools", "Energy", "Travel", "Software", "Hardware", "Services", "Interest", "Dividends", "Pensions"]
NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo", "Mia", "Ned", "Ola", "Pam", "Quin", "Ron", "Sue", "Tom", "Uma", "Vic", "Wes", "Zoe"]
SCALES = ("thousand", "million", "billion")
YEARS = 3  # columns of a table
NEWEST_YEARS = (2019, 2020, 2021)
SMALLEST_VALUE, LARGEST_VALUE = 1, 49
_KINDS = {"cell": 6, "highest_year": 2, "two_cells": 2, "change": 2, "sum": 2, "count": 2}
"""Kinds of questions with how often each is asked."""

_MOST_TOKENS = 1024
_ROPE_THETA = 10_000.0
_POSITION_STRENGTH = 4.5
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
    newest = generator.choice(NEWEST_YEARS)
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
        text, answer, form = f"What was {years[column]} {item}?", [str(values[column])], "span"
        derivation = ""
    elif kind == "highest_year":
        text, answer, form = f"What was the best year for {item}?", [years[values.index(max(values))]], "span"
        derivation, scale = ">".join(map(str, sorted(values, reverse=True))), ""
    elif kind == "two_cells":
        text, form = f"What was {years[column]} and {years[other]} {item}?", "multi-span"
        answer, derivation = [str(values[column]), str(values[other])], ""
    elif kind == "change":
        text, form = f"What was the {years[early]} to {years[late]} change in {item}?", "arithmetic"
        answer, derivation = values[late] - values[early], f"{values[late]}-{values[early]}"
    elif kind == "sum":
        text, form = f"What was the sum of {years[column]} and {years[other]} {item}?", "arithmetic"
        answer, derivation = values[column] + values[other], f"{values[column]}+{values[other]}"
    else:
        least = values[column]
        text, form = f"How many years had at least {least} {item}?", "count"
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


def tables_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of about 700 tokens, in which a word, a number of a table and the role line are one token each.

    Byte-level BPE trained on generated text, so that decoding the ids after `<bos>` gives any text back exactly.
    Calling it puts `<bos>` in front and appends no `<eos>`; padding goes to the right.
    """
    backend = Tokenizer(models.BPE())
    # The blank in front belongs to a word or number: the same token as a cell, in a question and as an answer.
    pieces = Regex(r" ?[A-Za-z]+| ?\d+|[^A-Za-z\d]+?(?= ?[A-Za-z\d]|\z)")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MOST_TOKENS - 1,  # and one for the role line
        special_tokens=list(_SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_tokenizer_corpus(), trainer)
    backend.add_tokens([AddedToken(ROLE, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", backend.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="right", **_SPECIAL_TOKENS)


def _tokenizer_corpus() -> Iterator[str]:
    for sequence in _sequences(table_contexts(400, seed=0, n_questions=8)):
        yield from (text.removeprefix(ROLE) for text, _ in sequence)
    for listed in recall_facts(200, seed=0):
        yield f"{listed['facts']}\n\nQuestion:" + "\nAnswer:".join(f" {name} {number}" for name, number in listed["questions"])
    yield from outside_texts(400, seed=0)


def _sequences(contexts: Sequence[Mapping[str, Any]]) -> Iterator[list[tuple[str, bool]]]:
    """For each context its pieces of text: prompt, answer, next question, answer, ...; True for an answer."""
    for context in contexts:
        makers = prompt_makers(context, None, PromptForm())
        pieces: list[tuple[str, bool]] = []
        for question in context["questions"]:
            prompt = str(makers[question["uid"]]())
            if pieces:
                prompt = "\n\n" + prompt[prompt.rindex("Question:") :]
            pieces += [(prompt, False), (answer_text(question["answer"], question["scale"]), True)]
        yield pieces


def tables_model(seed: int = 0, *, hidden_size: int = 96, layers: int = 3, heads: int = 6) -> LlamaForCausalLM:
    """Untrained Llama of about 500,000 parameters in float32 for `tables_tokenizer`, built so that it learns to look up.

    Attention that finds a word again and reads what follows it emerges after many thousands of steps from the usual
    initialisation. Here it is near from the first step: embeddings are drawn with variance 1, queries equal keys and
    an output projection is its value projection transposed in every layer (mimetic initialisation, Trockman and Kolter
    2023), and head j of the first layer attends to the j-th token back through the biases of queries and keys.

    Raises:
        ValueError: if `hidden_size` is not an even multiple of `heads`.
    """
    if hidden_size % (2 * heads):
        raise ValueError(f"hidden_size={hidden_size} must be an even multiple of heads={heads}.")
    config = LlamaConfig(
        vocab_size=_MOST_TOKENS,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=512,
        attention_bias=True,
        initializer_range=hidden_size**-0.5,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        model = LlamaForCausalLM(config)
        model.model.embed_tokens.weight.normal_()
        model.lm_head.weight.copy_(0.1 * model.model.embed_tokens.weight)
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T)
        _attend_backwards(model.model.layers[0].self_attn, heads, rope_theta=_ROPE_THETA)
    return model


def _attend_backwards(attention: Any, heads: int, *, rope_theta: float) -> None:
    """Biases under which head j looks j tokens back, j from 1: a key there, once rotated, is parallel to the query."""
    half = attention.head_dim // 2
    frequencies = rope_theta ** (-torch.arange(half) / half)
    query = torch.full((half,), _POSITION_STRENGTH)
    queries, keys = [], []
    for offset in range(1, heads + 1):
        angle = offset * frequencies
        queries += [query, query]
        keys += [query * (angle.cos() - angle.sin()), query * (angle.cos() + angle.sin())]
    attention.q_proj.bias.copy_(torch.cat(queries))
    attention.k_proj.bias.copy_(torch.cat(keys))
    # Words count for less than positions in this layer, and for all in the others.
    attention.q_proj.weight.mul_(0.1)
    attention.k_proj.weight.mul_(0.1)


def recall_facts(n: int, *, seed: int = 0, n_facts: int = 6) -> list[dict[str, Any]]:
    """`n` lists of facts with a question for each fact: `{"facts": text, "questions": [(question, answer), ...]}`.

    The second task. Names and numbers are drawn anew for each list, so that the answer stands nowhere but in it.
    """
    generator = random.Random(f"recall:{seed}")
    made = []
    for _ in range(n):
        names = generator.sample(NAMES, n_facts)
        numbers = [str(generator.randint(SMALLEST_VALUE, LARGEST_VALUE)) for _ in names]
        facts = "Facts: " + ", ".join(f"{name} {number}" for name, number in zip(names, numbers, strict=True)) + "."
        questions = list(zip(names, numbers, strict=True))
        generator.shuffle(questions)
        made.append({"facts": facts, "questions": questions})
    return made


def outside_texts(n: int, *, seed: int = 0) -> list[str]:
    """`n` lines of prose that have nothing to do with tables, the writing styles of `alignkit.tasks.toy` in turn."""
    per_style = -(-n // len(STYLES))
    drawn = [generate(style, per_style, seed=seed) for style in STYLES]
    return [text for texts in zip(*drawn, strict=True) for text in texts][:n]
