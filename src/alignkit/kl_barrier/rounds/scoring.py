"""Log-probabilities of continuations, token by token: what perplexity, answer mass and trait are made of.

Texts are tokenised jointly: the prefix together with the continuation, as a model reads them. Where the tokenizer
merges characters across the boundary, the boundary moves back to the last token that both readings share, so that the
continuation's log-probability is that of a token sequence the tokenizer would really produce.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradient and no dropout inside; every module's own training flag comes back on exit, also after an error."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in in_training:
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """The device that takes the model's inputs."""
    return next(model.parameters()).device


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that goes on: special tokens in front as the tokenizer puts them, none appended."""
    token_ids: list[int] = tokenizer(text)["input_ids"]
    eos = tokenizer.eos_token
    if eos and token_ids[-1:] == [tokenizer.eos_token_id] and not text.endswith(eos):
        return token_ids[:-1]
    return token_ids


def encode_continuations(
    tokenizer: PreTrainedTokenizerBase, prefix: str, continuations: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Context and continuations as token ids: `context + continuations[i]` is the encoding of `prefix + text i`.

    The context is the longest start that the encodings of the prefix and of all joined texts share: all continuations
    are given the same context. Texts are joined as they are: a word needs its space in front.

    Raises:
        ValueError: no token of context, or a continuation that adds no token.
    """
    encoded = [encode(tokenizer, prefix), *(encode(tokenizer, prefix + text) for text in continuations)]
    shared = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*encoded, strict=False)))
    if shared == 0:
        raise ValueError(
            f"the prefix {prefix!r} leaves no token in front of {continuations[0]!r} to start from; give a prefix, or "
            "a tokenizer that puts a beginning-of-sequence token in front"
        )
    for text, token_ids in zip(continuations, encoded[1:], strict=True):
        if len(token_ids) == shared:
            raise ValueError(f"the continuation {text!r} adds no token to {prefix!r}; give it at least one character")
    return encoded[0][:shared], [token_ids[shared:] for token_ids in encoded[1:]]


def pad(rows: Sequence[Sequence[int]], device: torch.device, *, side: str) -> tuple[Tensor, Tensor]:
    """`input_ids` and `attention_mask` (B, T), padded on the `side` "left" or "right" with an id that is masked."""
    length = max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(len(row))
        input_ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return input_ids.to(device), mask.to(device)


def continuation_log_probs(
    model: nn.Module,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch_size: int = 16,
) -> list[Tensor]:
    """log P(token | all tokens before it) in nats for every token of each continuation, dropout off.

    Args:
        model (`nn.Module`): a causal language model, a `PeftModel` around one, or a module that is called alike.
        contexts, continuations (lists of lists of `int`): row i is `contexts[i] + continuations[i]`, neither empty.
        batch_size (`int`): texts per forward. Rows that differ in their last token alone share one.

    Returns:
        for each row a float64 tensor (n,) on the CPU, n the tokens of its continuation. The softmax is float32.

    Raises:
        ValueError: a log-probability that is NaN, as of a model that diverged.
    """
    readings: dict[tuple[int, ...], list[int]] = {}  # what the model reads -> the rows that need it
    for row, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        readings.setdefault((*context, *continuation[:-1]), []).append(row)
    by_length = sorted(readings, key=len)
    log_probs: list[Tensor] = [torch.empty(0)] * len(contexts)
    with evaluating(model):
        for start in range(0, len(by_length), batch_size):
            batch = by_length[start : start + batch_size]
            input_ids, mask = pad(batch, device_of(model), side="right")
            logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits  # (B, T, V)
            picked = [(place, row) for place, reading in enumerate(batch) for row in readings[reading]]
            for (_, row), values in zip(
                picked, _read_off(logits, [(p, contexts[row], continuations[row]) for p, row in picked]), strict=True
            ):
                log_probs[row] = values
    broken = next((row for row, values in enumerate(log_probs) if values.isnan().any()), None)
    if broken is not None:
        raise ValueError(
            f"the log-probability of continuation {broken} is NaN; the model diverged, or its dtype cannot hold the "
            "activations: load it in float32 or bfloat16"
        )
    return log_probs


def _read_off(logits: Tensor, rows: Sequence[tuple[int, Sequence[int], Sequence[int]]]) -> list[Tensor]:
    """Log-probabilities of each row (place in the batch, context, continuation) from the logits (B, T, V)."""
    length = logits.shape[1]
    positions = torch.cat(
        [place * length + len(context) - 1 + torch.arange(len(tokens)) for place, context, tokens in rows]
    )
    targets = torch.tensor([token for _, _, tokens in rows for token in tokens])
    # Answers to one prefix ask the same position for different tokens: each position is normalised once.
    distinct, back = positions.unique(return_inverse=True)
    normalised = logits.flatten(0, 1)[distinct.to(logits.device)].float().log_softmax(-1)
    values = normalised[back.to(logits.device), targets.to(logits.device)].double().cpu()
    return list(values.split([len(tokens) for _, _, tokens in rows]))
