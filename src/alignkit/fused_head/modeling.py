"""A causal language model whose forward also answers with hidden states for the fused head, or with its statistics.

Differences from TRL's `add_fused_lm_head`, which serves NLL alone:
1. Two requests instead of one: `output_head_input` (a reference: hidden states, no projection) and `against` (a
   policy: NLL, KL, entropy and top-1 from one pass over the vocabulary).
2. Only positions with a label are projected, on every device.
3. The vectors come back compact, `(N,)` in row-major order of the labels, instead of scattered to `(B, T - 1)`.
"""

import functools
import types
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils import ModelOutput

from alignkit.fused_head.function import fused_nll_kl, token_statistics

IGNORED_LABEL = -100


@dataclass(frozen=True)
class HeadSettings:
    """What a model does to its logits: `softcap · tanh(scale · z / softcap)`, or `scale · z` without a cap."""

    softcap: float | None
    scale: float


@dataclass
class HeadInput(ModelOutput):
    """What the fused head needs of a reference.

    Attributes:
        hidden (`Tensor`, `(N, H)`): last hidden states of the positions whose next token has a label.
        weight, bias (`Tensor`, `(V, H)`, `(V,)`): its output embedding, or None for the policy's own.
    """

    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass
class AgainstReferenceOutput(ModelOutput):
    """Statistics of the labelled positions. The first five have TRL's names, so that its trainers can read them.

    Attributes:
        log_probs (`Tensor`, `(N,)`): log-probability of each label; carries the gradient, as `kl` does.
        entropy, is_top1 (`Tensor`, `(N,)`): of the policy, without gradient.
        label_mask (`Tensor`, `(B, T - 1)`): which next tokens have a label; N are true.
        aux_loss (`Tensor`, scalar): load-balancing loss of a mixture of experts whose config asks for it.
        kl (`Tensor`, `(N,)`): divergence in the asked direction, nats; None in an evaluation.
        reverse_kl, forward_kl (`Tensor`, `(N,)`): both directions, without gradient; None in training.
    """

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    is_top1: Tensor | None = None
    label_mask: Tensor | None = None
    aux_loss: Tensor | None = None
    kl: Tensor | None = None
    reverse_kl: Tensor | None = None
    forward_kl: Tensor | None = None


def head_settings(config: PretrainedConfig) -> HeadSettings:
    """Soft-cap and scale of the logits, under the names that architectures give them.

    `final_logit_softcapping` (Gemma 2, 3n), `logit_scale` (Cohere), `output_multiplier` (Muse Glimmer),
    `lm_head_multiplier` (Falcon-H1); `logits_scaling` divides (Granite, MiniCPM3), except in HyperCLOVA X.
    """
    text: Any = config.get_text_config()
    scale = next(
        (
            value
            for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
            if (value := getattr(text, name, None)) is not None
        ),
        None,
    )
    if scale is None and (divisor := getattr(text, "logits_scaling", None)) is not None:
        scale = divisor if text.model_type == "hyperclovax" else 1 / divisor
    return HeadSettings(getattr(text, "final_logit_softcapping", None), 1.0 if scale is None else scale)


def whole(parameter: Any) -> Any:
    """The full tensor of a parameter that FSDP2 has sharded; others as they are."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def add_reference_head(model: PreTrainedModel) -> None:
    """Let `model.forward` take the requests below, together with `labels`; without them it is what it was.

    - `output_head_input=True`: return a [`HeadInput`] without an output embedding.
    - `against=HeadInput`, `kl_direction="reverse" | "forward" | "both"`: return an [`AgainstReferenceOutput`].

    With both, `label_positions` may give the rows and columns `(N,)` of `labels[:, 1:]` that have a label, row by row;
    else they are looked for, which waits for the device.

    Args:
        model: a causal language model, before DDP or FSDP wraps it; inside PEFT, the base model.
    """
    earlier_forward = model.forward
    settings = head_settings(model.config)
    text_config: Any = model.config.get_text_config()

    # `generate` checks its arguments against this signature.
    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel,
        *args: Any,
        output_head_input: bool = False,
        against: HeadInput | None = None,
        kl_direction: Literal["reverse", "forward", "both"] = "reverse",
        label_positions: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        if not output_head_input and against is None:
            return earlier_forward(*args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        mask = labels != IGNORED_LABEL
        # Before the backbone, so that the GPU is waited for while idle.
        rows, columns = label_positions or mask.nonzero(as_tuple=True)
        # FSDP and PEFT replace the backbone and the head after this patch, so both are looked up in every call.
        backbone: Any = self.base_model(*args, **kwargs | {"use_cache": False})
        head: Any = self.get_output_embeddings()
        # With the model split over devices, labels, the end of the backbone and the head may be on three of them.
        device, states = head.weight.device, backbone.last_hidden_state
        hidden = states[rows.to(states.device), columns.to(states.device)].to(device)
        if output_head_input:
            return HeadInput(hidden=hidden)
        assert against is not None
        output = _statistics(hidden, head, against, labels[rows, columns].to(device), settings, kl_direction)
        output.label_mask = mask
        if kwargs.get("output_router_logits"):
            # In a padding-free row every token counts, and there is no mask.
            aux_loss: Any = load_balancing_loss_func(
                backbone.router_logits,
                text_config.num_experts,
                text_config.num_experts_per_tok,
                kwargs.get("attention_mask"),
            )
            output.aux_loss = aux_loss
        return output

    model.forward = types.MethodType(forward, model)


def _statistics(
    hidden: Tensor, head: Any, against: HeadInput, labels: Tensor, settings: HeadSettings, kl_direction: Any
) -> AgainstReferenceOutput:
    assert against.hidden is not None
    tensors = (hidden, against.hidden, whole(head.weight), against.weight, labels)
    options: dict[str, Any] = {
        "softcap": settings.softcap,
        "scale": settings.scale,
        "bias": whole(head.bias),
        "ref_bias": against.bias,
    }
    if kl_direction == "both":
        both = token_statistics(*tensors, **options)
        return AgainstReferenceOutput(
            log_probs=-both.nll,
            entropy=both.entropy,
            is_top1=both.is_top1,
            reverse_kl=both.reverse_kl,
            forward_kl=both.forward_kl,
        )
    one = fused_nll_kl(*tensors, kl_direction=kl_direction, **options)
    return AgainstReferenceOutput(log_probs=-one.nll, entropy=one.entropy, is_top1=one.is_top1, kl=one.kl)


def causal_lm_of(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside a PEFT model, or the model itself."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if get_base_model is not None else model  # type: ignore[return-value]
