"""Perplexity of texts: negative log-likelihood of every token, summed and divided once.

How this differs from `evaluate`'s perplexity and from averaging a model's loss over batches:

1. Every token of every text is scored, the first one too: a text stands behind the token that begins texts, or, for a
   tokenizer without one (Qwen), behind the token that ends them.
2. Texts longer than the context are read in overlapping windows instead of being cut; each token is scored once.
3. Sums and counts are kept for each text. A mean of means would give a short text the weight of a long one.
4. Bits per byte compare models whose tokenizers cut texts into different numbers of tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from alignkit.evaluation.generation import encode_prompt
from alignkit.evaluation.metrics.inputs import check_equal_lengths, check_texts
from alignkit.row_checks import check_characters


@dataclass(frozen=True)
class TextLikelihoods:
    """Negative log-likelihood of each text, and what it can be divided by.

    Args:
        nll_nats: of each text, the sum over its tokens of -ln p(token | tokens before it).
        n_tokens, n_bytes, n_characters: of each text; tokens are those that were scored, bytes are of UTF-8.
    """

    nll_nats: list[float]
    n_tokens: list[int]
    n_bytes: list[int]
    n_characters: list[int]

    @property
    def nats_per_token(self) -> float:
        """Sum over all texts of NLL / number of all tokens."""
        return math.fsum(self.nll_nats) / sum(self.n_tokens)

    @property
    def perplexity(self) -> float:
        """exp(nats_per_token), a number of tokens. Only models of one tokenizer can be compared by it."""
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Sum over all texts of NLL / (ln 2 · number of all bytes), comparable between tokenizers."""
        return math.fsum(self.nll_nats) / math.log(2) / sum(self.n_bytes)

    def item_nats_per_token(self) -> list[float]:
        """NLL / tokens of each text. Their mean is not [`nats_per_token`], unless all texts are equally long."""
        return [nll / n for nll, n in zip(self.nll_nats, self.n_tokens, strict=True)]

    def item_nats_per_character(self) -> list[float]:
        """NLL / characters of each text."""
        return [nll / n for nll, n in zip(self.nll_nats, self.n_characters, strict=True)]

    def item_bits_per_byte(self) -> list[float]:
        """NLL / (ln 2 · bytes) of each text."""
        return [nll / math.log(2) / n for nll, n in zip(self.nll_nats, self.n_bytes, strict=True)]


def text_likelihoods(texts: Sequence[str], nlls_nats: Sequence[Sequence[float]]) -> TextLikelihoods:
    """Sums and counts of texts.

    Args:
        nlls_nats: of each text, the negative log-likelihood of each of its tokens, from [`token_nlls`] or
            `Subject.token_nlls`. Where the first token of a text was not scored, values per byte are a little too low.

    Raises:
        ValueError: inputs as [`check_texts`] says, a text without a scored token, or an NLL that is not finite or
            below 0.
    """
    check_texts(texts=texts)
    check_equal_lengths(texts=texts, nlls_nats=nlls_nats)
    for place, nlls in enumerate(nlls_nats):
        if not len(nlls):
            raise ValueError(f"texts[{place}] is {texts[place]!r:.60}, of which no token was scored; leave it out")
        bad = next((nll for nll in nlls if not (math.isfinite(nll) and nll >= 0)), None)
        if bad is not None:
            raise ValueError(f"an NLL of texts[{place}] is {bad}; it must be finite and at least 0: see the model")
    return TextLikelihoods(
        nll_nats=[math.fsum(nlls) for nlls in nlls_nats],
        n_tokens=[len(nlls) for nlls in nlls_nats],
        n_bytes=[len(text.encode()) for text in texts],
        n_characters=[len(text) for text in texts],
    )


