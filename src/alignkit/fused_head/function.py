"""NLL, KL to a reference, entropy and top-1 from hidden states, in one pass over tiles of the vocabulary.

`trl.kernels.chunked_logprob` and `trl.kernels.chunked_divergence` (TRL 1.16) are the nearest relatives. Differences:
1. NLL and KL come from the same tiles and share one backward: 2 + 3 head projections where the two functions together
   need 3 + 5 (one projection is 2 N H V floating-point operations; a frozen head, every gradient non-zero).
2. A head that serves both models multiplies the hidden states of both in one product.
3. The backward recomputes only rows with a gradient, and the reference only for rows with a gradient of the KL: a
   closed gate costs 2 + 2 projections, an aggregate that depends on one position 2 + 2 and one row.
4. Maximum and log-sum stay apart to the end and the KL is a sum of gaps between logits, so that its error does not
   grow with |log Z|. Half precision is projected into float32 for the NLL, too.
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
    is_same_tensor,
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
    r"""NLL and KL per position from hidden states, with gradients to the policy; `(N, V)` logits never exist.

    With h the hidden states, z = softcap · tanh(scale · (h Wᵀ + bias) / softcap), p = softmax(z of the policy) and
    q = softmax(z of the reference), in nats:

        nll_i = -log p_i[label_i]
        kl_i  = Σ_v p (log p - log q)     "reverse", KL(policy || ref)
              = Σ_v q (log q - log p)     "forward", KL(ref || policy)

    Everything between the projection and the result is float32 (float64 for float64 inputs), also for half-precision
    inputs; under autocast, hidden states and weights are first rounded to its dtype. Equal hidden states under equal
    heads give a KL of exactly 0 and a KL-gradient of exactly 0. Elsewhere the float32 error of a KL is 8e-8 nats (root
    mean square; the largest of 64 positions 2.5e-7) for true values from 8e-8 to 2e-4 and V = 32,768, also with 20
    added to all logits; TRL's `ChunkedDivergenceFunction` on the same inputs: largest error 1e-6 to 5e-6.

    Cost, in projections u = 2 N H V: 2 u forward; backward 2 u for the NLL and 1 u more for the rows with a non-zero
    gradient of the KL; rows with no gradient at all are skipped; a trainable head adds 1 u. Memory beyond inputs and
    gradients: one tile of logits of both models (1 MiB on a CPU, 256 MiB on a GPU) with its temporaries. To learn
    which rows have a gradient, the backward waits for the GPU twice.

    Args:
        policy_hidden (`Tensor`, `(N, H)`): the policy's last hidden states at N labelled positions; N may be 0.
        ref_hidden (`Tensor`, `(N, H_ref)`): the reference's; gets no gradient.
        policy_weight (`Tensor`, `(V, H)`): the policy's head. Where it requires a gradient, it gets one from its part
            as the policy's; sums are float32 for every dtype.
        ref_weight (`Tensor`, `(V, H_ref)`, or None): the reference's head; gets no gradient. None, or the policy's own
            tensor, says that one head serves both, and both are projected in one product.
        labels (`Tensor`, `(N,)` int64): all in 0..V-1; masked positions are left out by the caller.
        kl_direction (`str`, defaults to `"reverse"`): see above.
        softcap (`float`, *optional*): final logit soft-capping of both models (Gemma 2).
        scale (`float`, defaults to 1.0): logit scale of both models (Cohere, Granite), applied before the softcap.
        bias (`Tensor`, `(V,)`, *optional*): bias of the policy's head; gets a gradient if it requires one.
        ref_bias (`Tensor`, `(V,)`, *optional*): bias of the reference's head. A shared head brings its own.

    Returns:
        [`HeadStatistics`]: `nll` and `kl` carry gradients (first order only), `entropy` and `is_top1` do not.

    Raises:
        ValueError: shapes that do not fit, heads with different vocabularies, labels outside of 0..V-1 (looked at on
            the CPU only), an unknown direction, a softcap that is not positive.
    """
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
    """What [`fused_nll_kl`] computes, with both directions of the KL from one pass and without gradients.

    The arguments, their defaults and the errors are those of [`fused_nll_kl`], without a direction.
    """
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
    # Not the difference of the two logarithms: this one is small and exact where the models agree.
    log_sum_gap = (sums.sum_exp[0] / sums.sum_exp[1]).log()
    kls = []
    for direction, weighted_gap in zip(call.directions, sums.weighted_gaps, strict=True):
        if direction == "reverse":
            kl = weighted_gap / sums.sum_exp[0] - log_sum_gap
        else:
            kl = weighted_gap / sums.sum_exp[1] + log_sum_gap
        kls.append(kl.clamp(min=0.0))  # rounding leaves about -1e-7 of a KL of 0; a NaN stays one
    return _Statistics(
        nll=(sums.maximum[0] - sums.label_logit) + log_sum[0],
        kls=kls,
        entropy=log_sum[0] - sums.weighted_centred / sums.sum_exp[0],
        is_top1=sums.is_top1,
        log_z=sums.maximum + log_sum,
        log_z_gap=(sums.maximum[0] - sums.maximum[1]) + log_sum_gap,
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
    if ref_weight is None or is_same_tensor(policy_weight, ref_weight):
        return Heads(policy_weight, bias, None, None)
    return Heads(policy_weight, bias, ref_weight, ref_bias)
