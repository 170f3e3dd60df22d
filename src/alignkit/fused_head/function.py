"""NLL, KL to a reference, entropy and top-1 from hidden states, in one pass over tiles of the vocabulary.

`trl.kernels.chunked_logprob` and `trl.kernels.chunked_divergence` (TRL 1.16) are the nearest relatives. Differences:
1. NLL and KL come from the same tiles and share one backward: 2 + 3 head projections where the two functions together
   need 3 + 5 (one projection is 2 N H V floating-point operations; a frozen head, every gradient non-zero).
2. A head that serves both models multiplies the hidden states of both in one product.
3. The backward recomputes only rows with a gradient, and the reference only for rows with a gradient of the KL: a
   closed gate costs 2 + 2 projections, an aggregate that depends on one position 2 + 2 and one row.
4. Maximum and log-sum stay apart to the end and the KL is a sum of gaps between logits, so that its error does not grow
   with |log Z|. Half precision is projected into float32 for the NLL, too.
5. Off the GPU, tiles fit the processor's cache.
"""

from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.fused_head.passes import Call, Heads, accumulate_gradients, call_constants, fold_vocabulary
from alignkit.fused_head.plain import (
    HeadStatistics,
    KLDirection,
    TokenStatistics,
    check_arguments,
    check_direction,
    is_shared,
)
from alignkit.fused_head.tiles import RowValues


def fused_nll_kl(
    policy_hidden: Tensor,
    ref_hidden: Tensor,
    policy_weight: Tensor,
    ref_weight: Tensor | None,
    labels: Tensor,
    *,
    kl_direction: KLDirection = "reverse",
    softcap: float | None = None,
    scale: float = 1.0,
    bias: Tensor | None = None,
    ref_bias: Tensor | None = None,
) -> HeadStatistics:
    check_direction(kl_direction)
    heads = _heads(policy_hidden, ref_hidden, policy_weight, ref_weight, labels, softcap, bias, ref_bias)
    call = call_constants(policy_hidden, scale, softcap, (kl_direction,))
    with torch.autocast(policy_hidden.device.type, enabled=False):
        return HeadStatistics(*_FusedHead.apply(policy_hidden, ref_hidden, *heads, labels, call))


@torch.no_grad()
def token_statistics(
    policy_hidden: Tensor,
    ref_hidden: Tensor,
    policy_weight: Tensor,
    ref_weight: Tensor | None,
    labels: Tensor,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    bias: Tensor | None = None,
    ref_bias: Tensor | None = None,
) -> TokenStatistics:
    heads = _heads(policy_hidden, ref_hidden, policy_weight, ref_weight, labels, softcap, bias, ref_bias)
    call = call_constants(policy_hidden, scale, softcap, get_args(KLDirection))
    with torch.autocast(policy_hidden.device.type, enabled=False):
        found = _statistics(policy_hidden, ref_hidden, heads, labels, call)
    reverse_kl, forward_kl = found.kls
    return TokenStatistics(found.nll, reverse_kl, forward_kl, found.entropy, found.is_top1)


