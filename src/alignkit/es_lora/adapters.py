"""The model of a run: loaded, with an adapter around which the population is drawn, and what it can take."""

import copy
import re
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from alignkit._compat import keep_cpu_4bit_gradients_right
from alignkit.es_lora.centre import Centre, Perturb
from alignkit.storage import PICKLED_WEIGHTS, refused_pickles_named

ADAPTER = "default"
_BASE_IS_KEPT = (True, False, "gaussian", "orthogonal")
"""Values of `init_lora_weights` that draw A and B alone."""


def load_base(name: str, model_init_kwargs: dict[str, Any]) -> PreTrainedModel:
    """A causal language model by name or path, in the dtype it was saved in unless told otherwise."""
    with refused_pickles_named(name, *PICKLED_WEIGHTS):
        return AutoModelForCausalLM.from_pretrained(name, **{"dtype": "auto", **model_init_kwargs})


def add_adapter(
    model: PreTrainedModel | PeftModel, peft_config: LoraConfig | None, *, perturb: Perturb, seed: int
) -> tuple[PeftModel, int | None]:
    """The model with a LoRA, equal on every machine for the same seed, and the rank of low-rank noise.

    Args:
        peft_config ([`~peft.LoraConfig`], *optional*): rank 8 on all linear modules by default. Under `"lowrank"` its
            rank is that of the noise, and the adapter has full rank: one factor the identity, the other 0.

    Raises:
        ValueError: a config beside a model that has an adapter, an adapter without a `PeftModel` around it, a config
            that rewrites the base weights, or no match.
    """
    keep_cpu_4bit_gradients_right(model)  # before the first forward, which would repack the base's weights
    if isinstance(model, PeftModel):
        if peft_config is not None:
            raise ValueError("the model is a PeftModel and peft_config is given too; give one of them")
        if perturb == "lowrank":
            raise ValueError(
                "perturb='lowrank' makes its own adapter of full rank; give the base model and a peft_config whose r "
                "is the rank of the noise. A run is continued with resume_from_checkpoint"
            )
        return model, None
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "the model has an adapter and is no PeftModel, so a second adapter would take its place; load the base "
            "model and give PeftModel.from_pretrained(base, folder of the adapter)"
        )
    config = copy.deepcopy(peft_config) or LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    if not isinstance(config, LoraConfig):
        raise ValueError(f"peft_config is a {type(config).__name__}; members are LoRA adapters, give a LoraConfig")
    if config.init_lora_weights not in _BASE_IS_KEPT:
        raise ValueError(
            f"init_lora_weights is {config.init_lora_weights!r}, which rewrites the base weights; use one of "
            f"{list(_BASE_IS_KEPT)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        adapted: Any = get_peft_model(model, config)
    return (adapted, None) if perturb != "lowrank" else (_at_full_rank(adapted), config.r)


def _at_full_rank(adapted: PeftModel) -> PeftModel:
    """The same modules under an adapter that can hold any update of their weights, and holds none."""
    layers = Centre(adapted, "both").layers  # which refuses all but a plain LoRA of linear modules
    sizes = {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}
    ranks = {re.escape(name): min(size) for name, size in sizes.items()}
    unwrapped: Any = adapted.unload()
    full: Any = get_peft_model(
        unwrapped,
        LoraConfig(r=1, lora_alpha=1, target_modules=list(sizes), rank_pattern=ranks, alpha_pattern=dict(ranks)),
    )
    for name, (in_features, out_features) in sizes.items():
        layer = full.get_base_model().get_submodule(name)
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        identity, delta = (a, b) if in_features <= out_features else (b, a)
        with torch.no_grad():
            identity.copy_(torch.eye(len(identity)))
            delta.zero_()
    return full


def end_and_pad_tokens(model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """Tokens that end a completion, the model's and the tokenizer's, and the one that fills up rows.

    Padding is masked, so that a tokenizer without a token for it uses one that ends.

    Raises:
        ValueError: neither.
    """
    base: Any = model.get_base_model()
    own = base.generation_config.eos_token_id
    ends = {*([] if own is None else torch.as_tensor(own).flatten().tolist())}
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=None)
    if pad is None:
        raise ValueError("the tokenizer has no pad_token and no eos_token; set tokenizer.pad_token")
    return sorted(ends), pad


def longest_prompt(model: PeftModel, max_completion_length: int) -> int | None:
    """Tokens that the context has for a prompt; None without a limit.

    Raises:
        ValueError: the completion alone fills the context.
    """
    base: Any = model.get_base_model()
    context = getattr(base.config.get_text_config(), "max_position_embeddings", None)  # rotary models may have none
    if context is None:
        return None
    if context <= max_completion_length:
        raise ValueError(f"max_completion_length is {max_completion_length} and the model's context {context} tokens")
    return context - max_completion_length
