"""The estimator against each source's update written out in loops, against autograd, and its saddle."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.es_lora import (
    anchor_decay,
    antithetic_member,
    es_gradient,
    low_rank_es_gradient,
    member_noise,
    shape_fitness,
    streamed_es_gradient,
)

ROWS = range(3)
TARGET = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.5, -0.5], [1.0, 0.25, -2.0]], dtype=torch.float64)
START = torch.tensor([[0.1, 0.2, -0.3], [0.4, -0.5, 0.6], [-0.7, 0.8, 0.9]], dtype=torch.float64)
Matrix = list[list[float]]


def reward(weight: torch.Tensor) -> float:
    """Of a 3 × 3 weight; smooth, and best at TARGET."""
    return -(weight - TARGET).square().sum().item()


def population(size: int, antithetic: bool = False) -> torch.Tensor:
    """Noise `(P, 3, 3)` in float64."""
    if antithetic:
        keys = [antithetic_member(member) for member in range(size)]
        return torch.stack([sign * member_noise(3, 0, key, "w", (3, 3)) for key, sign in keys]).double()
    return torch.stack([member_noise(3, 0, member, "w", (3, 3)) for member in range(size)]).double()


def fitness_of(centre: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.tensor([reward(centre + sigma * direction) for direction in noise], dtype=torch.float64)


def z_scores_in_a_loop(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / (std + 1e-8) for value in values]


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(x.flatten(), y.flatten(), dim=0).item()


def close(ours: torch.Tensor, theirs: Matrix) -> None:
    torch.testing.assert_close(ours.double(), torch.tensor(theirs, dtype=torch.float64), rtol=0, atol=1e-6)


# ---- Golden: the sources' updates in loops ----


def test_the_update_is_that_of_es_at_scale():
    sigma, alpha, noise = 0.05, 0.02, population(6)
    fitness = fitness_of(START, noise, sigma)
    z, theirs = z_scores_in_a_loop(fitness.tolist()), START.tolist()
    for n in range(6):
        for i in ROWS:
            for j in ROWS:
                theirs[i][j] += alpha * (1 / 6) * z[n] * noise[n][i][j].item()
    gradient = es_gradient(shape_fitness(fitness, "z_score"), noise, sigma, divide_by_sigma=False)
    close(START - alpha * gradient, theirs)


def test_the_gradient_is_that_of_openai_es():
    sigma, noise = 0.1, population(8, antithetic=True)
    fitness = fitness_of(START, noise, sigma)
    returns, pairs = fitness.tolist(), population(8, antithetic=True)[::2]
    ranks = [sorted(returns).index(value) / 7 - 0.5 for value in returns]
    ascent = [[0.0] * 3 for _ in ROWS]
    for k in range(4):
        for i in ROWS:
            for j in ROWS:
                ascent[i][j] += (ranks[2 * k] - ranks[2 * k + 1]) * pairs[k][i][j].item() / 8
    gradient = es_gradient(shape_fitness(fitness, "centered_rank"), noise, sigma, divide_by_sigma=False)
    close(-gradient, ascent)


def test_the_update_is_that_of_eggroll():
    size, rank, sigma, alpha = 4, 2, 0.1, 0.3
    first = [member_noise(0, 0, p, "a", (3, rank)).double() for p in range(size)]  # A of the paper, output side
    second = [member_noise(0, 0, p, "b", (3, rank)).double() for p in range(size)]
    noise, theirs = [], START.tolist()
    for p in range(size):
        matrix = [[0.0] * 3 for _ in ROWS]
        for i in ROWS:
            for j in ROWS:
                matrix[i][j] = sum(first[p][i, r].item() * second[p][j, r].item() for r in range(rank)) / rank**0.5
        noise.append(matrix)
    fitness = fitness_of(START, torch.tensor(noise, dtype=torch.float64), sigma)
    shaped = shape_fitness(fitness, "z_score")
    for p in range(size):
        for i in ROWS:
            for j in ROWS:
                theirs[i][j] += alpha / size * noise[p][i][j] * shaped[p].item()
    b = torch.stack(first).transpose(1, 2)
    gradient = low_rank_es_gradient(shaped, torch.stack(second), b, sigma, divide_by_sigma=False)
    close(START - alpha * gradient, theirs)


def test_the_update_is_that_of_mezo():
    epsilon, learning_rate, direction = 1e-2, 1e-3, population(1)[0]
    noise = torch.stack([direction, -direction])
    loss_plus, loss_minus = (-reward(START + sign * epsilon * direction) for sign in (1, -1))
    projected, theirs = (loss_plus - loss_minus) / (2 * epsilon), START.tolist()
    for i in ROWS:
        for j in ROWS:
            theirs[i][j] -= learning_rate * projected * direction[i][j].item()
    gradient = es_gradient(fitness_of(START, noise, epsilon), noise, epsilon, divide_by_sigma=True)
    close(START - learning_rate * gradient, theirs)


def test_the_sum_of_scored_member_weights_is_the_same_step_times_sigma():
    sigma, alpha, noise = 0.05, 0.01, population(6)
    fitness = fitness_of(START, noise, sigma)
    z, theirs = z_scores_in_a_loop(fitness.tolist()), START.tolist()
    for n in range(6):
        for i in ROWS:
            for j in ROWS:
                theirs[i][j] += alpha / 6 * z[n] * (START[i][j].item() + sigma * noise[n][i][j].item())
    gradient = es_gradient(shape_fitness(fitness, "z_score"), noise, sigma, divide_by_sigma=False)
    close(START - alpha * sigma * gradient, theirs)


# ---- The saddle at A = B = 0 ----


def lora_gradients(a: torch.Tensor, b: torch.Tensor, sigma_a: float, sigma_b: float) -> tuple[torch.Tensor, ...]:
    """ES gradients of both factors of a rank-1 adapter of a 16 × 16 weight, for a linear reward; 4000 members."""
    slope = member_noise(9, 0, 0, "slope", (16, 16)).double()
    noise_a = torch.stack([member_noise(0, 0, p, "a", (16, 1)) for p in range(4000)]).double()
    noise_b = torch.stack([member_noise(0, 0, p, "b", (1, 16)) for p in range(4000)]).double()
    members = (a + sigma_a * noise_a) @ (b + sigma_b * noise_b)
    shaped = shape_fitness((members * slope).sum((1, 2)), "z_score")
    return tuple(es_gradient(shaped, noise, 1.0, divide_by_sigma=False) for noise in (noise_a, noise_b)) + (slope,)


def test_perturbing_both_factors_around_zero_gives_no_direction():
    gradients = lora_gradients(torch.zeros(16, 1), torch.zeros(1, 16), 0.1, 0.1)[:2]
    by_chance = math.sqrt(16 / 4000)
    assert all(gradient.norm() < 1.5 * by_chance for gradient in gradients)


def test_mirrored_members_around_zero_have_equal_fitness():
    a, b = population(2)[:, :, :1]
    assert reward(a @ b.T) == reward(-a @ -b.T)


def test_perturbing_b_around_a_fixed_a_that_is_not_zero_gives_the_direction():
    a = member_noise(1, 0, 0, "a", (16, 1)).double()
    _, gradient, slope = lora_gradients(a, torch.zeros(1, 16), 0.0, 0.1)
    assert cosine(-gradient, a.T @ slope) > 0.97
    assert gradient.norm() > 0.9


# ---- Against autograd ----


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("how", ["z_score", "centered_rank", "sign"])
def test_the_direction_is_that_of_the_gradient(how, antithetic):
    noise = population(3000, antithetic)
    shaped = shape_fitness(fitness_of(START, noise, 0.05), how)
    loss_gradient = 2 * (START - TARGET)
    assert cosine(es_gradient(shaped, noise, 0.05, divide_by_sigma=True), loss_gradient) > 0.9


def test_unshaped_fitness_divided_by_sigma_estimates_the_gradient_itself():
    noise = population(20_000, antithetic=True)
    fitness = -(START + 0.05 * noise - TARGET).square().sum((1, 2))
    gradient = es_gradient(fitness, noise, 0.05, divide_by_sigma=True)
    torch.testing.assert_close(gradient, 2 * (START - TARGET), rtol=0, atol=0.3)
    torch.testing.assert_close(gradient.norm(), (2 * (START - TARGET)).norm(), rtol=0.03, atol=0)


def test_the_low_rank_direction_is_that_of_the_gradient():
    a = torch.stack([member_noise(0, 0, p, "a", (3, 1)) for p in range(4000)]).double()
    b = torch.stack([member_noise(0, 0, p, "b", (1, 3)) for p in range(4000)]).double()
    shaped = shape_fitness(fitness_of(START, (a @ b).transpose(1, 2), 0.05), "z_score")
    gradient = low_rank_es_gradient(shaped, a, b, 0.05, divide_by_sigma=True)
    assert cosine(gradient, 2 * (START - TARGET)) > 0.9


# ---- Equal ways ----


@pytest.mark.parametrize("divide_by_sigma", [False, True])
@pytest.mark.parametrize("antithetic", [False, True])
def test_the_streamed_gradient_is_that_of_the_noise_held_together(antithetic, divide_by_sigma):
    shapes, sigma = {"a": (3, 40), "b": (5,)}, {"a": 0.1, "b": 2.0}
    shaped = shape_fitness(torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0]), "z_score")
    keys = [antithetic_member(p) if antithetic else (p, 1) for p in range(6)]
    streamed = streamed_es_gradient(
        shaped, shapes, sigma, seed=1, step=2, antithetic=antithetic, divide_by_sigma=divide_by_sigma
    )
    assert [*streamed] == ["a", "b"]
    for name, shape in shapes.items():
        noise = torch.stack([sign * member_noise(1, 2, key, name, shape) for key, sign in keys])
        held = es_gradient(shaped, noise, sigma[name], divide_by_sigma=divide_by_sigma)
        torch.testing.assert_close(streamed[name], held, rtol=0, atol=1e-6)


def test_the_streamed_gradient_is_made_on_the_device_that_is_asked_for():
    options = {"seed": 0, "step": 0, "antithetic": False, "divide_by_sigma": False}
    gradient = streamed_es_gradient(torch.tensor([1.0, -1.0]), {"a": (3,)}, {"a": 0.1}, device="meta", **options)["a"]
    assert gradient.device.type == "meta"


def test_the_low_rank_gradient_is_that_of_the_materialised_noise():
    a = torch.stack([member_noise(0, 0, p, "a", (7, 2)) for p in range(5)])
    b = torch.stack([member_noise(0, 0, p, "b", (2, 4)) for p in range(5)])
    shaped = torch.tensor([1.0, -2.0, 0.5, 0.0, 0.5])
    materialised = (a @ b).transpose(1, 2) / math.sqrt(2)
    torch.testing.assert_close(
        low_rank_es_gradient(shaped, a, b, 0.3, divide_by_sigma=True),
        es_gradient(shaped, materialised, 0.3, divide_by_sigma=True),
        rtol=0,
        atol=1e-6,
    )


@given(st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_members_is_irrelevant(order):
    shaped, noise = torch.tensor([0.5, -1.0, 2.0, 0.0, -1.5, 0.0], dtype=torch.float64), population(6)
    torch.testing.assert_close(
        es_gradient(shaped[order], noise[order], 1.0, divide_by_sigma=False),
        es_gradient(shaped, noise, 1.0, divide_by_sigma=False),
    )


def test_noise_in_half_precision_is_summed_in_float32():
    noise = population(64).bfloat16()
    gradient = es_gradient(torch.ones(64), noise, 1.0, divide_by_sigma=False)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, -noise.float().mean(0))


def test_a_shaped_fitness_in_float64_gives_a_gradient_in_float32():
    shaped = torch.ones(2, dtype=torch.float64)
    assert es_gradient(shaped, torch.ones(2, 3), 1.0, divide_by_sigma=False).dtype == torch.float32
    a, b = torch.ones(2, 3, 1), torch.ones(2, 1, 4)
    assert low_rank_es_gradient(shaped, a, b, 1.0, divide_by_sigma=False).dtype == torch.float32


def test_a_population_without_variance_gives_a_zero_step():
    shaped = shape_fitness(torch.full((4,), 0.7), "z_score")
    assert not es_gradient(shaped, population(4), 0.1, divide_by_sigma=True).any()


def test_decay_pulls_to_the_anchor():
    param, anchor = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert anchor_decay(param, anchor, 0.5).tolist() == [0.5, -1.0]
    assert not anchor_decay(anchor, anchor, 0.5).any()
    assert not anchor_decay(param, anchor, 0.0).any()


# ---- Bad input ----


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_a_sigma_that_is_not_positive_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma is"):
        es_gradient(torch.ones(2), torch.ones(2, 3), sigma, divide_by_sigma=False)


def test_input_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"shaped is \(2,\) and noise \(3, 3\)"):
        es_gradient(torch.ones(2), torch.ones(3, 3), 1.0, divide_by_sigma=False)
    with pytest.raises(ValueError, match="call replace_failed"):
        es_gradient(torch.tensor([1.0, math.nan]), torch.ones(2, 3), 1.0, divide_by_sigma=False)
    for n_members, a, b in (
        (2, (2, 3, 1), (2, 2, 3)),
        (3, (2, 3, 1), (2, 1, 4)),
        (2, (2, 3, 1, 5), (2, 1, 4)),
        (2, (2, 3, 1), (2, 1, 4, 5)),
    ):
        with pytest.raises(ValueError, match=r"\(P, H, R\), \(P, R, O\)"):
            low_rank_es_gradient(torch.ones(n_members), torch.ones(a), torch.ones(b), 1.0, divide_by_sigma=False)
    with pytest.raises(ValueError, match="3 members; antithetic pairs need an even number"):
        streamed_es_gradient(
            torch.ones(3), {"a": (2,)}, {"a": 1.0}, seed=0, step=0, antithetic=True, divide_by_sigma=False
        )
    with pytest.raises(ValueError, match="anchor_decay is -1"):
        anchor_decay(torch.ones(1), torch.ones(1), -1)
