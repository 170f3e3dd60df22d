"""The definition of the head's numbers, by hand, and the errors that both twins raise."""

import math
from typing import Any

import pytest
import torch

from alignkit.fused_head import fused_nll_kl, plain_nll_kl, token_statistics

TWINS = [plain_nll_kl, fused_nll_kl]


def logits_as_inputs(policy: list[list[float]], ref: list[list[float]], labels: list[int]) -> dict[str, Any]:
    """Arguments whose projections are the given logits: the head is the identity."""
    eye = torch.eye(len(policy[0]))
    return {
        "policy_hidden": torch.tensor(policy),
        "ref_hidden": torch.tensor(ref),
        "policy_weight": eye,
        "ref_weight": None,
        "labels": torch.tensor(labels),
    }


@pytest.mark.parametrize("head", TWINS)
def test_a_worked_example_of_two_words(head):
    # p = (3/4, 1/4), q = (1/4, 3/4).
    inputs = logits_as_inputs([[math.log(3.0), 0.0]], [[0.0, math.log(3.0)]], [1])
    reverse, forward = head(**inputs), head(**inputs, kl_direction="forward")
    assert reverse.nll.item() == pytest.approx(math.log(4.0))
    assert reverse.kl.item() == pytest.approx(0.75 * math.log(3.0) - 0.25 * math.log(3.0))
    assert forward.kl.item() == pytest.approx(0.75 * math.log(3.0) - 0.25 * math.log(3.0))
    assert reverse.entropy.item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4.0))
    assert reverse.is_top1.tolist() == [False]


@pytest.mark.parametrize("head", TWINS)
def test_the_two_directions_weigh_the_gap_by_the_policy_and_by_the_reference(head):
    # p = (1/2, 1/2), q = (9/10, 1/10).
    inputs = logits_as_inputs([[0.0, 0.0]], [[math.log(9.0), 0.0]], [0])
    reverse, forward = head(**inputs).kl.item(), head(**inputs, kl_direction="forward").kl.item()
    assert reverse == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), abs=1e-6)
    assert forward == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), abs=1e-6)


@pytest.mark.parametrize("head", TWINS)
def test_of_equal_largest_logits_only_the_first_is_top_1(head):
    logits = [[1.0, 2.0, 2.0, 0.0]] * 4
    assert head(**logits_as_inputs(logits, logits, [0, 1, 2, 3])).is_top1.tolist() == [False, True, False, False]


@pytest.mark.parametrize("head", TWINS)
def test_bias_comes_before_scale_and_scale_before_softcap(head):
    inputs = logits_as_inputs([[1.0, 0.0]], [[1.0, 0.0]], [0])
    nll = head(**inputs, bias=torch.tensor([2.0, 0.0]), scale=3.0, softcap=10.0).nll.item()
    assert nll == pytest.approx(math.log1p(math.exp(-10.0 * math.tanh(0.9))), rel=1e-5)


@pytest.mark.parametrize("head", TWINS)
def test_only_nll_and_kl_carry_a_gradient_and_only_to_the_policy(head, inputs):
    arguments = inputs(ref_h=4, has_bias=True, trains_head=True)
    for name in ("ref_hidden", "ref_weight", "ref_bias"):
        arguments[name].requires_grad_()
    result = head(**arguments)
    assert not result.entropy.requires_grad
    (result.nll.sum() + result.kl.sum()).backward()
    assert all(arguments[name].grad is not None for name in ("policy_hidden", "policy_weight", "bias"))
    assert all(arguments[name].grad is None for name in ("ref_hidden", "ref_weight", "ref_bias"))


@pytest.mark.parametrize("head", [*TWINS, token_statistics])
@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"labels": torch.zeros(4, dtype=torch.long)}, r"policy_hidden has shape \(5, 3\).*labels \(4,\)"),
        ({"ref_hidden": torch.zeros(6, 3, dtype=torch.float64)}, r"ref_hidden \(6, 3\)"),
        ({"ref_hidden": torch.zeros(5, 4, dtype=torch.float64)}, r"ref_hidden has shape \(5, 4\).*\(10, 3\)"),
        ({"policy_weight": torch.zeros(10, 2, dtype=torch.float64)}, r"policy_hidden has shape \(5, 3\).*\(10, 2\)"),
        ({"ref_weight": torch.zeros(11, 3, dtype=torch.float64)}, "the policy has 10 vocabulary entries.*11"),
        ({"labels": torch.tensor([0, 1, 2, 3, 10])}, r"labels range from 0 to 10; they must lie in 0\.\.9"),
        ({"labels": torch.tensor([-100, 1, 2, 3, 4])}, "labels range from -100 to 4"),
        ({"bias": torch.zeros(9, dtype=torch.float64)}, r"bias of the policy head has shape \(9,\).*\(10,\)"),
        ({"ref_bias": torch.zeros(10, dtype=torch.float64)}, "the head is shared, but ref_bias is not bias"),
        ({"softcap": 0.0}, "softcap is 0.0; it must be positive"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_their_values(head, inputs, changed, complaint):
    with pytest.raises(ValueError, match=complaint):
        head(**{**inputs(), **changed})


@pytest.mark.parametrize("head", TWINS)
def test_an_unknown_direction_is_refused(head, inputs):
    with pytest.raises(ValueError, match="kl_direction is 'jeffreys'; choose one of"):
        head(**inputs(), kl_direction="jeffreys")
