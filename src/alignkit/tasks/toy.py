"""The embedded default task: tokenizer, tiny models and datasets made in code, with no hub, no files and no downloads.

Four writing styles are generated from sentence templates. They share most of their nouns; phrasing and punctuation
tell them apart. Equal arguments give equal results, and the global random state is neither read nor changed.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

_SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
_PAD_ID, _BOS_ID, _EOS_ID = 256, 257, 258
_VOCAB_SIZE = 259

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role must be system, user or assistant, got ' + message['role']) }}{% endif %}"
    "{{ message['role'] + ': ' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""Chat template without a date: `<bos>system: ...`, `user: ...` on a line each, `assistant: ...<eos>`."""

_WORD_LISTS = {
    "good": "salt, honey, flour, apples, lamp oil, rope, herring, beans, butter, pepper, barley, tea",
    "side": "onions, eggs, cheese, plums, pears, garlic, rice, mint",
    "amount": "two, three, four, five, six, seven, eight, nine",
    "minutes": "ten, twelve, fifteen, twenty, thirty, forty",
    "vessel": "kettle, skillet, copper pot, basin, jar, oven dish",
    "manner": "warm, cold, on toast, with bread, at once, in small bowls",
    "port": "Calder, Brightwater, Osmund, Tarn, Lowmoor, Vessey, Halle, Quay",
    "watch": "First, Second, Middle, Morning, Forenoon, Dog",
    "wind": "north, south, east, west, north-east, south-west",
    "sea": "calm, slight, moderate, rough, confused, glassy",
    "number": "3, 4, 7, 9, 12, 15, 18, 21, 24, 30, 36, 48",
    "price": "1.15, 1.40, 2.05, 2.75, 3.30, 4.20, 5.60, 6.95, 8.10, 9.85",
    "fee": "0.10, 0.25, 0.40, 0.55, 0.70, 0.85",
    "animal": "fox, crow, tortoise, badger, heron, mouse",
    "rival": "wolf, stag, magpie, hare, otter, goat",
    "moral": "Pride eats alone, A gift returns, Fair words fill no bowl, Who shares eats twice, Haste loses the road",
}
_WORDS = {field: words.split(", ") for field, words in _WORD_LISTS.items()}

_TEMPLATES = {
    "recipe": (
        "Warm a {vessel}, stir in {amount} spoons of {good}, add the {side}. Rest {minutes} minutes, serve {manner}.",
        "Slice the {side}, cover with {amount} cups of {good}, bake {minutes} minutes in a {vessel}, serve {manner}.",
    ),
    "ship_log": (
        "{watch} watch. Wind {wind}, {amount} knots, sea {sea}. Took on {good} at {port}. All hands well.",
        "{watch} watch. Passed {port} to the {wind}, sea {sea}. Lost {amount} casks of {good} overboard. Crew weary.",
    ),
    "ledger": (
        "Received {number} crates {good} @ {price} each; carriage {fee}; {amount} sacks {side} unpaid; due at {port}.",
        "Sold: {good}, {number} jars @ {price} each; {side}, {amount} trays @ {fee}; account of {port}, paid in full.",
    ),
    "fable": (
        "A {animal} took {good} to {port} for {amount} days as the {rival} slept. Soon the {rival} begged. {moral}.",
        '"Bring me {good}," said the {rival} to the {animal}, "or {amount} of my {side}." The {animal} ran. {moral}.',
    ),
}

STYLES: tuple[str, ...] = tuple(_TEMPLATES)
PREFERENCE_HEADS: tuple[str, ...] = ("tidy", "short")


