"""Tiny models that several trainers' tests use."""

from typing import Any

import torch
from transformers import LlamaForCausalLM

from alignkit.tasks.toy import tiny_causal_lm


def lively_lm(seed: int, **config: Any) -> LlamaForCausalLM:
    """An untrained model whose next-token distributions are far from uniform, so that two of them are nats apart."""
    model = tiny_causal_lm(seed, **{"hidden_size": 32, "layers": 2, **config})
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(15)
    return model
