"""From the rewards of completions to the numbers that weigh a population's noise, and which prompts a step sees.

How this differs from the sources, and why:

1. Shaping is computed in float64, and a spread that is no more than rounding counts as none: the z-scores of
   fitnesses that differ in their last bit are noise of full size. There is no epsilon beside the standard deviation,
   so scaling the rewards changes nothing.
2. Equal fitnesses get equal ranks. Ranks by position would reward the member that happens to come first.
3. The per-prompt baseline divides by the standard deviation of what is left after it, where EGGROLL divides by that of
   all scores: else a set of prompts of unequal difficulty makes every step small.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from scipy.special import fdtrc
from torch import Tensor

from alignkit.es_lora.noise import keyed_words

FitnessShaping = Literal["z_score", "centered_rank", "prompt_baseline", "sign"]
FITNESS_SHAPINGS: tuple[FitnessShaping, ...] = get_args(FitnessShaping)

Verdict = Literal["ok", "sigma_too_small", "sigma_too_large", "no_variance", "unknown"]
SIGNIFICANCE = 0.05
BROKEN_BY = 2.0


def shape_fitness(fitness: Tensor, how: FitnessShaping) -> Tensor:
    r"""Weights of the members' noise, such that the mean over the population is 0.

        "z_score":          (f_p − mean f) / s,  s = √(mean (f − mean f)²)            Qiu et al. 2025
        "centered_rank":    rank(f_p) / (P − 1) − 1/2, ranks from 0, ties share       Salimans et al. 2017
        "prompt_baseline":  mean_m d_pm / √(mean d²),  d_pm = f_pm − mean_p f_pm      after Sarkar et al. 2025
        "sign":             sign(f_2k − f_2k+1) for member 2k, its negative for 2k+1  Sarkar et al. 2025, pairs

    Without variance ([`has_variance`]) the result is 0. The prompt baseline is, where every member has a reward on
    every prompt, the z-score times √(variance of the members' means / variance of d): a step in which they differ by
    chance is √M shorter than one in which they differ alike on every prompt. Where a reward is missing (NaN), a member
    is not punished for having met the harder prompts.

    Args:
        fitness (`(P,)`; `(P, M)` for `"prompt_baseline"`): mean reward of each member, or of each member on each
            prompt. See [`replace_failed`] for members without one.
        how (`str`): see above.

    Returns:
        `Tensor`, `(P,)`, of the dtype of `fitness`.

    Raises:
        ValueError: an unknown shaping, a shape that does not fit, an odd population with `"sign"`, or a member whose
            fitness is not finite.
    """
    _check_fitness(fitness, how)
    values = fitness.double()
    if not has_variance(fitness):
        shaped = values.new_zeros(len(values))
    elif how == "z_score":
        shaped = _z_score(values)
    elif how == "centered_rank":
        below = (values < values[:, None]).sum(1)
        equal = (values == values[:, None]).sum(1)
        shaped = (below + (equal - 1) / 2).double() / (len(values) - 1) - 0.5
    elif how == "prompt_baseline":
        rest = values - values.nanmean(0)
        mean = rest.nanmean(1)
        shaped = (mean - mean.mean()) / rest.square().nanmean().sqrt()
    else:
        difference = (values[::2] - values[1::2]).sign()
        shaped = torch.stack([difference, -difference], dim=1).flatten()
    return shaped.to(fitness.dtype)


def has_variance(fitness: Tensor) -> bool:
    """Whether members differ by more than rounding: max − min > 8 eps max|f| of `(P,)`, or of a column of `(P, M)`.

    A step without variance moves nothing; the trainer counts those.
    """
    columns = fitness.reshape(len(fitness), -1)
    low = columns.nan_to_num(nan=torch.inf).amin(0)
    high = columns.nan_to_num(nan=-torch.inf).amax(0)
    largest = torch.maximum(low.abs(), high.abs())
    return bool((high - low > 8 * torch.finfo(fitness.dtype).eps * largest).any())


def replace_failed(fitness: Tensor) -> tuple[Tensor, int]:
    """Give members without a finite fitness the lowest finite one, and count them.

    Args:
        fitness (`(P,)` or `(P, M)`): NaN or infinite where a member failed or a reward function blew up. Of `(P, M)` a
            member failed when it has no finite entry, and gets the lowest finite entry of each prompt; other entries
            that are not finite become NaN, which the prompt baseline leaves out.

    Returns:
        fitness of the same shape, and the number of members that failed. When all failed, zeros.
    """
    columns = fitness.reshape(len(fitness), -1)
    columns = columns.where(columns.isfinite(), torch.nan)
    failed = columns.isnan().all(1)
    if failed.all():
        return torch.zeros_like(fitness), len(fitness)
    lowest = columns.nan_to_num(nan=torch.inf).amin(0)
    lowest = lowest.where(lowest.isfinite(), torch.nan)
    return columns.where(~failed[:, None], lowest).reshape(fitness.shape), int(failed.sum())


def combine_rewards(rewards: Tensor, weights: Tensor) -> Tensor:
    """Σ_f weight_f reward_f over the reward functions that apply, as in TRL's GRPO.

    Args:
        rewards (`(..., F)`): of F reward functions; NaN where one does not apply (returned None).
        weights (`(F,)`): one per function.

    Returns:
        `Tensor`, `(...)`: NaN where no function applies.

    Raises:
        ValueError: another number of weights than of functions.
    """
    if weights.shape != rewards.shape[-1:]:
        raise ValueError(
            f"weights have the shape {tuple(weights.shape)} and rewards {tuple(rewards.shape)}; give one weight for "
            "each reward function"
        )
    total = (rewards * weights.to(rewards)).nansum(-1)
    return total.masked_fill(rewards.isnan().all(-1), torch.nan)


@dataclass(frozen=True)
class SignalToNoise:
    """What [`signal_to_noise`] finds in one step.

    Attributes:
        between: variance of the members' mean rewards.
        within: variance that such a mean would have by chance alone; NaN when that is unknown.
        ratio: estimated variance of the members' true fitness / `within`.
        verdict: see [`signal_to_noise`].
    """

    between: float
    within: float
    ratio: float
    verdict: Verdict


def signal_to_noise(rewards: Tensor, centre: Tensor | None = None) -> SignalToNoise:
    r"""Whether members differ by more than chance. Variance components of a two-way layout (Searle et al. 1992).

        between = Σ_p (f_p − f̄)² / (P − 1),                  f_p = mean reward of member p
        within  = Σ_pm (c_pm − f_p − q_m + f̄)² / ((P − 1)(M − 1)) / M    M > 1: member × prompt, rollouts included
                = Σ_pj (r_pj − f_p)² / (P (J − 1)) / J                   M = 1, J > 1 rollouts
        ratio   = max(0, between − within) / within

    c_pm being the mean over rollouts and q_m the mean of prompt m over members. Verdicts, of which one step is weak
    evidence:

        "sigma_too_large":  the centre is more than 2 √between above the mean member: the noise breaks the model
        "no_variance":      on each prompt all rewards are equal: a coarse reward, greedy decoding, or a tiny sigma
        "sigma_too_small":  between / within is not significant (F test, 5 %): what differs is chance
        "unknown":          one prompt and one rollout, or fewer than two members
        "ok":               else

    Args:
        rewards (`(P, M, J)`): of P members, M prompts, J rollouts. A member without any finite reward, and then a
            prompt with one that is not finite, is left out.
        centre (`(M, J)`, *optional*): rewards of the unperturbed weights on the same prompts; without it sigma is
            never too large.
    """
    values = rewards.double()
    values = values[values.isfinite().flatten(1).any(1)]
    known = values.isfinite().all(2).all(0)
    values = values[:, known]
    n_members, n_prompts, _ = values.shape
    if n_members < 2 or not n_prompts:
        return SignalToNoise(torch.nan, torch.nan, torch.nan, "unknown")
    fitness = values.mean((1, 2))
    between = fitness.var().item()
    within, degrees = _variance_by_chance(values)
    ratio = max(0.0, between - within) / within if within else torch.inf
    if centre is not None:
        expected = centre.double()[known].mean().item()
        rounding = 8 * torch.finfo(rewards.dtype).eps * abs(expected)
        if expected - fitness.mean().item() > BROKEN_BY * between**0.5 + rounding:
            return SignalToNoise(between, within, ratio, "sigma_too_large")
    if not has_variance(values.transpose(1, 2).reshape(-1, n_prompts).to(rewards.dtype)):
        return SignalToNoise(0.0, 0.0, 0.0, "no_variance")
    if not degrees:
        return SignalToNoise(between, within, ratio, "unknown")
    chance = fdtrc(n_members - 1, degrees, between / within) if within else 0.0
    return SignalToNoise(between, within, ratio, "ok" if chance < SIGNIFICANCE else "sigma_too_small")


def step_indices(n_items: int, per_step: int, step: int, seed: int) -> list[int]:
    """Items that a step sees: `per_step` consecutive entries of an endless sequence of shuffled passes over all items.

    A function of the arguments alone, on any machine. After any number of steps each item has been seen equally often,
    but for one; a step that runs over the end of a pass may see an item twice.

    Args:
        n_items, per_step (`int`): at least 1; `per_step` may be larger than `n_items`.
        step (`int`): from 0.
        seed (`int`): of the shuffles.

    Raises:
        ValueError: a number below its smallest value.
    """
    if n_items < 1 or per_step < 1 or step < 0:
        raise ValueError(f"n_items={n_items}, per_step={per_step}, step={step}; give at least 1, 1 and 0")
    places = range(step * per_step, (step + 1) * per_step)
    return [_order_of_pass(n_items, place // n_items, seed)[place % n_items] for place in places]


@lru_cache(maxsize=4)
def _order_of_pass(n_items: int, number: int, seed: int) -> tuple[int, ...]:
    return tuple(np.argsort(keyed_words("order", seed, number, count=n_items), kind="stable").tolist())


def _variance_by_chance(values: Tensor) -> tuple[float, int]:
    """Variance of a member's mean reward by chance, and degrees of freedom of the estimate; NaN and 0 when unknown."""
    n_members, n_prompts, n_rollouts = values.shape
    if n_prompts > 1:
        cells = values.mean(2)
        rest = cells - cells.mean(1, keepdim=True) - cells.mean(0) + cells.mean()
        degrees = (n_members - 1) * (n_prompts - 1)
        return rest.square().sum().item() / degrees / n_prompts, degrees
    degrees = n_members * (n_rollouts - 1)
    rest = values - values.mean(2, keepdim=True)
    return rest.square().sum().item() / degrees / n_rollouts if degrees else torch.nan, degrees


def _z_score(values: Tensor) -> Tensor:
    rest = values - values.mean()
    return rest / rest.square().mean().sqrt()


def _check_fitness(fitness: Tensor, how: str) -> None:
    if how not in FITNESS_SHAPINGS:
        raise ValueError(f"fitness_shaping is {how!r}; choose one of {', '.join(map(repr, FITNESS_SHAPINGS))}")
    n_dimensions = 2 if how == "prompt_baseline" else 1
    if fitness.ndim != n_dimensions or not len(fitness) or not fitness.is_floating_point():
        wanted = "(P, M): one for each member and prompt" if n_dimensions == 2 else "(P,): one for each member"
        raise ValueError(f"fitness is {fitness.dtype} {tuple(fitness.shape)}; {how!r} needs floats {wanted}")
    if how == "sign" and len(fitness) % 2:
        raise ValueError(f"the population has {len(fitness)} members; 'sign' compares pairs, so make it even")
    is_known = fitness.isfinite() if n_dimensions == 1 else fitness.isfinite().any(1) & ~fitness.isinf().any(1)
    if not is_known.all():
        raise ValueError(
            f"members {(~is_known).nonzero().flatten().tolist()} have no finite fitness; call replace_failed first"
        )
