"""Tokenizer and model for `alignkit.tasks.tables`, small enough to be taught on a CPU in minutes."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignkit.evaluation.tatqa_text import answer_text
from alignkit.tasks.tables import NAMES, VALUES, outside_texts, table_contexts
from alignkit.tasks.tatqa_prompts import ROLE, tatqa_prompts

_SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
_BLANK = "Ġ"  # as byte-level BPE spells it
_MOST_TOKENS = 1024
_ROPE_THETA = 100_000.0  # slow rotations, under which a word is still found again a table further on
_POSITION_STRENGTH = 5.0
_MATCH_STRENGTH = 2.5


def tables_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of about 1,000 tokens, in which a word, a number of a table and the role line are one token each.

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
    backend.train_from_iterator(_typical_texts(), trainer)
    backend.add_tokens([AddedToken(ROLE, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", backend.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="right", **_SPECIAL_TOKENS)


def _typical_texts() -> Iterator[str]:
    contexts = table_contexts(400, n_questions=8)
    answers = {
        question["uid"]: answer_text(question["answer"], question["scale"])
        for context in contexts
        for question in context["questions"]
    }
    for uid, prompt in tatqa_prompts(contexts).items():
        yield f"{str(prompt).removeprefix(ROLE)} {answers[uid]}"
    for name in NAMES:
        yield f"Facts: {name} 1, {name} 2.\n\nQuestion: {name}\nAnswer:" * 100
    yield from (f" {value}" * 100 for value in VALUES)
    yield from outside_texts(400)


def tables_model(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, *, hidden_size: int = 96, layers: int = 3, heads: int = 4
) -> LlamaForCausalLM:
    """Untrained Llama of about 560,000 parameters in float32 for `tables_tokenizer`, which learns to look up soon.

    Two layers start close to attention that finds a word again and reads what stands behind it (an induction circuit,
    Olsson et al. 2022), which a training would otherwise have to form first:

    - First layer: the biases of queries and keys make head j look j tokens back, and what it sees is written down.
    - Second layer: queries are what is written there (the first head's: the token itself), keys the sum of what all
      heads wrote. So a position attends to those that have one of the same words shortly before them.
    - From the second layer on, output projections are value projections transposed, so that what is attended to is
      passed on (mimetic initialisation, Trockman and Kolter 2023); the head is a small copy of the embeddings.

    Raises:
        ValueError: if `hidden_size` is not an even multiple of `heads`, or there are fewer than two layers.
    """
    if hidden_size % (2 * heads):
        raise ValueError(f"hidden_size={hidden_size} must be an even multiple of heads={heads}.")
    if layers < 2:
        raise ValueError(f"layers={layers} must be at least 2, which it takes to find a word and read on.")
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
        _embed(model, tokenizer.get_vocab())
        first, second, *_ = layers_of = model.model.layers
        for layer in layers_of:
            layer.mlp.down_proj.weight.mul_(0.3)
            layer.self_attn.o_proj.weight.copy_(layer.self_attn.v_proj.weight.T)
        _look_back(first.self_attn, heads)
        _write_and_match(first.self_attn, second.self_attn, heads)
    return model


def _embed(model: LlamaForCausalLM, vocabulary: Mapping[str, int]) -> None:
    """Words in the first half of the H dimensions, with variance 1; the second half is free to be written to.

    A word or number is nearly the same with and without the blank in front of it.
    """
    weight = model.model.embed_tokens.weight
    weight.normal_()
    for token, with_blank in vocabulary.items():
        without = vocabulary.get(token.removeprefix(_BLANK), with_blank)
        if without != with_blank:
            weight[without] = 0.8 * weight[with_blank] + 0.6 * weight[without]
    weight[:, weight.shape[1] // 2 :] = 0
    model.lm_head.weight.copy_(0.1 * weight)


def _look_back(attention: Any, heads: int) -> None:
    """Biases under which head j attends j tokens back, j from 1: the key there, once rotated, parallels the query."""
    half = attention.head_dim // 2
    frequencies = _ROPE_THETA ** (-torch.arange(half) / half)
    part = torch.full((half,), _POSITION_STRENGTH / 2**0.5)
    queries, keys = [], []
    for offset in range(1, heads + 1):
        angle = offset * frequencies
        queries += [part, part]
        keys += [part * (angle.cos() - angle.sin()), part * (angle.cos() + angle.sin())]
    attention.q_proj.bias.copy_(torch.cat(queries))
    attention.k_proj.bias.copy_(torch.cat(keys))
    # In this layer words count for less than positions.
    attention.q_proj.weight.mul_(0.1)
    attention.k_proj.weight.mul_(0.1)


def _write_and_match(writing: Any, matching: Any, heads: int) -> None:
    """The first layer's head j writes a digest of the word it sees to its slot; the second layer matches slots."""
    hidden_size, dim = writing.q_proj.in_features, writing.head_dim
    size = hidden_size // (2 * heads)  # of a digest: half a head
    digest = torch.zeros(size, hidden_size)
    digest[:, : hidden_size // 2] = torch.randn(size, hidden_size // 2) * (2 / hidden_size) ** 0.5
    slots = torch.eye(hidden_size)[hidden_size // 2 :].split(size)  # heads x (size, H)
    # Of the pairs of dimensions that are rotated together the slower half, which still agree a table further on.
    slow = torch.cat([torch.arange(dim // 4, dim // 2), torch.arange(3 * dim // 4, dim)])
    writing.o_proj.weight.mul_(0.1)
    matching.q_proj.weight.mul_(0.1)
    matching.k_proj.weight.mul_(0.1)
    for head in range(heads):
        rows = head * dim + slow
        writing.v_proj.weight[rows] = digest
        writing.o_proj.weight[:, rows] = slots[head].T
        matching.q_proj.weight[rows] = _MATCH_STRENGTH * (slots[head] if head else digest)
        matching.k_proj.weight[rows] = _MATCH_STRENGTH * (torch.stack(slots).sum(0) if head else slots[0])
