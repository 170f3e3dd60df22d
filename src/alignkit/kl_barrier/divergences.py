"""Divergence of a policy from a reference at each position, over the whole vocabulary, from logits.

How this differs from Σ p (log p - log q), and why:

1. The sum runs over p (exp(d) - 1 - d) with d = log q - log p, which adds Σ (q - p) = 0 and makes every term >= 0. In
   float32 the usual sum has no correct digit at a divergence of 5e-7 nats, and may be negative.
2. Where |d| >= 1 nothing cancels and exp(d) could overflow, so the term is taken as q - p - p d.
3. An entry that both models rule out (logit -inf) counts 0, not NaN.
"""

import torch
from torch import Tensor


def reverse_kl(policy_logits: Tensor, ref_logits: Tensor) -> Tensor:
    r"""KL(policy ‖ ref) of each position.

        k_t = Σ_v p_v (log p_v - log q_v),   p = softmax(policy_logits_t),  q = softmax(ref_logits_t)

    Gradients flow to both inputs, p_v (log p_v - log q_v - k_t) to the policy's logits and q_v - p_v to the
    reference's; call it on `ref_logits.detach()` where the reference is fixed. At equal inputs value and gradients are
    exactly 0. Source: Kullback and Leibler (1951).

    Args:
        policy_logits (`Tensor`, `(N, V)`): logits of the policy. Half precision is upcast to float32.
        ref_logits (`Tensor`, `(N, V)`): logits of the reference at the same positions.

    Returns:
        `Tensor`, `(N,)`, in nats, >= 0. Infinite, without a finite gradient, where the reference rules out (logit
        -inf) what the policy does not; NaN where a row of logits holds NaN or +inf, or only -inf.

    Raises:
        ValueError: shapes that differ, such as vocabularies of two sizes.
    """
    if policy_logits.shape != ref_logits.shape:
        raise ValueError(
            f"policy_logits have the shape {tuple(policy_logits.shape)} and ref_logits {tuple(ref_logits.shape)}; "
            "give both models the same positions and the same vocabulary"
        )
    log_p = _full_precision(policy_logits).log_softmax(-1)
    log_q = _full_precision(ref_logits).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    # An entry of probability 0 adds q, as in the limit; -inf times 0 would be NaN.
    d = (log_q - log_p).masked_fill(p == 0, 0.0)
    is_near = (d.abs() < 1) & (p != 0)
    d_near = d.where(is_near, 0.0)  # so that the branch not taken has a finite gradient
    return torch.where(is_near, p * (torch.expm1(d_near) - d_near), q - p - p * d).sum(-1)


def forward_kl(policy_logits: Tensor, ref_logits: Tensor) -> Tensor:
    r"""KL(ref ‖ policy) of each position: [`reverse_kl`] with the models exchanged.

        k_t = Σ_v q_v (log q_v - log p_v),   p = softmax(policy_logits_t),  q = softmax(ref_logits_t)

    The gradient is p_v - q_v to the policy's logits. Infinite where the policy rules out what the reference does not.

    Args:
        policy_logits, ref_logits (`Tensor`, `(N, V)`): as for [`reverse_kl`].

    Returns:
        `Tensor`, `(N,)`, in nats, >= 0.

    Raises:
        ValueError: shapes that differ.
    """
    return reverse_kl(ref_logits, policy_logits)


def _full_precision(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
