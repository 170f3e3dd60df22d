"""What `DPOTrainer.compute_loss` calls in place of the model."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class PairPolicy:
    """The policy, which runs shared prompts once and hands its log-probabilities to a function before the loss.

    Args:
        model: the policy, wrapped as it is trained.
        packed: rows of shared prompts that stand for the batch, or None for the batch as it is.
        receive: called with the log-probabilities `(2B, T - 1)` of the completion tokens, detached.
    """

    def __init__(self, model: nn.Module, packed: Any, receive: Callable[[Tensor], None]):
        self.model = model
        self.packed = packed
        self.receive = receive

    def __call__(self, *, fused_lm_head: bool = False, **inputs: Any) -> Any:
        if not fused_lm_head:
            return self.model(**inputs)
        if self.packed is not None:
            inputs["packed"] = self.packed
        output = self.model(**inputs, fused_lm_head=True)
        self.receive(output.log_probs.detach())
        return output
