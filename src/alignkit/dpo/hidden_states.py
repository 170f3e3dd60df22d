"""The last hidden states of a forward that was asked for log-probabilities, and the divergence they give.

TRL's forward returns no hidden states, and a second forward for them would double the work. A hook on the backbone,
set once for the life of the trainer, keeps them where they are wanted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.fused_head import token_statistics
from alignkit.fused_head.modeling import causal_lm_of, head_settings, whole
from alignkit.reference import ReferenceManager


class HiddenStates:
    """Keeps the last hidden states `(M, T, H)` of a model's forwards inside `with kept():`.

    Args:
        model: a causal language model or a PEFT model, before DDP or FSDP wraps it.
    """

    def __init__(self, model: nn.Module):
        self.last: Tensor | None = None
        self._wanted = False
        causal_lm_of(model).base_model.register_forward_hook(self._keep)

    @contextmanager
    def kept(self, wanted: bool) -> Iterator[None]:
        """Within the context every forward leaves its hidden states in `last`, without a gradient, if `wanted`."""
        self._wanted = wanted
        try:
            yield
        finally:
            self._wanted = False

    def pop(self) -> Tensor:
        """The hidden states of the last forward, which are forgotten."""
        assert self.last is not None, "no forward ran inside kept()"
        last, self.last = self.last, None
        return last

    def _keep(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self._wanted:
            self.last = output.last_hidden_state.detach()


@torch.no_grad()
def reverse_kl_of_completions(
    policy: nn.Module,
    policy_hidden: Tensor,
    ref_hidden: Tensor,
    input_ids: Tensor,
    completion_mask: Tensor,
    reference: ReferenceManager,
) -> Tensor:
    """KL(policy ‖ ref) over the whole vocabulary at the positions that predict a completion token, `(N,)` in nats.

    Args:
        policy: the policy, not wrapped.
        policy_hidden, ref_hidden (`(M, T, H)`): last hidden states of the same rows, with virtual tokens before them
            where there are any.
        input_ids, completion_mask (`(M, T)`): the rows, and which of their tokens belong to a completion.
        reference: whose output embedding is read, where it is not the policy's own.
    """
    n_tokens = input_ids.shape[1]  # prompt learning puts virtual ones before them
    rows, columns = completion_mask[:, 1:].nonzero(as_tuple=True)  # waits once; a mask as an index would thrice
    causal_lm = causal_lm_of(policy)
    head: Any = causal_lm.get_output_embeddings()
    settings = head_settings(causal_lm.config)
    ref_weight = ref_bias = None
    if not reference.shares_head:
        with reference.active(policy) as ref_model:
            ref_head: Any = causal_lm_of(_unwrapped(ref_model)).get_output_embeddings()
            ref_weight = whole(ref_head.weight.detach())
            ref_bias = None if ref_head.bias is None else whole(ref_head.bias.detach())
    statistics = token_statistics(
        policy_hidden[:, -n_tokens:-1][rows, columns],
        ref_hidden[:, -n_tokens:-1][rows, columns],
        whole(head.weight),
        ref_weight,
        input_ids[:, 1:][rows, columns],
        softcap=settings.softcap,
        scale=settings.scale,
        bias=None if head.bias is None else whole(head.bias),
        ref_bias=ref_bias,
    )
    return statistics.reverse_kl


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DDP."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