@torch.no_grad()
def token_nlls(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    max_tokens: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
) -> list[list[float]]:
    """Negative log-likelihood in nats of each token of each text under a causal language model.

    The result is the same for every batch size, up to rounding. A row of T tokens needs logits of T · V numbers in
    float32: with a long context and a large vocabulary lower `max_tokens` or `batch_size`.

    Args:
        model: a causal language model or a `PeftModel` of one.
        tokenizer: of the model.
        max_tokens: of a window, the token before the text included; the model's positions by default.
        stride: tokens by which a window moves on, 1 to `max_tokens` - 1; half a window by default. In a text longer
            than a window every token then sees at least `max_tokens` - `stride` tokens before it, but for those in the
            first window. Smaller is truer and slower.
        batch_size: windows at a time.

    Raises:
        ValueError: inputs as [`check_texts`] says, a text without tokens, a setting out of range, or a tokenizer with
            neither a token that begins texts nor one that ends them.
    """
    max_tokens, stride = _window_size(model, max_tokens, stride)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    rows = _rows(tokenizer, texts)
    windows = [(row, *window) for row, ids in enumerate(rows) for window in _windows(len(ids), max_tokens, stride)]
    # The longest first, so that a batch that does not fit into memory is the first one.
    windows.sort(key=lambda window: window[1] - window[2])
    nlls: list[list[float]] = [[0.0] * (len(ids) - 1) for ids in rows]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for start in range(0, len(windows), batch_size):
            batch = windows[start : start + batch_size]
            losses = _batch_nlls(model, [rows[row][first:end] for row, first, end, _ in batch])
            for (row, first, end, scored), of_window in zip(batch, losses, strict=True):
                nlls[row][scored - 1 : end - 1] = of_window[scored - first - 1 :]
    finally:
        for module in training:
            module.training = True
    return nlls


def plain_token_nlls(
    model: Any, tokenizer: Any, texts: Sequence[str], *, max_tokens: int | None = None, stride: int | None = None
) -> list[list[float]]:
    """[`token_nlls`] written plainly: one forward for each token, over the tokens that its window shows it."""
    max_tokens, stride = _window_size(model, max_tokens, stride)
    nlls = []
    for ids in _rows(tokenizer, texts):
        of_text = []
        for place in range(1, len(ids)):
            # The first window that reaches the token; the last one may be shorter than the others.
            n_moves = max(0, math.ceil((place + 1 - max_tokens) / stride))
            context = torch.tensor([ids[n_moves * stride : place]], device=model.device)
            with torch.no_grad():
                logits = model(input_ids=context, use_cache=False).logits[0, -1].float()
            of_text.append(-logits.log_softmax(dim=-1)[ids[place]].item())
        nlls.append(of_text)
    return nlls


def _window_size(model: Any, max_tokens: int | None, stride: int | None) -> tuple[int, int]:
    positions = model.config.get_text_config().max_position_embeddings
    if max_tokens is None:
        max_tokens = positions
    if not 2 <= max_tokens <= positions:
        raise ValueError(f"max_tokens={max_tokens} must be from 2 to {positions}, the positions of the model")
    if stride is None:
        stride = max_tokens // 2
    if not 1 <= stride < max_tokens:
        raise ValueError(f"stride={stride} must be from 1 to {max_tokens - 1}, below max_tokens={max_tokens}")
    return max_tokens, stride


def _rows(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, behind the token that begins it."""
    check_texts(texts=texts)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise ValueError("the tokenizer has neither bos_token nor eos_token to stand before a text; set one of them")
    for place, text in enumerate(texts):
        check_characters(text, f"texts[{place}]")
    rows = [encode_prompt(tokenizer, text) for text in texts]
    rows = [ids if ids[:1] == [first] else [first, *ids] for ids in rows]
    empty = next((place for place, ids in enumerate(rows) if len(ids) < 2), None)
    if empty is not None:
        raise ValueError(f"texts[{empty}] is {texts[empty]!r:.60}, which has no tokens to score; leave it out")
    return rows


def _windows(length: int, max_tokens: int, stride: int) -> list[tuple[int, int, int]]:
    """(first, end, scored) of each window: it reads tokens first to end, and scores those from `scored` on."""
    windows = [(0, min(max_tokens, length), 1)]
    while windows[-1][1] < length:
        first, end, _ = windows[-1]
        windows.append((first + stride, min(first + stride + max_tokens, length), end))
    return windows


def _batch_nlls(model: Any, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """NLL of all but the first token of each row. Rows are padded behind their end, which no token of theirs sees."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (B, T, V)
    # Row by row, because all logits at once in float32 may be the largest tensor of an evaluation.
    return [
        cross_entropy(of_row[: len(row) - 1].float(), row_ids[1 : len(row)], reduction="none").tolist()
        for row, of_row, row_ids in zip(rows, logits, ids, strict=True)
    ]
