"""Which proposals a round trains on: those that the original model finds plausible and that do not repeat themselves.

How this differs from the steer-heal-love loop it is modelled on:

1. Every proposal keeps its perplexity, its repetition and its first reason for rejection, so that a starved round can
   be explained.
2. Which of the passing proposals are kept is a seeded draw, not the order in which they came.
3. Repetition is counted in words and in characters at once. The perplexity limit alone lets loops pass: text that
   repeats is easy to predict.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from alignkit.kl_barrier.rounds.proposals import Proposal
from alignkit.kl_barrier.rounds.scoring import continuation_log_probs, encode_continuations
from alignkit.kl_barrier.rounds.signals import LARGEST_PERPLEXITY, capped_exp


class TooFewCompletionsError(ValueError):
    """Fewer completions passed the filters than a round needs."""


def perplexities(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    proposals: Sequence[Proposal],
    *,
    batch_size: int = 16,
    last_share: float = 1.0,
) -> list[float]:
    """Perplexity of each completion given its prompt, dropout off.

        exp(-1/m · sum over the last m completion tokens of log P(token | prompt, tokens before it))

    and at most 1e100 (230 nats per token), also for a token that has no probability at all, so that it is a number.
    Prompt and completion are tokenised jointly, as for training (`encode_continuations`).

    Args:
        last_share (`float`): m is ceil(last_share · tokens of the completion); a text that falls apart does so at its
            end, which the mean over all tokens hides.

    Raises:
        ValueError: an empty completion, or a last_share outside (0, 1].
    """
    if not 0 < last_share <= 1:
        raise ValueError(f"last_share={last_share} must lie in (0, 1]; 1 counts every token")
    empty = next((i for i, proposal in enumerate(proposals) if not proposal.completion), None)
    if empty is not None:
        raise ValueError(f"completion {empty} is empty and has no perplexity; leave it out")
    contexts, continuations = [], []
    for proposal in proposals:
        context, (continuation,) = encode_continuations(tokenizer, proposal.prompt, [proposal.completion])
        contexts.append(context)
        continuations.append(continuation)
    rows = continuation_log_probs(model, contexts, continuations, batch_size=batch_size)
    return [capped_exp(-row[-math.ceil(last_share * len(row)) :].mean().item()) for row in rows]


def repeated_ngram_share(
    text: str, n_words: Sequence[int] = (2, 3, 4), n_characters: Sequence[int] = (16, 32)
) -> float:
    """Largest share, in [0, 1], of n-grams of the text that have occurred before in it.

        max over n of 1 - (distinct n-grams) / (n-grams)

    over word n-grams for each n of `n_words` and character n-grams for each of `n_characters`, both in lower case and
    with blanks as single spaces. Words are what blanks separate, without punctuation around them; characters catch
    loops within words and in scripts without blanks. Lengths that the text does not have count 0. Longer texts repeat
    more, by nature: compare texts of like length.

    Raises:
        ValueError: an n below 1.
    """
    if min([*n_words, *n_characters], default=1) < 1:
        raise ValueError(f"n_words={n_words!r} and n_characters={n_characters!r} must be 1 or above")
    words = text.lower().split()
    bare = [stripped for word in words if (stripped := word.strip(".,;:!?\"'()[]{}-–—…“”‘’«»"))]
    line = " ".join(words)
    shares = [_repeated_share([tuple(bare[i : i + n]) for i in range(len(bare) - n + 1)]) for n in n_words]
    shares += [_repeated_share([line[i : i + n] for i in range(len(line) - n + 1)]) for n in n_characters]
    return max(shares, default=0.0)


def _repeated_share(ngrams: Sequence[object]) -> float:
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


@dataclass(frozen=True)
class FilterSettings:
    """What a proposal must satisfy, and how many are needed.

    Args:
        perplexity_limit (`float`): a completion at or above it under the original model is rejected; inf for
            none but those at the largest value that `perplexities` gives.
        perplexity_last_share (`float`): share of its last tokens that count (see `perplexities`).
        repetition_limit (`float`): a completion whose `repeated_ngram_share` is at or above it is rejected; above 1
            for none.
        deny_patterns (tuple of `str`): regular expressions; a completion in which one is found, whatever the case of
            its letters, is rejected.
        predicates (tuple of functions): `Proposal -> bool`; one that returns False rejects. Its `__name__` is the
            reason shown.
        keep_at_most (`int`): completions that a round trains on.
        min_kept (`int`): fewer than this are an error.
        batch_size (`int`): texts per forward of the original model.

    Raises:
        ValueError: a limit that is NaN or not above 0, counts that contradict each other, or a pattern that is broken.
    """

    perplexity_limit: float = 50.0
    perplexity_last_share: float = 1.0
    repetition_limit: float = 0.3
    deny_patterns: tuple[str, ...] = ()
    predicates: tuple[Callable[[Proposal], bool], ...] = ()
    keep_at_most: int = 64
    min_kept: int = 30
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("perplexity_limit", "perplexity_last_share", "repetition_limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if self.perplexity_last_share > 1:
            raise ValueError(f"perplexity_last_share={self.perplexity_last_share} must lie in (0, 1]")
        if isinstance(self.deny_patterns, str):
            raise ValueError(f"deny_patterns={self.deny_patterns!r} is one text; put it in a list")
        if not 1 <= self.min_kept <= self.keep_at_most:
            raise ValueError(f"min_kept={self.min_kept} must lie between 1 and keep_at_most={self.keep_at_most}")
        nameless = [predicate for predicate in self.predicates if not hasattr(predicate, "__name__")]
        if nameless:
            raise ValueError(f"predicates holds {nameless[0]!r}, which has no name to report; write it as a function")
        for pattern in self.deny_patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"deny_patterns holds {pattern!r}, which is no regular expression: {error}"
                ) from error


@dataclass(frozen=True)
class Judgement:
    """What the filters say of one proposal.

    Args:
        proposal (`Proposal`): the one judged.
        perplexity (`float`, *optional*): under the original model; `None` for an empty completion.
        repetition (`float`): `repeated_ngram_share`.
        reason (`str`, *optional*): the first filter that rejects it, in this order: "empty", "perplexity",
            "repetition", "pattern <regex>", "predicate <name>"; `None` for one that passes.
    """

    proposal: Proposal
    perplexity: float | None
    repetition: float
    reason: str | None


@dataclass(frozen=True)
class FilterResult:
    """All judgements, in the order of the proposals, and the proposals to train on.

    Args:
        kept (list of `Proposal`): at most `keep_at_most` of those that pass, in their order.
        judgements (list of `Judgement`): one for each proposal.
    """

    kept: list[Proposal]
    judgements: list[Judgement]

    @property
    def rejected(self) -> list[Judgement]:
        """Judgements with a reason. Passing proposals beyond `keep_at_most` are neither kept nor rejected."""
        return [judgement for judgement in self.judgements if judgement.reason is not None]

    @property
    def counts(self) -> dict[str, int]:
        """Number of rejected proposals by reason."""
        return dict(Counter(judgement.reason for judgement in self.judgements if judgement.reason is not None))

    @property
    def pass_rate(self) -> float:
        """Share of the proposals that pass every filter."""
        return pass_rate(self.judgements)


def pass_rate(judgements: Sequence[Judgement]) -> float:
    """Share of the judged proposals that pass every filter.

    Raises:
        ValueError: no judgements.
    """
    if not judgements:
        raise ValueError("nothing was judged, so there is no pass rate; judge at least one proposal")
    return sum(judgement.reason is None for judgement in judgements) / len(judgements)


def judge_proposals(
    original: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    proposals: Sequence[Proposal],
    settings: FilterSettings,
) -> list[Judgement]:
    """Judge every proposal. `original` is the model before the first round, or a callable that acts as it does.

    Raises:
        ValueError: no proposals.
    """
    if not proposals:
        raise ValueError("there are no proposals to filter; the proposer returned an empty list")
    written = [proposal for proposal in proposals if proposal.completion.strip()]
    scores = iter(
        perplexities(
            original, tokenizer, written, batch_size=settings.batch_size, last_share=settings.perplexity_last_share
        )
    )
    judgements = []
    for proposal in proposals:
        perplexity = next(scores) if proposal.completion.strip() else None
        repetition = repeated_ngram_share(proposal.completion)
        reason = _reason(proposal, perplexity, repetition, settings)
        judgements.append(Judgement(proposal, perplexity, repetition, reason))
    return judgements


def filter_proposals(
    original: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    proposals: Sequence[Proposal],
    settings: FilterSettings,
    *,
    seed: int = 0,
) -> FilterResult:
    """Judge the proposals and keep what a round trains on.

    Where more than `keep_at_most` pass, a draw without replacement decides, made from `seed` and the number that
    passed alone, so that what is kept is spread over prompts and strengths as what passed is.

    Raises:
        TooFewCompletionsError: fewer than `min_kept` pass; the message counts the reasons.
        ValueError: no proposals.
    """
    result = choose_kept(judge_proposals(original, tokenizer, proposals, settings), settings, seed=seed)
    lack = shortage([judgement.reason for judgement in result.judgements], settings)
    if lack is not None:
        raise TooFewCompletionsError(lack)
    return result


def choose_kept(judgements: Sequence[Judgement], settings: FilterSettings, *, seed: int) -> FilterResult:
    """The judgements with what is kept of them, as `filter_proposals` says; too few are left for `shortage` to say."""
    passed = [judgement.proposal for judgement in judgements if judgement.reason is None]
    if len(passed) > settings.keep_at_most:
        chosen = sorted(random.Random(seed).sample(range(len(passed)), settings.keep_at_most))
        passed = [passed[index] for index in chosen]
    return FilterResult(passed, list(judgements))


def shortage(reasons: Sequence[str | None], settings: FilterSettings) -> str | None:
    """In words that fewer than `min_kept` of the proposals with these reasons pass; None if enough do."""
    passed = sum(reason is None for reason in reasons)
    if passed >= settings.min_kept:
        return None
    counts = Counter(reason for reason in reasons if reason is not None)
    rejected = ", ".join(f"{count} by {reason}" for reason, count in sorted(counts.items()))
    return (
        f"{passed} of {len(reasons)} completions pass the filters and min_kept is {settings.min_kept}; "
        f"rejected: {rejected or 'none'}; propose more, steer less, or loosen the filter that rejects most"
    )


def _reason(proposal: Proposal, perplexity: float | None, repetition: float, settings: FilterSettings) -> str | None:
    """The first filter that rejects a proposal; None if all let it pass."""
    if perplexity is None:
        return "empty"
    # Written so that a perplexity which is not below the limit is rejected whatever it is.
    if not perplexity < min(settings.perplexity_limit, LARGEST_PERPLEXITY):
        return "perplexity"
    if repetition >= settings.repetition_limit:
        return "repetition"
    for pattern in settings.deny_patterns:
        if re.search(pattern, proposal.completion, re.IGNORECASE):
            return f"pattern {pattern}"
    for predicate in settings.predicates:
        if not predicate(proposal):
            return f"predicate {predicate.__name__}"
    return None
