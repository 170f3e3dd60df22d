"""The reference of a DPO trainer: the policy as it is when the trainer is made, unless something else is asked for."""

from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from alignkit._compat import add_fused_lm_head, prepare_frozen_model
from alignkit.dpo.config import ScheduledDPOConfig
from alignkit.fused_head.modeling import causal_lm_of
from alignkit.reference import ReferenceManager
from alignkit.reference.adapters import REFERENCE_ADAPTER, is_lora, is_no_op, trained_adapters
from alignkit.reference.separate import frozen_copy


def reference_for_parent(
    model: str | PreTrainedModel | PeftModel, ref_model: PreTrainedModel | None, *, adds_adapter: bool
) -> PreTrainedModel | None:
    """What `DPOTrainer` gets as its reference: a copy in memory where it would load the model's files again.

    Args:
        model: as the user gave it. What is given by name or path is the same when the parent loads it twice.
        ref_model: as the user gave it.
        adds_adapter: whether the parent will wrap the model with an adapter, and needs no second model.
    """
    if ref_model is not None or adds_adapter or isinstance(model, (str, PeftModel)):
        return ref_model
    return frozen_copy(model)


def manage_reference(trainer: Any, args: ScheduledDPOConfig, *, is_given: bool, had_adapter: bool) -> ReferenceManager:
    """The manager of the reference of a trainer whose parent is set up; places what the parent does not know of.

    Args:
        trainer: a `DPOTrainer` after its `__init__`.
        args: its configuration.
        is_given: whether the user gave the model that is the reference.
        had_adapter: whether the model came with an adapter, to which the parent has then added a copy, named `ref`.

    Raises:
        ValueError: a reference that would not be what its name says.
    """
    policy, parents = trainer.model, trainer.ref_model
    if is_given:
        if args.ref is not None:
            raise ValueError(f"both ref={args.ref!r} and ref_model are given; leave one of them out")
        manager = ReferenceManager(policy, None, ref_model=trainer.accelerator.unwrap_model(parents))
    elif parents is not None:  # trained whole: the copy made above, or the files loaded a second time
        kind = args.ref or "copy"
        copied = trainer.accelerator.unwrap_model(parents) if kind in ("copy", "ema") else None
        manager = ReferenceManager(policy, kind, copied=copied, ema_decay=args.ema_decay)
    else:
        ref = args.ref or ("adapter" if had_adapter and is_trained(policy) else None)
        if had_adapter and ref not in ("adapter", "ema"):
            policy.delete_adapter(REFERENCE_ADAPTER)
        manager = ReferenceManager(policy, ref, ema_decay=args.ema_decay)
        if manager.ref_model is not None:
            add_fused_lm_head(causal_lm_of(manager.ref_model))
            manager.ref_model = prepare_frozen_model(manager.ref_model, trainer.accelerator)
    if parents is not None:
        manager.ref_model = parents  # as the parent has wrapped it
    return manager


def models_of(trainer: Any) -> list[Any]:
    """The policy, and its reference where that is a model of its own; not wrapped."""
    separate = trainer.reference.ref_model
    return [trainer.model] if separate is None else [trainer.model, trainer.accelerator.unwrap_model(separate)]


def is_trained(model: PeftModel) -> bool:
    """Whether one LoRA adapter trains, alone, and already changes the model."""
    adapters, _ = trained_adapters(model)
    if len(adapters) != 1 or set(model.active_adapters) != adapters:
        return False
    [name] = adapters
    return is_lora(model.peft_config[name]) and not is_no_op(model, name)
