"""What a round has done to the student: trait, and coherence as three measures that are never made one.

A model that only repeats itself passes any one of them: a loop of likely words has a low perplexity, a loop of answer
words has all its mass on answers, and a model that writes noise never repeats. So each is reported by itself.

How this differs from the answer-format score it is modelled on (`mean_pmass_allowed` of the tinymfv package):

1. Answers may be several tokens: probabilities of whole sequences are added, not of first tokens.
2. Nothing is generated in front of the forced prefix, so the measure has no sampling noise.
3. Scores stay per item. A prefix on which an answer cannot be scored is an error, never 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignkit.kl_barrier.rounds.filters import perplexities, repeated_ngram_share
from alignkit.kl_barrier.rounds.proposals import Proposal
from alignkit.kl_barrier.rounds.scoring import continuation_log_probs, encode_continuations

OPTIONS = "{options}"


@dataclass(frozen=True)
class AnswerProbe:
    """Forced prefixes, and the answers that are allowed after each.

    Args:
        prefixes (list of `str`): texts as the model reads them, ending where the answer begins. `{options}` in one
            stands for its answers, stripped and joined as in "red, green or blue"; it is then read in every rotation
            of their order, so that each answer stands in each place once.
        answers (list of `str`, or a list of lists, one for each prefix): the texts that may follow, joined as they
            are: " red" with its space in front.
        conjunction (`str`): joins the last two options.

    Raises:
        ValueError: no prefixes, another number of answer lists, a blank prefix or answer, or an answer named twice.
    """

    prefixes: Sequence[str]
    answers: Sequence[str] | Sequence[Sequence[str]]
    conjunction: str = " or "

    def __post_init__(self) -> None:
        check_prefixes(self.prefixes)
        shared = [isinstance(answers, str) for answers in self.answers]
        if isinstance(self.answers, str) or any(shared) != all(shared):
            raise ValueError(f"answers={self.answers!r} must be a list of texts, or a list of texts for each prefix")
        if not any(shared) and len(self.answers) != len(self.prefixes):
            raise ValueError(f"there are {len(self.prefixes)} prefixes and {len(self.answers)} lists of answers")
        for item in range(len(self.prefixes)):
            check_answers(self.allowed(item))

    def allowed(self, item: int) -> list[str]:
        """The answers allowed after prefix `item`."""
        if isinstance(self.answers[0], str):
            return [str(answer) for answer in self.answers]
        return list(self.answers[item])

    def orders(self, item: int) -> list[str]:
        """The texts of item `item`, one for each order of its options; one text alone without `{options}`."""
        prefix, words = self.prefixes[item], [answer.strip() for answer in self.allowed(item)]
        if OPTIONS not in prefix:
            return [prefix]
        rotations = [words[start:] + words[:start] for start in range(len(words))]
        return [prefix.replace(OPTIONS, self._join(words)) for words in rotations]

    def _join(self, words: Sequence[str]) -> str:
        return self.conjunction.join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def allowed_answer_mass(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, probe: AnswerProbe, *, batch_size: int = 16
) -> list[float]:
    """Probability in [0, 1] that the text after a forced prefix is one of the allowed answers, per item.

        mass = mean over option orders of sum over answers a of prod_t P(a_t | prefix, a_<t)

    Raises:
        ValueError: an answer whose tokens begin another answer, whose mass would count twice.
    """
    texts = [(item, text) for item in range(len(probe.prefixes)) for text in probe.orders(item)]
    sums = _answer_log_probs(
        model, tokenizer, [text for _, text in texts], [[probe.allowed(item)] for item, _ in texts], batch_size
    )
    per_item: list[list[float]] = [[] for _ in probe.prefixes]
    for (item, _), (log_mass,) in zip(texts, sums, strict=True):
        per_item[item].append(math.exp(log_mass))
    return [fmean(masses) for masses in per_item]


def answer_log_prob_margin(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prefixes: Sequence[str],
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    batch_size: int = 16,
) -> list[float]:
    """The trait: log sum P(positive answers | prefix) - log sum P(negative answers | prefix) in nats, per prefix.

    Texts are joined as they are: " happy" with its space in front. Both sets are given the same context tokens.

    Raises:
        ValueError: no prefixes, no answers, an answer in both sets, or one whose tokens begin another.
    """
    check_prefixes(prefixes)
    check_answer_sets(positive, negative)
    sums = _answer_log_probs(model, tokenizer, prefixes, [[positive, negative]] * len(prefixes), batch_size)
    return [log_positive - log_negative for log_positive, log_negative in sums]


@dataclass(frozen=True)
class CoherenceReport:
    """Three separate measures with their per-item values. There is no total, on purpose.

    Args:
        allowed_answer_masses (list of `float`): per item of the probe, in [0, 1]; falls when the model falls apart.
        repetitions (list of `float`): per completion, `repeated_ngram_share`, in [0, 1]; rises when it loops.
        perplexities (list of `float` or `None`): per completion under the original model, `None` for an empty one;
            rises when it writes what that model would not, and falls towards 1 when it loops: read it beside the
            repetitions.
    """

    allowed_answer_masses: list[float]
    repetitions: list[float]
    perplexities: list[float | None]

    @property
    def mean_allowed_answer_mass(self) -> float:
        """Mean over the items."""
        return fmean(self.allowed_answer_masses)

    @property
    def mean_repetition(self) -> float:
        """Mean over the completions."""
        return fmean(self.repetitions)

    @property
    def mean_perplexity(self) -> float:
        """Geometric mean over the completions that are not empty, so that one outlier does not decide it."""
        return math.exp(fmean(math.log(value) for value in self.perplexities if value is not None))


def measure_coherence(
    model: nn.Module,
    original: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    probe: AnswerProbe,
    completions: Sequence[Proposal],
    *,
    batch_size: int = 16,
) -> CoherenceReport:
    """The answer mass of `model`, and repetition and perplexity under `original` of the `completions` it wrote.

    Raises:
        ValueError: no completions, or only empty ones.
    """
    written = [proposal for proposal in completions if proposal.completion.strip()]
    if not written:
        raise ValueError(f"none of {len(completions)} completions has any text to measure; sample more from the model")
    values = iter(perplexities(original, tokenizer, written, batch_size=batch_size))
    return CoherenceReport(
        allowed_answer_mass(model, tokenizer, probe, batch_size=batch_size),
        repetition_rates([proposal.completion for proposal in completions]),
        [next(values) if proposal.completion.strip() else None for proposal in completions],
    )


def repetition_rates(texts: Sequence[str]) -> list[float]:
    """`repeated_ngram_share` of each text at its default lengths, in [0, 1]."""
    return [repeated_ngram_share(text) for text in texts]


def _answer_log_probs(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prefixes: Sequence[str],
    answer_sets: Sequence[Sequence[Sequence[str]]],
    batch_size: int,
) -> list[list[float]]:
    """For every prefix and each of its answer sets log sum over answers of P(answer | prefix), in nats."""
    contexts, continuations = [], []
    for prefix, sets in zip(prefixes, answer_sets, strict=True):
        answers = [answer for answers in sets for answer in answers]
        context, encoded = encode_continuations(tokenizer, prefix, answers)
        _check_no_answer_begins_another(prefix, answers, encoded)
        contexts += [context] * len(answers)
        continuations += encoded
    rows = iter(continuation_log_probs(model, contexts, continuations, batch_size=batch_size))
    return [[_log_sum([next(rows) for _ in answers]) for answers in sets] for sets in answer_sets]


def _log_sum(rows: Sequence[Tensor]) -> float:
    return torch.stack([row.sum() for row in rows]).logsumexp(0).item()


def _check_no_answer_begins_another(prefix: str, answers: Sequence[str], encoded: Sequence[list[int]]) -> None:
    for short, tokens in zip(answers, encoded, strict=True):
        for long, longer in zip(answers, encoded, strict=True):
            if short != long and longer[: len(tokens)] == tokens:
                raise ValueError(
                    f"after {prefix!r} the tokens of the answer {short!r} begin those of {long!r}, whose probability "
                    "would count twice; drop one, or end both, as with a full stop"
                )


def check_prefixes(prefixes: Sequence[str], name: str = "prefixes") -> None:
    """Raises a ValueError, under `name`, unless they are texts, at least one and none blank."""
    if isinstance(prefixes, str) or not prefixes or not all(text.strip() for text in prefixes):
        raise ValueError(f"{name}={prefixes!r} must be a list of texts, at least one and none blank")


def check_answers(answers: Sequence[str], name: str = "answers") -> None:
    """Raises a ValueError, under `name`, unless they are texts, at least one, none blank and none named twice."""
    check_prefixes(answers, name)
    repeated = sorted({answer for answer in answers if list(answers).count(answer) > 1})
    if repeated:
        raise ValueError(f"the {name} {repeated} are named twice, so their probability would count twice; drop one")


def check_answer_sets(positive: Sequence[str], negative: Sequence[str]) -> None:
    """Raises a ValueError unless both are sets of answers and no answer is in both."""
    check_answers(positive, "positive")
    check_answers(negative, "negative")
    both = sorted({*positive} & {*negative})
    if both:
        raise ValueError(f"{both} are named twice, as positive and as negative; leave each in the set that it shows")