class _FusedHead(torch.autograd.Function):
    """(N,) NLL, KL, entropy and top-1; only the first two carry a gradient, to the policy's hidden states and head."""

    @staticmethod
    def forward(ctx, policy_hidden, ref_hidden, weight, bias, ref_weight, ref_bias, labels, call):
        ctx.set_materialize_grads(False)
        heads = Heads(weight, bias, ref_weight, ref_bias)
        found = _statistics(policy_hidden, ref_hidden, heads, labels, call)
        (kl,) = found.kls
        if any(ctx.needs_input_grad):
            row_values = (found.log_z[0], found.log_z[1], found.log_z_gap + kl)
            ctx.save_for_backward(policy_hidden, ref_hidden, *heads, labels, *row_values)
            ctx.call = call
        ctx.mark_non_differentiable(found.entropy, found.is_top1)
        return found.nll, kl, found.entropy, found.is_top1

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_nll, grad_kl, *_):
        policy_hidden, ref_hidden, weight, bias, ref_weight, ref_bias, labels, *row_values = ctx.saved_tensors
        log_z_policy, log_z_ref, offset = row_values
        grad_nll = torch.zeros_like(offset) if grad_nll is None else grad_nll
        grad_kl = torch.zeros_like(offset) if grad_kl is None else grad_kl
        open_rows = (grad_kl != 0).nonzero().squeeze(-1)
        closed_rows = ((grad_kl == 0) & (grad_nll != 0)).nonzero().squeeze(-1)
        rows = torch.cat([open_rows, closed_rows])
        values = RowValues(
            labels[rows],
            grad_nll[rows],
            log_z_policy[rows],
            grad_kl[open_rows],
            log_z_ref[open_rows],
            offset[open_rows],
        )
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.needs_input_grad[3])
        heads = Heads(weight, bias, ref_weight, ref_bias)
        with torch.autocast(policy_hidden.device.type, enabled=False):
            sums = accumulate_gradients(policy_hidden[rows], ref_hidden[open_rows], heads, values, ctx.call, needs)
        grad_hidden = None
        if sums.hidden is not None:
            grad_hidden = torch.zeros_like(policy_hidden)
            grad_hidden[rows] = sums.hidden.to(grad_hidden.dtype)
        grad_weight = None if sums.weight is None else sums.weight.to(weight.dtype)
        grad_bias = None if sums.bias is None else sums.bias.to(bias.dtype)
        return grad_hidden, None, grad_weight, grad_bias, None, None, None, None


class _Statistics(NamedTuple):
    nll: Tensor  # (N,)
    kls: list[Tensor]  # one (N,) per direction
    entropy: Tensor  # (N,)
    is_top1: Tensor  # (N,)
    log_z: Tensor  # (2, N)
    log_z_gap: Tensor  # (N,): log Z_policy - log Z_ref


def _statistics(policy_hidden: Tensor, ref_hidden: Tensor, heads: Heads, labels: Tensor, call: Call) -> _Statistics:
    """The numbers of every row."""
    sums = fold_vocabulary(policy_hidden, ref_hidden, heads, labels, call)
    log_sum = sums.sum_exp.log()
    # A sum of small differences, exact where the models agree; the difference of the two log Z would cost digits.
    log_z_gap = (sums.maximum[0] - sums.maximum[1]) + (log_sum[0] - log_sum[1])
    kls = []
    for direction, weighted_gap in zip(call.directions, sums.weighted_gaps, strict=True):
        if direction == "reverse":
            kl = weighted_gap / sums.sum_exp[0] - log_z_gap
        else:
            kl = weighted_gap / sums.sum_exp[1] + log_z_gap
        kls.append(kl.clamp(min=0.0))  # rounding leaves about -1e-7 of a KL of 0; a NaN stays one
    return _Statistics(
        nll=(sums.maximum[0] - sums.label_logit) + log_sum[0],
        kls=kls,
        entropy=log_sum[0] - sums.weighted_centred / sums.sum_exp[0],
        is_top1=sums.is_top1,
        log_z=sums.maximum + log_sum,
        log_z_gap=log_z_gap,
    )


def _heads(
    policy_hidden: Tensor,
    ref_hidden: Tensor,
    policy_weight: Tensor,
    ref_weight: Tensor | None,
    labels: Tensor,
    softcap: float | None,
    bias: Tensor | None,
    ref_bias: Tensor | None,
) -> Heads:
    """The checked heads."""
    check_arguments(policy_hidden, ref_hidden, policy_weight, ref_weight, labels, softcap, bias, ref_bias)
    if is_shared(policy_weight, ref_weight):
        return Heads(policy_weight, bias, None, None)
    return Heads(policy_weight, bias, ref_weight, ref_bias)
