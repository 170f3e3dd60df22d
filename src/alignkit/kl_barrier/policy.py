"""What `SFTTrainer.compute_loss` calls in place of the model."""

from typing import Any, Literal

from torch import nn

from alignkit.fused_head.modeling import HeadInput


class AgainstReference:
    """The policy, which compares itself with a reference where the parent asks it for log-probabilities.

    Args:
        model: the policy, after [`~alignkit.fused_head.modeling.add_reference_head`].
        against: the reference at the batch's labelled positions, or None to answer as the parent expects.
        kl_direction: `"reverse"` or `"forward"` with a gradient, or `"both"` without.

    Attributes:
        output: what the last call for log-probabilities gave, which the parent does not return.
    """

    def __init__(
        self, model: nn.Module, against: HeadInput | None, kl_direction: Literal["reverse", "forward", "both"]
    ):
        self.model = model
        self.against = against
        self.kl_direction = kl_direction
        self.output: Any = None

    def __call__(self, *, fused_lm_head: bool = False, **inputs: Any) -> Any:
        if not fused_lm_head:
            return self.model(**inputs)
        if self.against is None:
            self.output = self.model(**inputs, fused_lm_head=True)
        else:
            self.output = self.model(**inputs, against=self.against, kl_direction=self.kl_direction)
        return self.output
