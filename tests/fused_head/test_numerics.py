"""Exact zeros, small divergences, extreme and non-finite logits, half precision; TRL's kernels as a second opinion."""

import math

import pytest
import torch
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from alignkit.fused_head import fused_nll_kl, plain_nll_kl, token_statistics

DIRECTIONS = ["reverse", "forward"]
TRL_BETA = {"reverse": 1.0, "forward": 0.0}


def double(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach().double()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("has_own_head", [False, True])
@pytest.mark.parametrize("n", [1, 2, 17, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equal_inputs_have_a_kl_of_exactly_0_and_no_gradient_of_it(inputs, direction, has_own_head, n, dtype):
    arguments = inputs(n=n, v=1100, h=24, dtype=dtype, drift=0.0)
    if has_own_head:
        arguments["ref_weight"] = arguments["policy_weight"].clone()
    kl = fused_nll_kl(**arguments, kl_direction=direction, softcap=30.0).kl
    (gradient,) = torch.autograd.grad(kl.sum(), arguments["policy_hidden"])
    assert kl.count_nonzero() == 0
    assert gradient.count_nonzero() == 0


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("drift", "true_kl"), [(2.4e-3, 1e-5), (5e-4, 5e-7)])
@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_the_error_of_a_small_kl_stays_near_the_rounding_of_a_float32(inputs, direction, drift, true_kl, offset):
    arguments = inputs(n=40, v=8192, h=4, dtype=torch.float32, drift=drift)
    arguments["bias"] = torch.full((8192,), offset)
    exact = {name: double(value) if name != "labels" else value for name, value in arguments.items()}
    exact_kl = plain_nll_kl(**exact, kl_direction=direction).kl
    error = fused_nll_kl(**arguments, kl_direction=direction).kl.double() - exact_kl
    assert true_kl / 3 < exact_kl.mean() < true_kl * 3
    assert error.square().mean().sqrt() < 1.5e-7
    assert error.abs().max() < 4e-7


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gaps_of_hundreds_of_nats_and_logits_of_minus_ten_thousand_stay_finite_and_right(direction):
    policy = torch.tensor([[0.0, -200.0, -1e4], [-1e4, -1e4, -1e4 + 1.0], [1e4, 0.0, 0.0]]).requires_grad_()
    ref = torch.tensor([[-200.0, 0.0, -1e4], [0.0, 0.0, -1.0], [0.0, 1e4, 0.0]])
    arguments = (policy, ref, torch.eye(3), None, torch.tensor([0, 1, 2]))
    result = fused_nll_kl(*arguments, kl_direction=direction)
    (result.nll.sum() + result.kl.sum()).backward()
    assert result.nll.tolist() == pytest.approx([0.0, math.log(2.0 + math.e), 1e4], rel=1e-6)
    log_policy, log_ref = (x.detach().double().log_softmax(-1) for x in (policy, ref))
    p, q = (log_policy, log_ref) if direction == "reverse" else (log_ref, log_policy)
    assert result.kl.tolist() == pytest.approx((p.exp() * (p - q)).sum(-1).tolist(), rel=1e-6)
    assert result.entropy.isfinite().all()
    assert policy.grad.isfinite().all()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["policy_hidden", "ref_hidden"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_hidden_state_that_is_not_finite_gives_a_kl_that_is_not_and_leaves_other_rows_alone(
    inputs, direction, name, value
):
    arguments = inputs(n=5, v=20, dtype=torch.float32)
    with torch.no_grad():
        arguments[name][2, 1] = value
    result = fused_nll_kl(**arguments, kl_direction=direction)
    both = token_statistics(**arguments)
    expected = [True, True, False, True, True]
    for kl in (result.kl, both.reverse_kl, both.forward_kl):
        assert kl.isfinite().tolist() == expected
    (gradient,) = torch.autograd.grad(result.kl.sum(), arguments["policy_hidden"])
    assert gradient.isfinite().all(-1).tolist() == expected


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.7, 5.0)])
@pytest.mark.parametrize("ref_h", [None, 12])
@pytest.mark.parametrize("has_bias", [False, True])
def test_values_and_gradients_equal_those_of_trls_kernels(inputs, direction, scale, softcap, ref_h, has_bias):
    arguments = inputs(
        n=30, v=1500, h=16, ref_h=ref_h, dtype=torch.float32, has_bias=has_bias, trains_head=True, drift=0.3
    )
    hidden, weight, bias = (arguments[name] for name in ("policy_hidden", "policy_weight", "bias"))
    ours = fused_nll_kl(**arguments, kl_direction=direction, scale=scale, softcap=softcap)
    log_p, entropy, _, _, is_top1 = ChunkedLogProbFunction.apply(
        hidden, weight, bias, arguments["labels"], 1.0, 1024, softcap, scale, ("entropy", "is_top1")
    )
    ref_weight, ref_bias = (weight, bias) if ref_h is None else (arguments["ref_weight"], arguments["ref_bias"])
    kl, _ = ChunkedDivergenceFunction.apply(
        hidden,
        weight,
        bias,
        arguments["ref_hidden"],
        ref_weight.detach(),
        None if ref_bias is None else ref_bias.detach(),
        TRL_BETA[direction],
        1.0,
        scale,
        softcap,
        scale,
        softcap,
    )
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close([ours.nll, ours.kl, ours.entropy], [-log_p, kl, entropy], **close)
    assert torch.equal(ours.is_top1, is_top1)
    trained = [x for x in (hidden, weight, bias) if x is not None]
    for our_part, their_part in ((ours.nll, -log_p), (ours.kl, kl)):
        gradients = torch.autograd.grad(our_part.mean(), trained, retain_graph=True)
        torch.testing.assert_close(
            gradients, torch.autograd.grad(their_part.mean(), trained, retain_graph=True), **close
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_no_number_is_further_from_float64_than_trls(inputs, dtype):
    arguments = inputs(n=40, v=1500, h=64, dtype=dtype, drift=0.3)
    hidden, ref_hidden, weight = (arguments[name] for name in ("policy_hidden", "ref_hidden", "policy_weight"))
    ours = fused_nll_kl(**arguments)
    log_p, *_ = ChunkedLogProbFunction.apply(hidden, weight, None, arguments["labels"], 1.0, 1024)
    kl, _ = ChunkedDivergenceFunction.apply(hidden, weight, None, ref_hidden, weight, None, 1.0)
    exact_hidden = double(hidden).requires_grad_()
    exact = plain_nll_kl(exact_hidden, double(ref_hidden), double(weight), None, arguments["labels"])
    for our_part, their_part, truth in ((ours.nll, -log_p, exact.nll), (ours.kl, kl, exact.kl)):
        assert our_part.dtype == torch.float32
        assert (our_part - truth).abs().max() <= (their_part - truth).abs().max()
        (our_gradient,) = torch.autograd.grad(our_part.mean(), hidden, retain_graph=True)
        (their_gradient,) = torch.autograd.grad(their_part.mean(), hidden)
        (true_gradient,) = torch.autograd.grad(truth.mean(), exact_hidden, retain_graph=True)
        assert our_gradient.dtype == dtype
        assert (our_gradient - true_gradient).norm() <= (their_gradient - true_gradient).norm() * 1.001


def test_a_trained_head_in_half_precision_gets_a_gradient_rounded_once(inputs):
    arguments = inputs(n=600, v=40, h=8, dtype=torch.bfloat16, trains_head=True)
    hidden, weight = arguments["policy_hidden"], arguments["policy_weight"]
    (gradient,) = torch.autograd.grad(fused_nll_kl(**arguments).nll.mean(), weight)
    exact = double(weight).requires_grad_()
    nll = plain_nll_kl(double(hidden), double(arguments["ref_hidden"]), exact, None, arguments["labels"]).nll
    (expected,) = torch.autograd.grad(nll.mean(), exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=2**-8, atol=1e-8)