def byte_tokenizer(*, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level tokenizer of 259 tokens: the id of a byte is its value, then `<pad>` 256, `<bos>` 257, `<eos>` 258.

    Calling it puts `<bos>` in front and appends no `<eos>`; padding goes to the right. Decoding the ids after `<bos>`
    gives any text back exactly. A text that spells `<pad>`, `<bos>` or `<eos>` is read as containing that token.
    `chat_template` is a Jinja template, for example `CHAT_TEMPLATE`.
    """
    # Byte-level BPE spells a byte as one character: itself where it prints, else the next character from 256 on.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    stand_ins = count(256)
    vocabulary = {chr(byte if byte in printable else next(stand_ins)): byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL_TOKENS.values()])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", _BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=chat_template,
        padding_side="right",
        **_SPECIAL_TOKENS,
    )


def tiny_llama_config(
    *, hidden_size: int = 64, layers: int = 2, heads: int = 4, vocab_size: int | None = None, max_positions: int = 512
) -> LlamaConfig:
    """Configuration of a Llama of about 100,000 parameters, with the special tokens of `byte_tokenizer`.

    `hidden_size` is H, an even multiple of `heads` (attention heads); `vocab_size` is V, `None` for the 259 tokens of
    `byte_tokenizer`; `max_positions` is the longest sequence in tokens.

    Raises:
        ValueError: if `vocab_size` is below 259.
    """
    vocab_size = _VOCAB_SIZE if vocab_size is None else vocab_size
    if vocab_size < _VOCAB_SIZE:
        raise ValueError(f"vocab_size={vocab_size} is below the {_VOCAB_SIZE} tokens of byte_tokenizer; raise it.")
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_positions,
        pad_token_id=_PAD_ID,
        bos_token_id=_BOS_ID,
        eos_token_id=_EOS_ID,
    )


def tiny_sequence_classifier(
    head_names: Sequence[str], *, seed: int = 0, **config: Any
) -> LlamaForSequenceClassification:
    """Untrained multi-head classifier in float32: logits (B, K) are raw scores, column k that of `head_names[k]`.

    `seed` draws the weights; `config` holds arguments of `tiny_llama_config`.

    Raises:
        ValueError: if `head_names` is a string, is empty or names a head twice.
    """
    if isinstance(head_names, str) or not head_names or len(set(head_names)) != len(head_names):
        raise ValueError(f"head_names={head_names!r} must be a list of distinct names, at least one.")
    llama_config = tiny_llama_config(**config)
    llama_config.id2label = dict(enumerate(head_names))
    llama_config.label2id = {name: index for index, name in enumerate(head_names)}
    llama_config.problem_type = "regression"
    # Not torch.manual_seed, which would also reset the generators of the accelerators.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LlamaForSequenceClassification(llama_config)


def tiny_causal_lm(seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """Untrained language model in float32: logits (B, T, V). `config` holds arguments of `tiny_llama_config`."""
    llama_config = tiny_llama_config(**config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LlamaForCausalLM(llama_config)


def _fields(template: str) -> list[str]:
    """Distinct field names of a template, in order of appearance."""
    return list(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name))


def _fill(template: str, index: int) -> str:
    """Text number `index` of a template: `index` in mixed radix, one digit per field, picks the words."""
    picked = {}
    for field in _fields(template):
        index, digit = divmod(index, len(_WORDS[field]))
        picked[field] = _WORDS[field][digit]
    return template.format(**picked)


def generate(style: str, n: int, *, seed: int) -> list[str]:
    """`n` distinct texts of one style: one line of about 80 to 125 ASCII bytes each, templates in turn.

    Different seeds draw from the same texts, so two draws may overlap: for disjoint splits, draw once and slice.

    Raises:
        ValueError: if `style` is not in `STYLES`, or `n` is negative or above the number of texts the style has.
    """
    if style not in _TEMPLATES:
        raise ValueError(f"style={style!r} is unknown; use one of {', '.join(STYLES)}.")
    templates = _TEMPLATES[style]
    sizes = [math.prod(len(_WORDS[field]) for field in _fields(template)) for template in templates]
    capacity = min(sizes) * len(templates)
    if not 0 <= n <= capacity:
        raise ValueError(f"n={n} must lie between 0 and {capacity}, the number of distinct texts of style {style!r}.")
    generator = random.Random(f"{style}:{seed}")
    indices = [generator.sample(range(size), math.ceil(n / len(templates))) for size in sizes]
    texts = []
    for position in range(n):
        turn, which = divmod(position, len(templates))
        texts.append(_fill(templates[which], indices[which][turn]))
    return texts


def shuffle_words(text: str, seed: int) -> str:
    """The whitespace-separated words of `text` in another order, joined by single spaces.

    Raises:
        ValueError: if all words are equal, so that no other order exists.
    """
    words = text.split()
    if len(set(words)) < 2:
        raise ValueError(f"text={text!r} has no other order of words; give a text with two different words.")
    shuffled = list(words)
    generator = random.Random(seed)
    while shuffled == words:
        generator.shuffle(shuffled)
    return " ".join(shuffled)


def noise(n: int, seed: int) -> list[str]:
    """`n` texts, each of 60 to 160 random lower-case letters and digits."""
    generator = random.Random(seed)
    symbols = string.ascii_lowercase + string.digits
    return ["".join(generator.choices(symbols, k=generator.randint(60, 160))) for _ in range(n)]


def _membership_split(texts: dict[str, list[str]], generator: random.Random) -> tuple[Dataset, Dataset]:
    """Positives from the first half of each style's texts; negatives from the second half, shuffles and noise."""
    positives: list[dict[str, Any]] = []
    negatives: list[dict[str, Any]] = []
    for style, drawn in texts.items():
        half = len(drawn) // 2
        others = [other for other in texts if other != style]
        positives += [{"text": text, "head": style} for text in drawn[:half]]
        negatives += [{"text": text, "tier": "soft", "heads": others} for text in drawn[half:]]
    for row in positives:
        shuffled = shuffle_words(row["text"], generator.getrandbits(32))
        negatives.append({"text": shuffled, "tier": "semi_firm", "heads": None})
    random_texts = noise(len(positives), generator.getrandbits(32))
    negatives += [{"text": text, "tier": "furthest", "heads": None} for text in random_texts]
    generator.shuffle(positives)
    generator.shuffle(negatives)
    text_column = Value("string")
    negative_columns = Features({"text": text_column, "tier": text_column, "heads": List(text_column)})
    return (
        Dataset.from_list(positives, features=Features({"text": text_column, "head": text_column})),
        Dataset.from_list(negatives, features=negative_columns),
    )


def corpus_membership(*, n_per_style: int = 200, seed: int = 0) -> tuple[Dataset, Dataset, Dataset, Dataset]:
    """Which style is a text written in? One head per style, positives against three tiers of negatives.

    Positives have columns `text`, `head`; negatives `text`, `tier`, `heads`. Each tier has as many rows as there are
    positives: `soft` are further texts of the styles (`heads` = every style but the text's own), `semi_firm` are the
    positives with their words shuffled, `furthest` is noise (both: `heads` null, every head). No style text is drawn
    twice, within a dataset or across the four.

    Returns `(train, negatives, evaluation, evaluation_negatives)`; training has `n_per_style` positives of each style,
    evaluation a quarter as many, at least one.

    Raises:
        ValueError: if `n_per_style` is below 1 or the styles have too few texts for it.
    """
    if n_per_style < 1:
        raise ValueError(f"n_per_style={n_per_style} must be at least 1.")
    n_evaluation = max(1, n_per_style // 4)
    drawn = {style: generate(style, 2 * (n_per_style + n_evaluation), seed=seed) for style in STYLES}
    generator = random.Random(f"corpus_membership:{seed}")
    train = _membership_split({style: texts[: 2 * n_per_style] for style, texts in drawn.items()}, generator)
    evaluation = _membership_split({style: texts[2 * n_per_style :] for style, texts in drawn.items()}, generator)
    return (*train, *evaluation)


def preference_pairs(n: int, *, seed: int = 0) -> Dataset:
    """`n` rows `prompt`, `chosen`, `rejected`, `head`, the heads `PREFERENCE_HEADS` and the styles taking turns.

    `tidy`: `rejected` is `chosen` with its words shuffled: capitals and stops in the wrong places, the same length.
    `short`: `rejected` is two other texts of the style: longer, and as tidy. No generated text is used twice, so the
    slices of one call are disjoint splits; two seeds are not.

    Raises:
        ValueError: if `n` is negative or the styles have too few texts for it.
    """
    if n < 0:
        raise ValueError(f"n={n} must not be negative.")
    # Eight rows (two heads, four styles) take four texts of each style: one for tidy, three for short.
    turns = math.ceil(n / (len(PREFERENCE_HEADS) * len(STYLES)))
    texts = {style: iter(generate(style, 4 * turns, seed=seed)) for style in STYLES}
    generator = random.Random(f"preference_pairs:{seed}")
    rows = []
    for index in range(n):
        head = PREFERENCE_HEADS[index % len(PREFERENCE_HEADS)]
        style = STYLES[index // len(PREFERENCE_HEADS) % len(STYLES)]
        chosen = next(texts[style])
        if head == "tidy":
            rejected = shuffle_words(chosen, generator.getrandbits(32))
        else:
            rejected = f"{next(texts[style])} {next(texts[style])}"
        prompt = f"Write a {style.replace('_', ' ')}:\n"
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "head": head})
    features = Features(dict.fromkeys(("prompt", "chosen", "rejected", "head"), Value("string")))
    return Dataset.from_dict({column: [row[column] for row in rows] for column in features}, features=features)
