"""The model of a plan, built from its configuration alone, without memory for its weights."""

from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from alignkit.model_folder import check_config as check_config_file
from alignkit.plan.request import PlanRequest

BLOCK = 64
"""Weights of bitsandbytes that share a scale."""


def read_config(model: str) -> PretrainedConfig:
    """The configuration of a folder or of a model on the hub.

    Raises:
        ValueError: no such model, no configuration, or an architecture that transformers does not know.
    """
    try:
        check_config_file(model)
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{model} has no configuration that can be read, here or on the hub: {reason:.300}"
        ) from error


def check_config(config: PretrainedConfig, request: PlanRequest, name: str) -> None:
    """Raise a ValueError for a model that the method cannot train."""
    kind = AutoModelForSequenceClassification if request.method == "reward" else AutoModelForCausalLM
    if config.is_encoder_decoder or type(config) not in kind._model_mapping:
        raise ValueError(
            f"{name} is a model of type {config.model_type!r}, which method {request.method!r} cannot train; give a "
            "causal language model"
        )
    is_decoder = type(config) in AutoModelForCausalLM._model_mapping
    if not is_decoder or "is_decoder" in config.to_diff_dict() or _is_encoder(config):
        raise ValueError(
            f"{name} is a model of type {config.model_type!r}, an encoder, which method {request.method!r} cannot "
            "train; give a causal language model"
        )
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    asked = request.prompt_tokens + request.completion_tokens
    if longest is not None and asked > longest:
        raise ValueError(
            f"prompt_tokens + completion_tokens is {asked}, more than the {longest} positions of {name}; ask for less"
        )


def _is_encoder(config: PretrainedConfig) -> bool:
    """Encoders that transformers can also run as decoders, such as BERT: their config says that they are not one."""
    architectures = config.architectures or []
    return getattr(config, "is_decoder", None) is False and not any("CausalLM" in name for name in architectures)


def build_model(config: PretrainedConfig, request: PlanRequest) -> Any:
    """The model without its LoRA, in the precision asked for, on torch's current default device."""
    config = type(config).from_dict(config.to_dict())
    config._attn_implementation = request.attention
    dtype = getattr(torch, request.dtype)
    if request.method == "reward":
        config.num_labels = request.heads
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if request.quantized:
        quantize(model, dtype)
    return model


def lora(request: PlanRequest) -> LoraConfig | None:
    """A LoRA of the rank asked for on all linear layers but the output's."""
    if request.lora_rank == 0:
        return None
    kind = "SEQ_CLS" if request.method == "reward" else "CAUSAL_LM"
    return LoraConfig(
        r=request.lora_rank, lora_alpha=2 * request.lora_rank, target_modules="all-linear", task_type=kind
    )


# ---- 4 bits ----


class Linear4bit(nn.Linear):
    """Counts as bitsandbytes' layer of this name does, whose weight is a class of its own and must hold numbers.

    Two weights in a byte, one float32 scale for 64 of them, and bitsandbytes' own product of the two.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, dtype=dtype)
        n_weights = linear.in_features * linear.out_features
        self.weight = nn.Parameter(torch.empty((n_weights + 1) // 2, 1, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("scales", torch.empty(-(-n_weights // BLOCK)))
        self._dtype = dtype

    def scale_blocks(self, mode: FakeTensorMode) -> None:
        """Make what bitsandbytes keeps beside the weight, once its tensors have lost their memory."""
        from bitsandbytes.functional import QuantState  # prints a line at import, so only for those who use it

        scales: Any = self.scales
        self._state = QuantState(
            absmax=scales,
            shape=torch.Size([self.out_features, self.in_features]),
            code=FakeTensor(mode, torch.empty(16, device="meta"), torch.device("cpu")),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self._dtype,
        )

    def forward(self, input: Tensor) -> Tensor:
        import bitsandbytes as bnb

        bias = None if self.bias is None else self.bias.to(self._dtype)
        product = bnb.matmul_4bit(input.to(self._dtype), self.weight, bias=bias, quant_state=self._state)
        return product.to(input.dtype)


def quantize(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace the linear layers but the output's by layers of 4 bits, as `from_pretrained` with bitsandbytes does."""
    head = model.get_output_embeddings()
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head and path != "score":
            model.set_submodule(path, Linear4bit(module, dtype))
