"""A backbone that takes packed rows: distinct tokens in, hidden states of the positions asked for out."""

import functools
import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

from alignkit.shared_prefix.attention import PathMask
from alignkit.shared_prefix.layout import PackedRows
from alignkit.shared_prefix.support import inner_model, why_not_shared


def share_prefix(model: nn.Module) -> None:
    """Let the backbone's forward take `packed`, a `PackedRows`; without it, it is what it was.

    With `packed`, the ids, mask and positions of the call are not read, and `last_hidden_state` is `(M, C, H)`: the
    hidden states of `packed.index`. Keywords that a causal language model or a sequence classifier does not know go on
    to the backbone, so `model(input_ids=..., packed=packed)` gets there. Doing it twice changes nothing.

    Args:
        model: a transformers model with any head, or a PEFT model around one, before DDP or FSDP wraps it.

    Raises:
        ValueError: a model that cannot; see [`why_not_shared`].
    """
    if (reason := why_not_shared(model)) is not None:
        raise ValueError(f"prefixes cannot be shared: {reason}; set share_prefix=False")
    backbone: Any = inner_model(model).base_model
    if hasattr(backbone, "forward_whole_rows"):
        return
    # An attribute, which a deep copy of the model binds to the copy; a variable of the closure would run this one.
    backbone.forward_whole_rows = backbone.forward

    @functools.wraps(type(backbone).forward)
    def forward(self: Any, *args: Any, packed: PackedRows | None = None, **kwargs: Any) -> Any:
        if packed is None:
            return self.forward_whole_rows(*args, **kwargs)
        options = {name: kwargs[name] for name in kwargs if name not in ("input_ids", "attention_mask", "use_cache")}
        options["position_ids"] = packed.position_ids
        outputs = self.forward_whole_rows(
            packed.input_ids, attention_mask=_masks(self, packed), use_cache=False, **options
        )
        hidden = outputs.last_hidden_state.flatten(0, 1)  # (R * W, H)
        index = packed.index.to(hidden.device)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden.index_select(0, index.flatten()).unflatten(0, index.shape)
        )

    backbone.forward = types.MethodType(forward, backbone)


def _masks(backbone: Any, packed: PackedRows) -> Any:
    """The masks of packed rows as a model's forward takes them prepared: one, or one for each type of layer.

    The types are those of `transformers.masking_utils.create_masks_for_generate`.
    """
    config: PretrainedConfig = backbone.config
    window = getattr(config, "sliding_window", None)
    if getattr(config, "layer_types", None) is None:
        return _mask(backbone, packed, window)
    windows = {"full_attention": None} if window is None else {"full_attention": None, "sliding_attention": window}
    return {layer_type: _mask(backbone, packed, window) for layer_type, window in windows.items()}


def _mask(backbone: Any, packed: PackedRows, window: int | None) -> Any:
    config: Any = backbone.config
    if config._attn_implementation == "sdpa":
        return PathMask(packed, window)
    return create_causal_mask(
        config,
        packed.input_ids[..., None].to(backbone.dtype),  # only its shape, dtype and device are read
        None,
        past_key_values=None,
        and_mask_function=_on_path(packed, window),
    )


def _on_path(packed: PackedRows, window: int | None) -> Callable[..., Tensor]:
    """Whether a key is on the path of a query, by indices into `(R, W)`. A key stands before all that share it."""
    length = packed.input_ids.shape[1]
    paths, owner, positions = packed.paths, packed.owner, packed.position_ids

    def mask(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        position = positions[row, key]
        on_path = paths[owner[row, query], position] == row * length + key
        return on_path if window is None else on_path & (position > positions[row, query] - window)

    return mask
