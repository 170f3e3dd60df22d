"""The only file that names private things of TRL, transformers and PEFT, each with a test in `tests/contract`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from operator import attrgetter
from typing import Any, cast

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from trl.kernels import chunked_logprob
from trl.models import prepare_fsdp
from trl.trainer import utils as trl_utils
from trl.trainer.reward_trainer import suppress_seqcls_warning
from trl.trainer.utils import add_fused_lm_head, create_model_from_path

from alignkit.versions import check_versions

__all__ = [
    "adapter_prefixes",
    "adapters_have_a_flag",
    "adapters_switched",
    "add_fused_lm_head",
    "keep_cpu_4bit_gradients_right",
    "layers_with_adapters",
    "load_sequence_classifier",
    "prepare_frozen_model",
    "score_in_float32",
    "seen_as_single_label",
    "shown_to_parent",
    "trl_head_as_on_a_gpu",
    "without_adapter_wrappers",
]

check_versions()


@contextmanager
def seen_as_single_label(config: PretrainedConfig, args: Any) -> Iterator[None]:
    """Show a K-label model to `RewardTrainer.__init__` as a one-label model, the only kind it takes.

    It reads `config.num_labels` once, to refuse any number but 1, and warns of `model_init_kwargs` that have already
    been used. Both come back on exit. Its losses and metrics, which do assume one label, are overridden.
    """
    labels = config.id2label, config.label2id
    model_init_kwargs = args.model_init_kwargs
    config.id2label, config.label2id = {0: "LABEL_0"}, {"LABEL_0": 0}
    args.model_init_kwargs = None
    try:
        yield
    finally:
        config.id2label, config.label2id = labels
        args.model_init_kwargs = model_init_kwargs


@contextmanager
def shown_to_parent(args: Any, **values: Any) -> Iterator[None]:
    """Show a trainer's `__init__` other values of these fields, for what its subclass does in its place."""
    own = {name: getattr(args, name) for name in values}
    for name, value in values.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(args, name, value)


@contextmanager
def score_in_float32(config: PretrainedConfig) -> Iterator[None]:
    """Make `from_pretrained` load the `score` of this kind of model in float32 whatever the dtype of the rest."""
    model_class: Any = AutoModelForSequenceClassification._model_mapping[type(config)]
    before = model_class._keep_in_fp32_modules_strict
    model_class._keep_in_fp32_modules_strict = {*(before or ()), "score.weight"}
    try:
        yield
    finally:
        model_class._keep_in_fp32_modules_strict = before


def load_sequence_classifier(
    path: str, config: PretrainedConfig, *, has_score: bool, **kwargs: Any
) -> PreTrainedModel:
    """A sequence classifier in its dtype with a float32 `score`.

    Args:
        path: name or folder of a reward model (`has_score`) or of a language model, whose `score` is then random.

    Raises:
        ValueError: no class for this architecture, or a checkpoint without the `score` it should have.
    """
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ValueError(f"{path}: transformers has no sequence classifier for model type {config.model_type!r}")
    # TRL's context hides the missing `score` of a language model, from the log and from the loading info alike.
    expected_keys_are_missing = nullcontext() if has_score else suppress_seqcls_warning()
    with expected_keys_are_missing, score_in_float32(config):
        loaded: Any = create_model_from_path(
            path,
            AutoModelForSequenceClassification,  # type: ignore[arg-type]  # typed as an instance, meant as the class
            config=config,
            output_loading_info=True,
            **kwargs,
        )
    model, info = loaded
    if has_score and "score.weight" in info["missing_keys"]:
        raise ValueError(f"{path} says it is a reward model but holds no score.weight; save it again with its head")
    return model


