"""References that are a model of their own: a copy, a given model, or one loaded by name."""

import copy
from dataclasses import astuple
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from alignkit.fused_head.modeling import head_settings
from alignkit.storage import PICKLED_WEIGHTS, refused_pickles_named


def frozen_copy(model: PreTrainedModel | PeftModel) -> Any:
    """A deep copy in eval mode in which nothing trains."""
    duplicate: Any = copy.deepcopy(model)
    causal_lm = duplicate.get_base_model() if isinstance(model, PeftModel) else duplicate
    # A forward patched into the instance, as TRL does it, is copied along with its closure over the original's. That
    # of a backbone that shares prefixes has none, and is bound to the copy.
    causal_lm.__dict__.pop("forward", None)
    return duplicate.requires_grad_(False).eval()


def load_like(path: str, policy: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The causal language model of this path or hub name, in the policy's dtype and on its device.

    Raises:
        ValueError: no such model, or one whose weights are a pickle that could run code.
    """
    causal_lm: Any = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    place = {"": causal_lm.device}
    try:
        with refused_pickles_named(path, *PICKLED_WEIGHTS):
            return AutoModelForCausalLM.from_pretrained(path, dtype=causal_lm.dtype, device_map=place)
    except OSError as error:
        raise ValueError(
            f"ref={path!r} is none of base, adapter, previous, copy, ema, and no model was found under this path or "
            f"name: {error}"
        ) from error


def check_comparable(policy: nn.Module, ref_model: nn.Module) -> None:
    """Check that a given model can be the reference of the policy.

    Raises:
        ValueError: it shares parameters with the policy, has another vocabulary, or treats its logits differently.
    """
    own = {id(parameter) for parameter in policy.parameters()}
    if any(id(parameter) in own for parameter in ref_model.parameters()):
        raise ValueError(
            "ref_model shares its parameters with the policy and would be trained along; leave it out for a frozen "
            'copy, or with an adapter for the base model (ref="base")'
        )
    configs: list[Any] = [policy.config, ref_model.config]
    sizes = [config.get_text_config().vocab_size for config in configs]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the reference has a vocabulary of {sizes[1]} tokens, the policy of {sizes[0]}; a divergence over the "
            "vocabulary needs the same tokens in both"
        )
    transforms = [astuple(head_settings(config)) for config in configs]
    if transforms[0] != transforms[1]:
        raise ValueError(
            f"(soft-cap, scale) of the logits is {transforms[1]} in the reference and {transforms[0]} in the policy; "
            "both are projected together, so choose a reference of the same architecture"
        )
