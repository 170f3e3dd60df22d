"""The weight that steers the divergence to a target: its move by hand, and where it settles."""

import math

import pytest
import torch

from alignkit.kl_barrier import DualWeight, reverse_kl


def settled_divergences(weight: float, target_nats: float, *, noise: float = 0.0, steps: int = 700) -> list[float]:
    """D of the last 100 steps of gradient descent on NLL + weight · KL(policy ‖ ref) over one categorical."""
    generator = torch.Generator().manual_seed(0)
    ref = torch.randn(1, 8, generator=generator)
    policy = ref.clone().requires_grad_()
    wanted = torch.tensor([0])
    dual = DualWeight(target_nats, weight=weight)
    optimizer = torch.optim.Adam([policy], lr=0.05, betas=(0.9, 0.95))
    seen = []
    for _ in range(steps):
        d = reverse_kl(policy, ref).squeeze(0)
        loss = torch.nn.functional.cross_entropy(policy, wanted) + dual.weight * d
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(d.item())
        dual.update(d.item() * (1 + noise * torch.randn((), generator=generator).item()))
    return seen[-100:]


@pytest.mark.parametrize("weight", [1e-4, 1.0, 1e4], ids=["far too small", "one", "far too large"])
@pytest.mark.parametrize("target_nats", [0.05, 0.5])
def test_the_divergence_settles_within_a_tenth_of_the_target_from_any_weight(weight, target_nats):
    settled = settled_divergences(weight, target_nats)
    assert all(abs(d / target_nats - 1) < 0.1 for d in settled)


def test_the_divergence_settles_on_average_also_when_its_measurements_are_noisy():
    settled = settled_divergences(1.0, 0.2, noise=0.5)
    assert sum(settled) / len(settled) == pytest.approx(0.2, rel=0.1)


def test_at_the_settled_weight_the_constrained_problem_is_solved():
    # Minimise (x - 3)² / 2 subject to x² / 2 <= 1/2: x = 1, where the slopes x - 3 and weight · x balance at weight 2.
    x = torch.tensor(0.0, requires_grad=True)
    dual = DualWeight(0.5, weight=50.0, rate=0.05)
    for _ in range(800):
        d = x.square() / 2
        (slope,) = torch.autograd.grad((x - 3).square() / 2 + dual.weight * d, x)
        with torch.no_grad():
            x -= slope / (1 + dual.weight)
        dual.update(d.item())
    assert x.item() == pytest.approx(1.0, rel=0.01)
    assert dual.weight == pytest.approx(2.0, rel=0.02)


def test_the_first_moves_by_hand():
    dual = DualWeight(0.2, rate=0.5, decay=0.75)
    dual.update(0.3)  # smoothed 0.3: half above the target
    assert math.log(dual.weight) == pytest.approx(0.25)
    dual.update(0.1)  # smoothed (0.75 · 0.25 · 0.3 + 0.25 · 0.1) / (1 - 0.75²) = 13/70
    assert math.log(dual.weight) == pytest.approx(0.25 + 0.5 * (13 / 70 / 0.2 - 1))


def test_one_step_never_moves_the_logarithm_by_more_than_the_rate():
    dual = DualWeight(0.1, rate=0.3)
    dual.update(1e6)
    assert math.log(dual.weight) == pytest.approx(0.3)
    dual = DualWeight(0.1, rate=0.3)
    dual.update(0.0)
    assert math.log(dual.weight) == pytest.approx(-0.3)
    dual = DualWeight(0.1, rate=0.3)
    dual.update(-1.0)  # as a sampled estimate may be
    assert math.log(dual.weight) == pytest.approx(-0.3)


def test_at_the_target_the_weight_stays():
    dual = DualWeight(0.25, weight=3.0)
    for _ in range(20):
        dual.update(0.25)
    assert dual.weight == pytest.approx(3.0, rel=1e-12)


@pytest.mark.parametrize(("divergence", "bound"), [(1.0, 1e4), (0.0, 1e-4)])
def test_the_weight_stays_within_its_bounds(divergence, bound):
    dual = DualWeight(0.1, rate=1.0)
    for _ in range(30):
        dual.update(divergence)
    assert dual.weight == bound


def test_a_restored_weight_goes_on_as_if_nothing_had_happened():
    dual, restored = DualWeight(0.2), DualWeight(0.2)
    for d in (0.5, 0.1, 0.4):
        dual.update(d)
    restored.load_state_dict(dual.state_dict())
    for d in (0.9, 0.0):
        dual.update(d)
        restored.update(d)
    assert restored == dual


@pytest.mark.parametrize("divergence", [math.nan, math.inf])
def test_a_divergence_that_is_no_number_is_refused_and_leaves_the_weight(divergence):
    dual = DualWeight(0.2)
    dual.update(0.5)
    before = dual.state_dict()
    with pytest.raises(ValueError, match=rf"the divergence is {divergence}.*learning rate"):
        dual.update(divergence)
    assert dual.state_dict() == before


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("target_nats", 0.0),
        ("target_nats", math.nan),
        ("target_nats", math.inf),
        ("weight", 0.0),
        ("weight", 1e5),
        ("weight", math.nan),
        ("rate", 0.0),
        ("rate", math.inf),
        ("rate", math.nan),
        ("decay", 1.0),
        ("decay", -0.1),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=f"{setting} is {value}"):
        DualWeight(**{"target_nats": 0.1, setting: value})