@contextmanager
def trl_head_as_on_a_gpu(as_one_kernel: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Let TRL's fused head project labelled positions only, as on a GPU, and replace its two functions of a tile."""
    own = chunked_logprob._forward_tile, chunked_logprob._backward_tile, trl_utils._use_triton
    forward, backward, _ = own
    chunked_logprob._forward_tile, chunked_logprob._backward_tile = as_one_kernel(forward), as_one_kernel(backward)
    trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        chunked_logprob._forward_tile, chunked_logprob._backward_tile, trl_utils._use_triton = own


def keep_cpu_4bit_gradients_right(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    There the first evaluation forward repacks them for a kernel without autograd, and every later training step has
    wrong gradients and no error. Nor can it be undone: the scales have been rounded, and without double quantisation
    `state_dict()` mixes them up.

    Raises:
        ValueError: the weights are repacked already.
    """
    if not getattr(model, "is_loaded_in_4bit", False):
        return
    import bitsandbytes as bnb  # prints a line about optional kernels at import, so only for those who use it

    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight: Any = module.weight
            if getattr(weight.quant_state, "packing_format_for_cpu", False):  # which packed ones alone have
                raise ValueError(
                    f"{name}: the 4-bit model was evaluated before, for which bitsandbytes repacked its weights on "
                    "this CPU, so that gradients would be wrong; load it again and evaluate it after the training"
                )
            module.support_avx512bf16_for_cpu = False


def layers_with_adapters(model: nn.Module) -> list[Any]:
    """PEFT's layers, and its wrappers of modules trained whole or by token: all that an adapter's flags live on."""
    return [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def adapters_have_a_flag(model: PeftModel) -> bool:
    """Whether the flags of `layers_with_adapters` are all that PEFT itself would flip to switch the adapters off.

    Not so for prompt learning, adaption prompts and X-LoRA.
    """
    tuner = model.base_model
    return isinstance(tuner, BaseTuner) and type(tuner).disable_adapter_layers is BaseTuner.disable_adapter_layers


@contextmanager
def adapters_switched(
    model: PeftModel, layers: Sequence[Any], choose: Callable[[list[str]], list[str]] | None
) -> Iterator[None]:
    """Within the context the adapters are off (`choose=None`), or `choose(active adapters)` of each layer are active.

    Only flags change: PEFT's `disable_adapter` and `set_adapter` also set `requires_grad` and walk the whole model.
    """
    states = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
    was_disabled = model._adapters_disabled
    try:
        for layer in layers:
            if choose is None:
                layer._disable_adapters = True
            else:
                layer._active_adapter = choose(layer.active_adapters)
        model._adapters_disabled = was_disabled or choose is None
        yield
    finally:
        model._adapters_disabled = was_disabled
        for layer, (disabled, active) in zip(layers, states, strict=True):
            layer._disable_adapters, layer._active_adapter = disabled, active


def adapter_prefixes(model: nn.Module) -> dict[str, str]:
    """Beginning of the names of an adapter's tensors in `model.state_dict()` -> the adapter's name.

    For example `base_model.model.lm_head.modules_to_save.default` -> `default`.
    """
    holders: dict[str, Any] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            attributes = (*layer.adapter_layer_names, *layer.other_param_names)
            holders.update({f"{path}.{attribute}": attrgetter(attribute)(layer) for attribute in attributes})
        elif isinstance(layer, BaseTuner):
            # Such as the projections that all layers of a VeRA share.
            holders.update({f"{path}.{name}": child for name, child in layer.named_children() if name != "model"})
    modules = {
        path: holder for path, holder in holders.items() if isinstance(holder, nn.Module)
    }  # others hold numbers
    return {f"{path}.{name}": name for path, holder in modules.items() for name in cast(Any, holder)}


def without_adapter_wrappers(name: str) -> str:
    """The name that a tensor of the base model had in `state_dict()` before PEFT wrapped the model."""
    for wrapper in (".token_adapter", ".base_layer", ".original_module"):
        name = name.replace(wrapper, "")
    return name.removeprefix("base_model.model.")


def prepare_frozen_model(model: Any, accelerator: Any) -> Any:
    """A model that is not trained, wrapped as the one that is: on the device, and sharded where that one is.

    Raises:
        ValueError: FSDP1, which gathers a sharded weight for its own module's forward only.
    """
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    if fsdp is None:
        return accelerator.prepare_model(model, evaluation_mode=True)
    if fsdp.fsdp_version == 1:
        raise ValueError("FSDP1 shows a separate reference's head to its own forward only; use fsdp_version: 2")
    return prepare_fsdp(model, accelerator)
