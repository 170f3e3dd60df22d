"""Which models can run packed rows, and what a packed row costs them."""

import inspect
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from alignkit._compat import adapters_have_a_flag
from alignkit.shared_prefix.layout import RowCost

# Attention implementations and layer types that masks by path are made for.
ATTENTION = ("sdpa", "eager", "flex_attention")
LAYER_TYPES = ("full_attention", "sliding_attention")
# Modules that read `position_ids`, counted from 0: rotary embeddings and the table of GPT-2.
POSITIONS = ("rotary_emb", "wpe")


def why_not_shared(model: nn.Module) -> str | None:
    """The reason, in words, why a model cannot run packed rows; None if it can.

    What is known to be right is recognised, and everything else is refused: attention through transformers' interface
    by an implementation that takes any mask, full or sliding layers, positions that come from `position_ids`,
    nothing else that mixes tokens.
    """
    if isinstance(model, PeftModel):
        if not adapters_have_a_flag(model):
            return f"its adapter ({model.active_peft_config.peft_type.value}) acts on more than one token at a time"
        if any(getattr(config, "alora_invocation_tokens", None) for config in model.peft_config.values()):
            return "an activated LoRA looks for its invocation tokens in every row"
    base = inner_model(model)
    config: Any = base.config
    backbone: Any = base.base_model
    if config.get_text_config() is not config:
        return f"{type(base).__name__} takes more than text"
    if config.is_encoder_decoder:
        return f"{type(base).__name__} is an encoder and a decoder"
    if base._is_stateful:
        return f"{type(base).__name__} carries a state from token to token"
    if not base._supports_attention_backend:
        return f"{type(base).__name__} does not use the attention functions of transformers"
    if config._attn_implementation not in ATTENTION:
        return f"{config._attn_implementation} takes no mask; use attn_implementation 'sdpa'"
    others = sorted(set(getattr(config, "layer_types", None) or ()) - set(LAYER_TYPES))
    if others or getattr(config, "attention_chunk_size", None) is not None:
        return f"it has layers of type {', '.join(others) or 'chunked_attention'}"
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        return "its attention is bidirectional"
    if "position_ids" not in inspect.signature(type(backbone).forward).parameters:
        return f"{type(backbone).__name__} takes no position_ids"
    if not any(hasattr(backbone, name) for name in POSITIONS):
        return f"the positions of {type(backbone).__name__} are not known to be rotary or those of GPT-2"
    if getattr(config, "output_router_logits", False):
        return "its experts' balance is computed from router logits, one for each token of each row"
    return None


def row_cost(model: nn.Module) -> RowCost:
    """Cost of a packed row for a model, per layer, in FLOPs of a forward.

    `2 * parameters` a token; eager attention computes `4 * heads * head_dim` for every pair of a packed row's tokens,
    and reads and writes the scores several times, which takes several times as long as those FLOPs.
    """
    base = inner_model(model)
    config: Any = base.config
    if config._attn_implementation != "eager":
        return RowCost()
    embedded = {id(base.get_input_embeddings().weight)}
    parameters = sum(weight.numel() for weight in base.base_model.parameters() if id(weight) not in embedded)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return RowCost(
        linear=2 * parameters / config.num_hidden_layers,
        attention=4 * config.num_attention_heads * head_dim,
    )


def inner_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]
