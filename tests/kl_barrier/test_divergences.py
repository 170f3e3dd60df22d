"""The divergence of two models' logits: hand-worked values, accuracy near zero, extremes, gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.kl_barrier import forward_kl, reverse_kl

BOTH = pytest.mark.parametrize("divergence", [reverse_kl, forward_kl])
INF = math.inf


def logits(*rows: list[float], **options) -> torch.Tensor:
    return torch.tensor(rows, **options)


def random_pair(scale: float = 1.0, shape: tuple[int, int] = (6, 11)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


# ---- Values ----


def test_reverse_weighs_by_the_policy_and_forward_by_the_reference():
    policy, ref = logits([0.75, 0.25]).log(), logits([0.5, 0.5]).log()
    torch.testing.assert_close(
        reverse_kl(policy, ref), torch.tensor([0.75 * math.log(1.5) + 0.25 * math.log(0.5)]), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        forward_kl(policy, ref), torch.tensor([0.5 * math.log(1 / 1.5) + 0.5 * math.log(2)]), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_values_are_those_of_torch_kl_div(scale):
    policy, ref = random_pair(scale)
    log_p, log_q = policy.log_softmax(-1), ref.log_softmax(-1)
    expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(reverse_kl(policy, ref), expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(forward_kl(ref, policy), expected, rtol=1e-10, atol=1e-14)


@BOTH
def test_a_constant_added_to_all_logits_of_a_row_changes_nothing(divergence):
    policy, ref = random_pair()
    shift = torch.arange(6.0, dtype=torch.float64)[:, None]
    torch.testing.assert_close(divergence(policy + shift, ref - shift), divergence(policy, ref))


@BOTH
def test_no_positions_give_no_values_and_a_gradient_of_zero(divergence):
    policy = torch.zeros(0, 5, requires_grad=True)
    values = divergence(policy, torch.zeros(0, 5))
    assert values.shape == (0,)
    values.sum().backward()
    assert policy.grad.shape == (0, 5)


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_compared_in_float32(divergence, dtype):
    policy, ref = (tensor.to(dtype) for tensor in random_pair())
    values = divergence(policy, ref)
    assert values.dtype == torch.float32
    assert torch.equal(values, divergence(policy.float(), ref.float()))


# ---- Near zero ----


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_logits_have_divergence_and_gradient_of_exactly_zero(divergence, dtype):
    policy = (20 * random_pair(shape=(8, 1000))[0]).to(dtype).requires_grad_()
    values = divergence(policy, policy.detach().clone())
    assert torch.equal(values, torch.zeros(8))
    values.sum().backward()
    assert not policy.grad.any()


@BOTH
@pytest.mark.parametrize("scale", [1e-2, 1e-3, 3e-4])
def test_small_divergences_are_accurate_in_float32_where_the_usual_sum_is_not(divergence, scale):
    ref, noise = random_pair(shape=(16, 5000))
    # Logits of float32, so that both precisions see the same models.
    ref, policy = ref.float(), (ref + scale * noise).float()
    exact = divergence(policy.double(), ref.double())
    error = (divergence(policy, ref) - exact).abs() / exact
    assert error.max() < 2e-3
    if scale == 3e-4:
        assert exact.max() < 1e-7
        log_p, log_q = policy.log_softmax(-1), ref.log_softmax(-1)
        usual = (log_p.exp() * (log_p - log_q)).sum(-1) if divergence is reverse_kl else None
        assert usual is None or ((usual - exact).abs() / exact).max() > 0.5


@BOTH
@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(-40, 40, width=32), st.floats(-40, 40, width=32)), min_size=1, max_size=12),
    closeness=st.sampled_from([1.0, 1e-3, 1e-6]),
)
def test_a_divergence_is_never_negative(divergence, rows, closeness):
    first, second = torch.tensor(rows).T
    assert divergence((second + closeness * (first - second))[None], second[None]).item() >= 0


# ---- Extremes ----


@BOTH
def test_distant_logits_neither_overflow_nor_lose_their_gradient(divergence):
    policy = logits([200.0, 0.0, -200.0], requires_grad=True)
    ref = logits([-200.0, 0.0, 200.0])
    values = divergence(policy, ref)
    torch.testing.assert_close(values, torch.tensor([400.0]))
    values.sum().backward()
    assert policy.grad.isfinite().all()
    # Both models' own tokens have probability 1 in float32: the forward direction pulls by all of it.
    expected = [[1.0, 0.0, -1.0]] if divergence is forward_kl else [[0.0, 0.0, 0.0]]
    torch.testing.assert_close(policy.grad, torch.tensor(expected))


@BOTH
def test_entries_that_both_models_rule_out_count_nothing_in_value_and_gradient(divergence):
    policy, ref = (tensor.float() for tensor in random_pair())
    columns = torch.full((6, 2), -INF)
    padded = torch.cat([policy, columns], 1).requires_grad_()
    values = divergence(padded, torch.cat([ref, columns], 1))
    torch.testing.assert_close(values, divergence(policy, ref))
    values.sum().backward()
    assert padded.grad.isfinite().all()
    assert not padded.grad[:, -2:].any()


def test_ruling_out_what_the_other_model_says_is_infinite_in_one_direction_and_finite_in_the_other():
    open_to_both, narrow = logits([0.0, 0.0]), logits([0.0, -INF])
    assert reverse_kl(open_to_both, narrow).tolist() == [INF]
    assert forward_kl(narrow, open_to_both).tolist() == [INF]
    torch.testing.assert_close(reverse_kl(narrow, open_to_both), torch.tensor([math.log(2)]))
    torch.testing.assert_close(forward_kl(open_to_both, narrow), torch.tensor([math.log(2)]))


@BOTH
@pytest.mark.parametrize("broken", [[math.nan, 0.0], [INF, 0.0], [-INF, -INF]])
@pytest.mark.parametrize("side", [0, 1])
def test_broken_logits_show_as_nan_in_their_own_row_alone(divergence, broken, side):
    pair = [logits([0.3, 0.1], [0.0, 1.0]), logits([0.2, 0.1], [1.0, 0.0])]
    pair[side][0] = torch.tensor(broken)
    values = divergence(*pair)
    assert values[0].isnan()
    assert values[1].isfinite()


def test_half_precision_that_overflowed_shows_as_nan():
    assert reverse_kl(logits([1e5, 0.0]).half(), logits([0.0, 0.0]).half()).isnan().all()


def test_vocabularies_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 5\).*\(2, 6\).*same vocabulary"):
        reverse_kl(torch.zeros(2, 5), torch.zeros(2, 6))


# ---- Gradients ----


@BOTH
@pytest.mark.parametrize("scale", [1e-2, 1.0, 4.0])
def test_gradients_to_both_inputs_pass_gradcheck(divergence, scale):
    policy, ref = (tensor.requires_grad_() for tensor in random_pair(scale, (3, 5)))
    assert torch.autograd.gradcheck(divergence, (policy, ref))


def test_gradients_are_the_formulas_of_the_docstrings():
    policy, ref = (tensor.requires_grad_() for tensor in random_pair(3.0))
    log_p, log_q = policy.detach().log_softmax(-1), ref.detach().log_softmax(-1)
    reverse = reverse_kl(policy, ref)
    to_policy, to_ref = torch.autograd.grad(reverse.sum(), (policy, ref))
    torch.testing.assert_close(to_policy, log_p.exp() * (log_p - log_q - reverse.detach()[:, None]))
    torch.testing.assert_close(to_ref, log_q.exp() - log_p.exp())
    (to_policy,) = torch.autograd.grad(forward_kl(policy, ref).sum(), policy)
    torch.testing.assert_close(to_policy, log_p.exp() - log_q.exp())
