"""The gradient that a population estimates, in the sign of a loss: an optimiser that steps against it raises fitness.

Every function weighs the noise of member p, whose weights were centre + σ noise_p, with its shaped fitness. In an
antithetic population members 2k and 2k + 1 have noise_2k+1 = −noise_2k, so a pair counts with the difference of its
two weights.

How this differs from the sources, and why:

1. The result is a gradient for any optimiser, not an update: momentum, Adam, schedules and clipping stay the
   optimiser's. `x -= learning_rate * gradient` is each source's own update, with these settings:
   - ES at Scale (Qiu et al. 2025): `"z_score"`, `divide_by_sigma=False`, learning rate α.
   - OpenAI-ES (Salimans et al. 2017): antithetic, `"centered_rank"`, `divide_by_sigma=False`.
   - MeZO (Malladi et al. 2023): two antithetic members, fitness = −loss unshaped, `divide_by_sigma=True`.
   - EGGROLL (Sarkar et al. 2025): `low_rank_es_gradient`, `divide_by_sigma=False`.
2. Sums are float32 whatever the model's dtype: in bfloat16 one step rounds away most of itself.
3. Weights of members are never summed, only their noise: Σ z_p W_p is Σ z_p (W_p − centre) only for z of mean 0 and
   without rounding.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignkit.es_lora.noise import antithetic_member, member_noises


def es_gradient(shaped: Tensor, noise: Tensor, sigma: float, *, divide_by_sigma: bool) -> Tensor:
    r"""The estimated gradient of minus the fitness, of one tensor.

        −(1/P) Σ_p shaped_p noise_p  [/ σ]

    Divided by sigma and unshaped, it is an unbiased estimate of the gradient of −E f(centre + σ ε). Not divided, 1/σ
    is a part of the learning rate. Source: Salimans et al. (2017), section 2.

    Args:
        shaped (`(P,)`): shaped fitness, see [`alignkit.es_lora.shape_fitness`].
        noise (`(P, ...)`): standard normal directions, with the sign that the member was perturbed with.
        sigma (`float`): std of the noise on the weights.
        divide_by_sigma (`bool`): see above.

    Returns:
        `Tensor`, `(...)`, float32 (float64 for float64 noise).

    Raises:
        ValueError: shapes that differ in P, a shaped fitness that is not finite, or a sigma that is not positive.
    """
    if shaped.shape != noise.shape[:1]:
        raise ValueError(f"shaped is {tuple(shaped.shape)} and noise {tuple(noise.shape)}; both need the same P first")
    noise = _full_precision(noise)
    weights = shaped.to(noise) * _factor(shaped, sigma, divide_by_sigma)
    return torch.tensordot(weights, noise, dims=1)


def streamed_es_gradient(
    shaped: Tensor,
    shapes: Mapping[str, Sequence[int]],
    sigma: Mapping[str, float],
    *,
    seed: int,
    step: int,
    antithetic: bool,
    divide_by_sigma: bool,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """[`es_gradient`] of many tensors from noise that is drawn again, member by member, and never held together.

    The noise of member p is `member_noises(seed, step, p, shapes)`; in an antithetic population that of
    `antithetic_member(p)`, drawn once for a pair. The sum runs in the order of the members, so that every process that
    knows the P numbers computes the same bits.

    Args:
        shaped (`(P,)`): shaped fitness.
        shapes (`Mapping[str, Sequence[int]]`): shape of each perturbed tensor, by name.
        sigma (`Mapping[str, float]`): of each tensor.
        antithetic (`bool`): see the top of this module.
        divide_by_sigma (`bool`): as in [`es_gradient`].
        seed, step, device: as in [`alignkit.es_lora.member_noise`].

    Returns:
        `dict[str, Tensor]`: float32, one of each shape.

    Raises:
        ValueError: as [`es_gradient`], or an odd antithetic population.
    """
    factors = {name: _factor(shaped, sigma[name], divide_by_sigma) for name in shapes}
    gradients = {name: torch.zeros(tuple(shape), device=device) for name, shape in shapes.items()}
    for member, weight in _drawn_members(shaped, antithetic):
        noise = member_noises(seed, step, member, shapes, device)
        for name, gradient in gradients.items():
            gradient.add_(noise[name], alpha=weight * factors[name])
    return gradients


def low_rank_es_gradient(shaped: Tensor, a: Tensor, b: Tensor, sigma: float, *, divide_by_sigma: bool) -> Tensor:
    r"""[`es_gradient`] for the weight W of a linear layer whose noise is of low rank (EGGROLL).

        E_p = (a_p b_p)ᵀ / √R,   −(1/P) Σ_p shaped_p E_p  [/ σ]

    Entries of E have unit variance for every R, so sigma is in units of the weight. The sum is one product of matrices
    of inner size P R, and of rank min(P R, H, O); no E is made. Source: Sarkar et al. (2025), arXiv 2511.16652:
    the Gaussian score, to which that of E tends as 1/R.

    Args:
        shaped (`(P,)`): shaped fitness.
        a (`(P, H, R)`), b (`(P, R, O)`): standard normal factors, as the population's forward x a b takes them; the
            sign of an antithetic member is on one of them.
        sigma (`float`), divide_by_sigma (`bool`): as in [`es_gradient`].

    Returns:
        `Tensor`, `(O, H)`: the shape of `nn.Linear.weight`, float32.

    Raises:
        ValueError: factors that do not fit each other or P, and as [`es_gradient`].
    """
    if shaped.shape != a.shape[:1] or a.ndim != 3 or b.ndim != 3 or a.shape[::2] != b.shape[:2]:
        raise ValueError(
            f"shaped is {tuple(shaped.shape)}, a {tuple(a.shape)}, b {tuple(b.shape)}; give (P,), (P, H, R), (P, R, O)"
        )
    a, b = _full_precision(a), _full_precision(b)
    weights = shaped.to(a) * (_factor(shaped, sigma, divide_by_sigma) / math.sqrt(a.shape[2]))
    left = (a * weights[:, None, None]).transpose(0, 1).flatten(1)  # (H, P R)
    return (left @ b.flatten(0, 1)).T


def anchor_decay(param: Tensor, anchor: Tensor, decay: float) -> Tensor:
    """The gradient of decay/2 · ‖param − anchor‖², to be added to the estimate: decay · (param − anchor).

    ES walks at random where the reward does not care; a pull to the initial weights bounds the walk. With plain
    gradient descent it is the anchored weight decay of Schweighofer et al. (2026), arXiv 2605.30148; Adam rescales it
    together with the estimate.

    Raises:
        ValueError: a decay below 0.
    """
    if not decay >= 0:
        raise ValueError(f"anchor_decay is {decay}; give a number >= 0")
    return (param - anchor) * decay


def _drawn_members(shaped: Tensor, antithetic: bool) -> list[tuple[int, float]]:
    """Each member whose noise is drawn, and the weight of that noise."""
    weights = shaped.double().tolist()
    if not antithetic:
        return list(enumerate(weights))
    if len(weights) % 2:
        raise ValueError(f"the population has {len(weights)} members; antithetic pairs need an even number")
    return [(antithetic_member(p)[0], weights[p] - weights[p + 1]) for p in range(0, len(weights), 2)]


def _factor(shaped: Tensor, sigma: float, divide_by_sigma: bool) -> float:
    """−1 / P, over sigma if asked, after a look at both."""
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma}; the std of the noise on the weights is a positive number")
    if not shaped.isfinite().all():
        raise ValueError(f"shaped fitness is {shaped.tolist()}; call replace_failed before shape_fitness")
    return -1 / (len(shaped) * (sigma if divide_by_sigma else 1))


def _full_precision(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
