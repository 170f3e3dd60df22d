"""Common random numbers: all members of a population sample with the same noise.

The difference of two members' rewards then comes from their weights, not from the luck of the draw.

How this differs from `do_sample=True`, and why:

1. A token is the argmax of log p + Gumbel noise (Gumbel 1954), which has the distribution p. Noise is attached to
   tokens, so that two members with nearly equal p choose the same one; inverse-CDF sampling with a shared number
   would attach it to the order of the vocabulary.
2. The noise of a row is a function of (seed, step, prompt, sample, position) alone: equal for all members, whatever
   the size of the population, its chunks, the padding of the prompts or the other rows are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from .noise import member_noises


class SharedGumbelProcessor(LogitsProcessor):
    """Turns greedy decoding into sampling with noise that all members share.

    Give it to `generate` or [`evaluate_population`] as the last of `logits_processor`, with `do_sample=False`. Logits
    are divided by the temperature, cut to the `top_k` largest, then to the smallest set with probability `top_p`, in
    the order and with the code of `generate`; the rest is sampled from.

    Args:
        seed, step (`int`): of the run and the optimiser's step.
        keys (`Sequence[tuple[int, int]]`): (prompt, sample) of each of the M rows of one member. A prompt's number is
            the same wherever in the data set's batches it appears; samples of one prompt differ in their number.
        prompt_length (`int`): T, padding included.
        temperature (`float`): above 0.
        top_k (`int`): 0 for all tokens.
        top_p (`float`): 1 for all tokens.

    Raises:
        ValueError: no or repeated keys, or a temperature that is not above 0.
    """

    def __init__(
        self,
        *,
        seed: int,
        step: int,
        keys: Sequence[tuple[int, int]],
        prompt_length: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ):
        if not keys or len(set(keys)) != len(keys):
            raise ValueError(f"keys is {list(keys)}; give a (prompt, sample) of its own to each of at least one row")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0: leave this out to decode greedily")
        self.seed = seed
        self.step = step
        self.prompt_length = prompt_length
        self._names = [f"sampling/{prompt}/{sample}" for prompt, sample in keys]
        self._warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(float(temperature))]
        if top_k:
            self._warpers.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            self._warpers.append(TopPLogitsWarper(top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Perturbed log-probabilities, of which `generate` takes the largest.

        Args:
            input_ids (`Tensor`, (P·M, T + position)): so far.
            scores (`Tensor`, (P·M, V)): logits.

        Raises:
            ValueError: a number of rows that is no multiple of M.
        """
        rows, vocabulary = scores.shape
        if rows % len(self._names):
            raise ValueError(f"generate has {rows} rows, which is no multiple of the {len(self._names)} keys")
        for warp in self._warpers:
            scores = warp(input_ids, scores)
        position = input_ids.shape[1] - self.prompt_length
        shapes = dict.fromkeys(self._names, (vocabulary,))
        normals = member_noises(self.seed, self.step, position, shapes, scores.device)
        gumbel = gumbel_noise(torch.stack(list(normals.values())))
        return (scores.view(-1, *gumbel.shape) + gumbel).view(rows, vocabulary)


def gumbel_noise(normals: Tensor) -> Tensor:
    """Standard Gumbel noise -ln(-ln Φ(z)) from standard normals z, of the same shape.

    Through ln Φ, which keeps its digits where Φ rounds to 1.
    """
    return -torch.log(-torch.special.log_ndtr(normals))
