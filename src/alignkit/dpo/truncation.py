"""Cutting a preference pair to a number of tokens.

Differences from TRL's `DPOTrainer`, which cuts prompt and completion as one row:
1. The prompt is cut first, and once for both sides, so that chosen and rejected always follow the same prompt.
2. At least one token of each completion stays, so that no pair is dropped for its prompt.
3. What was cut is counted.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

PromptTruncation = Literal["keep_end", "keep_start"]


class CutPair(NamedTuple):
    """A pair that fits, and how many tokens were cut of each part."""

    prompt: Any
    chosen: Any
    rejected: Any
    n_cut_prompt: int
    n_cut_chosen: int
    n_cut_rejected: int


def cut_pair(
    prompt: Sequence[int],
    chosen: Sequence[int],
    rejected: Sequence[int],
    *,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    prompt_truncation: PromptTruncation = "keep_end",
) -> CutPair:
    """Cut a pair to at most `max_length` tokens on each side.

        P = min(|prompt|, max_prompt_length, max_length − 1)      tokens of the prompt, the same for both sides
        C = min(|completion|, max_length − P) >= 1                tokens of a completion, its first ones

    Args:
        prompt, chosen, rejected: token ids, in anything that has a length and slices. A prompt may be empty.
        max_length: of prompt and completion together; `None` for no limit.
        max_prompt_length: of the prompt; `None` for `max_length − 1`.
        prompt_truncation: whether the end or the start of a longer prompt stays.

    Raises:
        ValueError: an empty completion, or limits that leave no room for a token.
    """
    check_limits(max_length, max_prompt_length, prompt_truncation)
    for side, completion in (("chosen", chosen), ("rejected", rejected)):
        if len(completion) == 0:
            raise ValueError(
                f"the {side} completion after the prompt of {len(prompt)} tokens {list(prompt[-8:])} has no tokens; "
                "leave such rows out of the dataset"
            )
    n_prompt = longest_prompt(len(prompt), max_length, max_prompt_length)
    start = len(prompt) - n_prompt if prompt_truncation == "keep_end" else 0
    stop = None if max_length is None else max_length - n_prompt
    cut_chosen, cut_rejected = chosen[:stop], rejected[:stop]
    return CutPair(
        prompt[start : start + n_prompt],
        cut_chosen,
        cut_rejected,
        len(prompt) - n_prompt,
        len(chosen) - len(cut_chosen),
        len(rejected) - len(cut_rejected),
    )


def longest_prompt(n_tokens: int, max_length: int | None, max_prompt_length: int | None) -> int:
    """How many of the `n_tokens` of a prompt stay."""
    limits = [max_prompt_length, None if max_length is None else max_length - 1]
    return min([n_tokens, *(limit for limit in limits if limit is not None)])


def check_limits(max_length: int | None, max_prompt_length: int | None, prompt_truncation: str) -> None:
    """Raises ValueError if the limits leave no room for a token of the prompt and one of each completion."""
    if max_length is not None and max_length < 2:
        raise ValueError(f"max_length is {max_length}; a prompt and a completion need at least 2 tokens")
    if max_prompt_length is not None and max_prompt_length < 1:
        raise ValueError(f"max_prompt_length is {max_prompt_length}; it must be at least 1")
    if max_length is not None and max_prompt_length is not None and max_prompt_length >= max_length:
        raise ValueError(
            f"max_prompt_length is {max_prompt_length}; so that completions have room it must be below max_length, "
            f"which is {max_length}"
        )
    if prompt_truncation not in get_args(PromptTruncation):
        raise ValueError(f"prompt_truncation is {prompt_truncation!r}; choose 'keep_end' or 'keep_start'")
