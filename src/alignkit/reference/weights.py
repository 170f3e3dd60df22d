"""A digest of exactly what makes up a model's function: weights, quantisation, active adapters, configuration."""

import json
from typing import Any

import torch
import xxhash
from peft.tuners.lora import LoraLayer
from torch import nn

from alignkit._compat import adapter_prefixes, layers_with_adapters, without_adapter_wrappers
from alignkit.fused_head.modeling import whole

# Fields that change from run to run, or with training, and not the function. Ids of special tokens are left out too.
MODEL_FIELDS_LEFT_OUT = {"_name_or_path", "architectures", "dtype", "transformers_version", "use_cache"}
ADAPTER_FIELDS_LEFT_OUT = {
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "lora_dropout",
    "peft_version",
    "revision",
    "task_type",
}


def owner_of(name: str, prefixes: dict[str, str]) -> str | None:
    """The adapter that the tensor of this name belongs to by `adapter_prefixes`; None for the base model's."""
    parts = name.split(".")
    candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefixes[prefix] for prefix in candidates if prefix in prefixes), None)


def weights_fingerprint(model: nn.Module) -> str:
    """Digest, 32 hexadecimal digits, of a model as it is now: of its adapters only those that are active count.

    It covers name, dtype, shape and bytes of every tensor of `state_dict()`, which includes the state of a 4-bit or
    8-bit quantisation, the configuration, and the settings and scaling of the adapters. Of buffers that are not saved
    only the dtype counts: the configuration determines their values, up to rounding that differs between devices. It
    is the same for a model before and after PEFT wrapped it. xxh3 with 128 bits: against accidents, not forgery.

    Args:
        model: not wrapped for several processes. Sharded by FSDP2 it has the digest of the whole; then collective.
    """
    prefixes = adapter_prefixes(model)
    layers = layers_with_adapters(model)
    adapters = {name for layer in layers if not layer.disable_adapters for name in layer.active_adapters}
    network: Any = model
    digest = xxhash.xxh3_128(_canonical(_function_fields(network.config.to_dict())))
    for adapter in sorted(adapters):
        settings = network.peft_config[adapter].to_dict()
        kept = {field: value for field, value in settings.items() if field not in ADAPTER_FIELDS_LEFT_OUT}
        digest.update(_canonical([adapter, kept]))
        for path, layer in model.named_modules():
            if isinstance(layer, LoraLayer) and adapter in layer.scaling:
                digest.update(_canonical([path, layer.scaling[adapter]]))
    saved = model.state_dict()
    for name, tensor in sorted({**dict(model.named_buffers()), **saved}.items()):
        owner = owner_of(name, prefixes)
        if owner is None or owner in adapters:
            digest.update(_canonical([without_adapter_wrappers(name), str(tensor.dtype), list(tensor.shape)]))
            if name in saved:
                digest.update(whole(tensor).cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _function_fields(config: Any) -> Any:
    """The configuration, that of its parts included, without the fields that do not change the function."""
    if not isinstance(config, dict):
        return config
    return {
        field: _function_fields(value)
        for field, value in config.items()
        if field not in MODEL_FIELDS_LEFT_OUT and not str(field).endswith("_token_id")
    }


def _canonical(value: Any) -> bytes:
    """The same bytes for equal values in every process."""
    return json.dumps(value, sort_keys=True, default=_plain).encode()


def _plain(value: Any) -> Any:
    # A set has another order in every process.
    return sorted(value) if isinstance(value, set) else str(value)
