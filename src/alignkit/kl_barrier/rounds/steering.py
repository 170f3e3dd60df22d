"""Proposals from activation steering: the student writes while a direction between two personas is added to it.

How this differs from the steer-heal-love loop it is modelled on:

1. The search for the dose samples with the same random numbers at every dose, which takes most of the noise out of
   comparing doses, and it returns a dose that was itself seen to pass.
2. The dose is judged at the largest strength by the filters of the round, all of them.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignkit.kl_barrier.rounds.directions import (
    check_persona,
    decoder_layers,
    layers_in_band,
    persona_direction,
    steer,
)
from alignkit.kl_barrier.rounds.filters import FilterSettings, judge_proposals, pass_rate
from alignkit.kl_barrier.rounds.proposals import Proposal, render_prompt, sample_completions
from alignkit.reference.switch import AdapterSwitch


@dataclass(frozen=True)
class StrengthSearch:
    """Result of `find_strength`.

    Args:
        strength (`float`): the highest that was seen to pass; `low` if none was.
        reached (`bool`): whether one was.
        tried (list of pairs): (strength, pass rate) in the order of the tries.
    """

    strength: float
    reached: bool
    tried: list[tuple[float, float]]


def find_strength(
    pass_rate: Callable[[float], float], low: float, high: float, target: float, *, steps: int = 5
) -> StrengthSearch:
    """Bisection on log strength for the highest strength in [low, high] whose pass rate is at least `target`.

    `high` is tried first and is the answer if it passes; then `low`; then `steps` times the geometric mean of the
    highest strength that passed and the lowest above it that failed, which narrows high/low to its 2^steps-th root.
    The pass rate is taken to fall with strength. Where noise breaks that, no strength is tried twice and the answer
    is still one that passed when tried, perhaps below a higher one that would pass too.

    Raises:
        ValueError: bounds that are not 0 < low < high, a target outside [0, 1], or negative steps.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"low={low} and high={high} must satisfy 0 < low < high")
    if not 0 <= target <= 1 or steps < 0:
        raise ValueError(f"target={target} must lie in [0, 1] and steps={steps} must not be negative")
    tried: list[tuple[float, float]] = []

    def passes(strength: float) -> bool:
        tried.append((strength, pass_rate(strength)))
        return tried[-1][1] >= target

    if passes(high):
        return StrengthSearch(high, True, tried)
    if not passes(low):
        return StrengthSearch(low, False, tried)
    passed, failed = low, high
    for _ in range(steps):
        middle = math.sqrt(passed * failed)
        if passes(middle):
            passed = middle
        else:
            failed = middle
    return StrengthSearch(passed, True, tried)


