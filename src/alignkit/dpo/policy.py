"""What `DPOTrainer.compute_loss` calls in place of the model."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class PairPolicy:
    """The policy, which hands its log-probabilities to a function before the loss is computed.

    Args:
        model: the policy, wrapped as it is trained.
        receive: called with the log-probabilities `(2B, T - 1)` of the completion tokens, detached.
    """

    def __init__(self, model: nn.Module, receive: Callable[[Tensor], None]):
        self.model = model
        self.receive = receive

    def __call__(self, *, fused_lm_head: bool = False, **inputs: Any) -> Any:
        if not fused_lm_head:
            return self.model(**inputs)
        output = self.model(**inputs, fused_lm_head=True)
        self.receive(output.log_probs.detach())
        return output
