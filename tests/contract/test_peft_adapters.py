"""What alignkit relies on in PEFT's layers: a release that breaks it fails here first."""

import copy

import pytest
import torch
from peft import (
    AdaLoraConfig,
    AdaptionPromptConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import Trainer, TrainingArguments

from alignkit._compat import (
    adapter_prefixes,
    adapters_have_a_flag,
    adapters_switched,
    layers_with_adapters,
    without_adapter_wrappers,
)
from alignkit.reference import ReferenceManager
from alignkit.reference.adapters import INITIALISATIONS_THAT_REWRITE_THE_BASE
from alignkit.tasks.toy import tiny_causal_lm

TOKENS = torch.arange(5, 25).reshape(2, 10)
TARGETS = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
SWITCHABLE = {
    "lora": LoraConfig(**TARGETS, init_lora_weights=False),
    "embedding": LoraConfig(task_type="CAUSAL_LM", target_modules=["embed_tokens", "q_proj"], init_lora_weights=False),
    "dora": LoraConfig(**TARGETS, init_lora_weights=False, use_dora=True),
    "head": LoraConfig(**TARGETS, init_lora_weights=False, modules_to_save=["lm_head"]),
    "tokens": LoraConfig(**TARGETS, init_lora_weights=False, trainable_token_indices=[5, 6]),
    "norms": LoraConfig(**TARGETS, init_lora_weights=False, modules_to_save=["norm"]),
    "loha": LoHaConfig(**TARGETS),
    "vera": VeraConfig(**TARGETS, r=4),
    "adalora": AdaLoraConfig(**TARGETS, total_step=10),
    "ia3": IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
}


@pytest.fixture(params=SWITCHABLE)
def model(request):
    """A model with an adapter that changes its outputs."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_causal_lm(), copy.deepcopy(SWITCHABLE[request.param])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    return model


@torch.no_grad()
def outputs(model):
    return model(TOKENS).logits


def test_flags_switch_off_what_disable_adapter_switches_off(model):
    assert adapters_have_a_flag(model)
    with model.disable_adapter():
        expected = outputs(model)
    active = outputs(model)
    with adapters_switched(model, layers_with_adapters(model), None):
        assert torch.equal(outputs(model), expected) and model._adapters_disabled
    assert not model._adapters_disabled
    assert torch.equal(expected, outputs(tiny_causal_lm()))
    assert torch.equal(outputs(model), active) and not torch.allclose(active, expected, atol=1e-4)


def test_a_layer_without_active_adapters_is_its_base(model):
    with adapters_switched(model, layers_with_adapters(model), lambda active: []):
        assert torch.equal(outputs(model), outputs(tiny_causal_lm()))


def test_every_parameter_that_trains_is_found_under_its_adapter(model):
    prefixes = adapter_prefixes(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and set(prefixes.values()) == {"default"}
    assert all(any(name == start or name.startswith(start + ".") for start in prefixes) for name in trained)


def test_without_the_adapter_the_names_are_those_of_the_plain_model(model):
    prefixes = tuple(adapter_prefixes(model))
    names = [name for name in model.state_dict() if not name.startswith(prefixes)]
    assert sorted(map(without_adapter_wrappers, names)) == sorted(tiny_causal_lm().state_dict())


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1),
    ],
)
def test_adapters_that_are_no_layers_are_known_to_have_no_flag(config):
    assert not adapters_have_a_flag(get_peft_model(tiny_causal_lm(), config))


@pytest.mark.parametrize("initialisation", [True, "gaussian", "eva", "mica", "orthogonal", "pissa", "olora"])
def test_the_initialisations_that_rewrite_the_base_are_the_known_ones(initialisation):
    if initialisation == "mica":
        pytest.importorskip("peft", minversion="0.20")
    base = tiny_causal_lm()
    weight = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
    with pytest.warns() if initialisation == "eva" else torch.no_grad():
        get_peft_model(base, LoraConfig(**TARGETS, r=4, init_lora_weights=initialisation))
    rewritten = not torch.equal(base.model.layers[0].self_attn.q_proj.weight, weight)
    assert rewritten is str(initialisation).startswith(INITIALISATIONS_THAT_REWRITE_THE_BASE)


def test_disable_adapter_still_changes_what_the_flags_leave_alone():
    model = get_peft_model(tiny_causal_lm(), LoraConfig(**TARGETS))
    with model.disable_adapter():
        assert not any(parameter.requires_grad for parameter in model.parameters())
    with adapters_switched(model, layers_with_adapters(model), None):
        assert any(parameter.requires_grad for parameter in model.parameters())


def test_a_checkpoint_holds_the_ref_adapter_and_resuming_restores_it_frozen(tmp_path):
    def trainer():
        model = get_peft_model(tiny_causal_lm(), LoraConfig(**TARGETS, modules_to_save=["lm_head"]))
        manager = ReferenceManager(model, "ema", ema_decay=0.5)
        args = TrainingArguments(
            str(tmp_path),
            max_steps=2,
            save_steps=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            learning_rate=0.1,
        )
        data = [{"input_ids": row, "labels": row} for row in TOKENS]
        return manager, model, Trainer(model, args, train_dataset=data)

    manager, model, first = trainer()
    optimiser = first.create_optimizer()
    in_optimiser = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
    ref = {name: parameter for name, parameter in model.named_parameters() if ".ref." in name}
    assert ref and not in_optimiser & {id(parameter) for parameter in ref.values()}
    with torch.no_grad():
        for parameter in ref.values():
            parameter.fill_(0.25)
    first.train()
    assert (tmp_path / "checkpoint-1" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "checkpoint-1" / "ref" / "adapter_model.safetensors").is_file()

    resumed_manager, resumed_model, second = trainer()
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for name, parameter in resumed_model.named_parameters():
        if ".ref." in name:
            assert not parameter.requires_grad and (parameter == 0.25).all()
    assert resumed_model.active_adapters == ["default"]
    with manager.active(model) as one, resumed_manager.active(resumed_model) as two:
        assert torch.equal(one(TOKENS).logits, two(TOKENS).logits)