@dataclass(frozen=True)
class ActivationSteering:
    """Proposer `(model, tokenizer, round_index, seed) -> list[Proposal]`: completions of the steered student.

    Each call takes the persona direction of the model it is given, finds the dose, and samples
    `completions_per_prompt` completions of every prompt at every strength times that dose. `propose` gives the search
    for the dose as well, which `run_rounds` records.

    Args:
        positive, negative (`str` or list of `str`): persona texts (see `persona_direction`).
        contexts (list of `str`): where the personas are compared; more of them, and more diverse, give less noise.
        prompts (list of `str`): what is completed, through the chat template if the tokenizer has one.
        layer_band (pair of `float`): shares of the depth in which the direction is added (see `layers_in_band`).
        strengths (list of `float`): multiples of the direction, before the dose; negative ones steer the other way.
        completions_per_prompt (`int`): for each strength.
        max_new_tokens, temperature, top_p, top_k, batch_size: of sampling (see `sample_completions`).
        separator (`str`): between persona and context where there is no chat template.
        target_pass_rate (`float`, *optional*): the dose is the highest in `dose_range` at which this share of
            `probe_samples` completions, sampled at the largest strength, passes `filters`; `None`: the dose is 1.
        dose_range (pair of `float`), probe_steps (`int`): bounds and steps of the search (`find_strength`). If not
            even the lowest dose passes it is used all the same, and the filters of the round say what is wrong.
        probe_samples (`int`): completions for each dose tried.
        filters (`FilterSettings`): what passes; use those of the round.
        original (`nn.Module`, *optional*): the model whose perplexity counts. By default the model's own base: a
            `PeftModel` with its adapters off, any other model as it is.

    Raises:
        ValueError: an empty persona, no contexts, prompts or strengths, or a count below 1.
    """

    positive: str | Sequence[str]
    negative: str | Sequence[str]
    contexts: Sequence[str]
    prompts: Sequence[str]
    layer_band: tuple[float, float] = (0.45, 0.55)
    strengths: Sequence[float] = (0.5, 0.75, 1.0)
    completions_per_prompt: int = 2
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 64
    batch_size: int = 32
    separator: str = "\n"
    target_pass_rate: float | None = 0.75
    dose_range: tuple[float, float] = (0.2, 4.0)
    probe_steps: int = 4
    probe_samples: int = 32
    filters: FilterSettings = field(default_factory=FilterSettings)
    original: nn.Module | None = None

    def __post_init__(self) -> None:
        check_persona("positive", self.positive)
        check_persona("negative", self.negative)
        for name in ("contexts", "prompts"):
            texts = getattr(self, name)
            if isinstance(texts, str) or not texts or not all(texts):
                raise ValueError(f"{name}={texts!r} must be a list of texts, at least one and none empty")
        if not self.strengths:
            raise ValueError("strengths is empty; give at least one multiple of the direction, such as 1.0")
        for name in ("completions_per_prompt", "max_new_tokens", "batch_size", "probe_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or above")

    def __call__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, round_index: int, seed: int
    ) -> list[Proposal]:
        return self.propose(model, tokenizer, round_index, seed)[0]

    def propose(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, round_index: int, seed: int
    ) -> tuple[list[Proposal], StrengthSearch | None]:
        """The proposals, and how their dose was found; None where `target_pass_rate` is None and the dose is 1."""
        direction = self.direction(model, tokenizer)
        search = None
        if self.target_pass_rate is not None:
            search = self.find_dose(model, tokenizer, direction, _derived(seed, round_index, "dose"))
        dose = 1.0 if search is None else search.strength
        prompts = [prompt for prompt in self.prompts for _ in range(self.completions_per_prompt)]
        proposals = [
            proposal
            for strength in self.strengths
            for proposal in self._sample(
                model, tokenizer, prompts, direction, strength * dose, _derived(seed, round_index, strength)
            )
        ]
        return proposals, search

    def direction(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[int, Tensor]:
        """The persona direction of the model in each layer of the band."""
        layers = layers_in_band(len(decoder_layers(model)), self.layer_band)
        return persona_direction(
            model,
            tokenizer,
            self.positive,
            self.negative,
            self.contexts,
            layers,
            separator=self.separator,
            batch_size=self.batch_size,
        )

    def find_dose(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, direction: Mapping[int, Tensor], seed: int
    ) -> StrengthSearch:
        """The multiplier of all strengths, with the pass rate of every dose tried.

        Raises:
            ValueError: `target_pass_rate` is `None`.
        """
        if self.target_pass_rate is None:
            raise ValueError("target_pass_rate is None, so there is no dose to find; give a share such as 0.75")
        largest = max(self.strengths, key=abs)
        prompts = list(islice(cycle(self.prompts), self.probe_samples))

        def share_that_passes(dose: float) -> float:
            proposals = self._sample(model, tokenizer, prompts, direction, largest * dose, seed)
            with _original(model, self.original) as original:
                return pass_rate(judge_proposals(original, tokenizer, proposals, self.filters))

        return find_strength(share_that_passes, *self.dose_range, self.target_pass_rate, steps=self.probe_steps)

    def _sample(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        direction: Mapping[int, Tensor],
        strength: float,
        seed: int,
    ) -> list[Proposal]:
        rendered = [render_prompt(tokenizer, prompt) for prompt in prompts]
        with steer(model, direction, strength):
            return sample_completions(
                model,
                tokenizer,
                rendered,
                seed=seed,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                batch_size=self.batch_size,
                strength=strength,
            )


def _derived(*parts: float | str) -> int:
    """A seed for this purpose alone: every round and every strength draws its own random numbers."""
    return random.Random(":".join(map(str, parts))).getrandbits(63)


@contextmanager
def _original(model: nn.Module, original: nn.Module | None) -> Iterator[nn.Module]:
    """The model whose perplexity counts: `original` if there is one, else the base of the `model`."""
    if original is not None:
        yield original
    elif isinstance(model, PeftModel):
        with AdapterSwitch(model, None).on():
            yield model
    else:
        yield model
