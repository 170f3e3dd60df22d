"""The barrier as TRL's users can write it today: from two kernels of TRL's, and with whole logits.

Both are `SFTTrainer` with `compute_loss` overridden, the adapter switched off by PEFT for the reference, and the
aggregates of alignkit, which cost nothing beside the rest. For rows of equal length.
"""

from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from alignkit.kl_barrier import Aggregate, aggregate_positions, hinge_barrier

REVERSE_KL = 1.0


class BarrierOnTRL(SFTTrainer):
    """What the two have in common.

    Args:
        barrier_weight, tau_nats, aggregate: as of `alignkit.KLBarrierConfig`.
    """

    def __init__(self, *args: Any, barrier_weight: float, tau_nats: float, aggregate: Aggregate, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.barrier_weight, self.tau_nats, self.aggregate = barrier_weight, tau_nats, aggregate

    def barrier(self, kl: Tensor) -> Tensor:
        """Mean over the sequences of relu(D - tau), times its weight, from the divergences `(B, T - 1)`."""
        index = torch.arange(len(kl), device=kl.device).repeat_interleave(kl.shape[1])
        divergence = aggregate_positions(kl.flatten(), self.aggregate, index, n_sequences=len(kl))
        share = self.barrier_weight / self.current_gradient_accumulation_steps
        return share * hinge_barrier(divergence, self.tau_nats).mean()


class CompositionTrainer(BarrierOnTRL):
    """NLL by the fused head of `SFTTrainer`, KL by `ChunkedDivergenceFunction`: 4 b + 8 u, whatever the gate."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._causal_lm = self.model.get_base_model()
        self._causal_lm.base_model.register_forward_hook(self._keep_hidden)

    def _keep_hidden(self, module: Any, args: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state[:, :-1].flatten(0, 1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        backbone_inputs = {name: value for name, value in inputs.items() if name != "labels"} | {"use_cache": False}
        with torch.no_grad(), self.model.disable_adapter(), self.compute_loss_context_manager():
            self._causal_lm.base_model(**backbone_inputs)
        ref_hidden = self._hidden
        nll = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        head = self._causal_lm.get_output_embeddings()
        kl, _ = ChunkedDivergenceFunction.apply(
            self._hidden, head.weight, head.bias, ref_hidden, head.weight, head.bias, REVERSE_KL
        )
        return nll + self.barrier(kl.view(len(inputs["labels"]), -1))


class LogitsTrainer(BarrierOnTRL):
    """NLL and KL from `model(...).logits` of both models, in float32."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")[:, 1:]
        with torch.no_grad(), self.model.disable_adapter():
            log_ref = model(**inputs, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        log_policy = model(**inputs, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        nll = -log_policy.gather(-1, labels[..., None]).sum() / num_items_in_batch
        kl = (log_policy.exp() * (log_policy - log_ref)).sum(-1)
        return nll + self.barrier(kl)
