"""Which adapters of a PEFT model train, whether they still do nothing, and a frozen copy of one."""

import copy
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils import ModulesToSaveWrapper, PeftType
from torch import nn

from alignkit._compat import adapter_prefixes

from .weights import owner_of

# The beginning of each `init_lora_weights` with which PEFT takes the adapter's start out of the base weights.
INITIALISATIONS_THAT_REWRITE_THE_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")
REFERENCE_ADAPTER = "ref"

# One tensor for each of two twins: the module and the name in it. Modules stay when FSDP2 replaces their parameters.
Twin = tuple[nn.Module, str, nn.Module, str]


def trained_adapters(model: PeftModel) -> tuple[set[str], list[str]]:
    """Names of the adapters with a parameter that trains, and names of the other parameters that train."""
    prefixes = adapter_prefixes(model)
    owners = {name: owner_of(name, prefixes) for name, tensor in model.named_parameters() if tensor.requires_grad}
    adapters = {owner for owner in owners.values() if owner is not None}
    return adapters, [name for name, owner in owners.items() if owner is None]


def rewrites_the_base(config: PeftConfig) -> bool:
    """Whether adding an adapter with this configuration changes the weights below it."""
    if not isinstance(config, LoraConfig):
        return False
    initialisation = str(config.init_lora_weights).lower()
    return initialisation.startswith(INITIALISATIONS_THAT_REWRITE_THE_BASE) or truncates_the_base(config)


def truncates_the_base(config: PeftConfig) -> bool:
    """Whether adding an adapter cuts singular values off the weights below it, so that a second cuts off more."""
    return isinstance(config, LoraConfig) and getattr(config, "kasa_config", None) is not None  # new in PEFT 0.20


def kind_of(config: PeftConfig) -> str:
    """The name of the adapter's type, such as LORA."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def is_lora(config: PeftConfig) -> bool:
    """Whether the adapter is a LoRA (DoRA and the like included), not a relative such as AdaLoRA or LoHa."""
    return config.peft_type == PeftType.LORA


def is_no_op(model: PeftModel, adapter: str) -> bool:
    """Whether a LoRA adapter leaves the model as it is.

    True if every layer has A = 0 or B = 0, no bias in B, and whole modules and tokens equal those they replace. The
    magnitudes of DoRA are not looked at: they start at the norms of the weights and leave them together with B = 0.
    """
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            still_nothing = _is_no_op_layer(layer, adapter)
        elif isinstance(layer, ModulesToSaveWrapper) and adapter in layer.modules_to_save:
            whole: Any = layer.modules_to_save[adapter]
            replaced: Any = layer.original_module
            pairs = zip(whole.parameters(), replaced.parameters(), strict=True)
            still_nothing = all(torch.equal(own, original.to(own)) for own, original in pairs)
        elif isinstance(layer, TrainableTokensLayer) and adapter in layer.trainable_tokens_delta:
            rows, replaced_rows = layer.trainable_tokens_delta[adapter], layer.trainable_tokens_original[adapter]
            still_nothing = torch.equal(rows, replaced_rows.to(rows))
        else:
            continue
        if not still_nothing:
            return False
    return True


def _is_no_op_layer(layer: LoraLayer, adapter: str) -> bool:
    down: Any
    up: Any
    bias: Any = None
    if adapter in layer.lora_A:
        down, up, bias = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.lora_B[adapter].bias
    elif adapter in layer.lora_embedding_A:
        down, up = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
    else:
        return True
    return not (down.any() and up.any()) and (bias is None or not bias.any())


def add_frozen_copy(model: PeftModel, adapter: str) -> list[Twin]:
    """Add the adapter `ref`, a frozen copy of `adapter` that is not active; returns their parameters in pairs.

    A `ref` that is there already, such as TRL's, is taken if it equals the adapter.

    Raises:
        ValueError: for an adapter named `ref` with other weights.
    """
    existed = REFERENCE_ADAPTER in model.peft_config
    if not existed:
        _add_inactive(model, adapter)
    twins = _twins(model, adapter)
    for source_holder, source, target_holder, target in twins:
        weight, frozen = source_holder.get_parameter(source), target_holder.get_parameter(target)
        if existed and not torch.equal(weight, frozen):
            raise ValueError(
                f"the model already has an adapter {REFERENCE_ADAPTER!r} that differs from {adapter!r}; "
                f"call model.delete_adapter({REFERENCE_ADAPTER!r}) or load it under another name"
            )
        frozen.data = weight.detach().clone()
        frozen.requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and adapter in layer.scaling:
            layer.scaling[REFERENCE_ADAPTER] = layer.scaling[adapter]
    return twins


def _add_inactive(model: PeftModel, adapter: str) -> None:
    """Add `ref` with the settings of `adapter`; no base weight and no `requires_grad` changes."""
    config: Any = copy.deepcopy(model.peft_config[adapter])
    config.inference_mode = True
    config.init_lora_weights = (
        True  # the weights are overwritten, and another start may rewrite the base a second time
    )
    requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.add_adapter(REFERENCE_ADAPTER, config)
    for name, parameter in model.named_parameters():
        # PEFT makes every active adapter trainable, or with inference_mode frozen, when it adds another.
        parameter.requires_grad_(requires_grad.get(name, False))


def _twins(model: PeftModel, adapter: str) -> list[Twin]:
    """Each parameter of the adapter with its counterpart in `ref`."""
    prefixes = adapter_prefixes(model)
    twins: list[Twin] = []
    for name, _ in model.named_parameters():
        if owner_of(name, prefixes) == adapter:
            prefix = next(prefix for prefix in prefixes if name == prefix or name.startswith(prefix + "."))
            counterpart = prefix.removesuffix(adapter) + REFERENCE_ADAPTER
            if counterpart not in prefixes:
                raise ValueError(f"the adapter {REFERENCE_ADAPTER!r} of the model lacks {prefix}: delete the adapter")
            counterpart += name.removeprefix(prefix)
            twins.append((*_holder(model, name), *_holder(model, counterpart)))
    return twins


def parameter_twins(policy: nn.Module, ref: nn.Module) -> list[Twin]:
    """Each parameter of the policy that trains with that of a copy."""
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    return [(*_holder(policy, name), *_holder(ref, name)) for name in trained]


def _holder(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf
