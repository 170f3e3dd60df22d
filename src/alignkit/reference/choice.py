"""What a PEFT policy can be compared with, and what it is compared with when nothing is said."""

from peft import PeftModel

from alignkit._compat import adapters_have_a_flag, layers_with_adapters

from .adapters import is_lora, is_no_op, kind_of, rewrites_the_base, trained_adapters, truncates_the_base

CHOICES = 'pass ref="base" to compare with the model without adapters, or ref="adapter" with the model as it is now'


def check_switchable(model: PeftModel) -> set[str]:
    """The names of the adapters that train, once it is sure that flags turn the policy into a reference.

    Raises:
        ValueError: adapters that have no such flags, are merged, or are not all that trains.
    """
    if not adapters_have_a_flag(model):
        raise ValueError(
            f"adapters of type {kind_of(model.peft_config[model.active_adapter])} cannot be switched off by a flag, "
            'so the policy cannot be its own reference; pass ref="copy" or a separate reference model'
        )
    merged = sorted({name for layer in layers_with_adapters(model) for name in layer.merged_adapters})
    if merged:
        raise ValueError(
            f"the adapters {merged} are merged into the base weights and cannot be switched off by a flag; call "
            "model.unmerge_adapter() first"
        )
    adapters, outside = trained_adapters(model)
    if outside:
        raise ValueError(
            f"{len(outside)} parameters outside the adapters train, such as {outside[0]}, and would change the "
            'reference with the policy; freeze them (bias="none" in the adapter\'s configuration), or pass ref="copy"'
        )
    if not adapters:
        raise ValueError(
            f"none of the adapters {sorted(model.peft_config)} trains; load the one to train with is_trainable=True"
        )
    return adapters


def default_kind(model: PeftModel, trained: set[str]) -> str:
    """The reference where none is named: "base" for fresh adapters, "adapter" for one that rewrote the base.

    Raises:
        ValueError: where a guess could be the wrong reference.
    """
    frozen = sorted(set(model.active_adapters) - trained)
    if frozen:
        raise ValueError(
            f'besides {sorted(trained)} the frozen adapters {frozen} are active: pass ref="previous" to compare with '
            'the model that has only those, or ref="base" with the model without any'
        )
    configs = {name: model.peft_config[name] for name in trained}
    if any(rewrites_the_base(config) for config in configs.values()):
        return "adapter"
    not_lora = [name for name, config in configs.items() if not is_lora(config)]
    if not_lora:
        name, kind = not_lora[0], kind_of(configs[not_lora[0]])
        raise ValueError(f"whether adapter {name!r} of type {kind} is trained already is not known: {CHOICES}")
    already_trained = sorted(name for name in trained if not is_no_op(model, name))
    if already_trained:
        raise ValueError(f"adapter {already_trained[0]!r} is not a fresh one, it changes the model: {CHOICES}")
    return "base"


def check_base_is_original(model: PeftModel) -> None:
    """Raises ValueError if an adapter's initialisation took a part out of the base weights."""
    rewriting = sorted(name for name, config in model.peft_config.items() if rewrites_the_base(config))
    if rewriting:
        how = getattr(model.peft_config[rewriting[0]], "init_lora_weights", None)
        raise ValueError(
            f"adapter {rewriting[0]!r} (init_lora_weights={how!r}) has rewritten the base weights, so switching it "
            'off does not give the original model; pass ref="adapter" to compare with the model as it is now, or the '
            "original model as ref_model"
        )


def adapter_to_copy(model: PeftModel, trained: set[str], ref: str) -> str:
    """The one trained adapter, of which a frozen copy can be added.

    Raises:
        ValueError: several adapters train, or the adapter is of a kind that cannot be copied.
    """
    if len(trained) > 1:
        raise ValueError(f'{sorted(trained)} all train, and ref="{ref}" copies one adapter; pass ref="copy"')
    [name] = trained
    config = model.peft_config[name]
    if not is_lora(config) or truncates_the_base(config):
        kind = "KaSA" if is_lora(config) else kind_of(config)
        raise ValueError(f'adapter {name!r} of type {kind} cannot be copied beside itself; pass ref="copy"')
    return name
