"""Packed rows under checkpointing, adapters, copies, and the heads of TRL and of this package."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from alignkit.fused_head.modeling import add_reference_head
from alignkit.shared_prefix import share_prefix
from tests.shared_prefix.completions import (
    assert_close,
    assert_sharing_changes_nothing,
    cut_inputs,
    logps,
    loss_and_gradients,
    pack,
    ragged_pairs,
    tiny,
    whole_inputs,
)

LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}


def with_adapter(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(**LORA))


@pytest.mark.parametrize("patch_first", [True, False])
@pytest.mark.parametrize("architecture", ["Qwen2", "Gemma3"])
def test_an_adapter_learns_the_same(architecture, patch_first):
    model = tiny(architecture)
    if patch_first:
        share_prefix(model)
    assert_sharing_changes_nothing(with_adapter(model), ragged_pairs())


def test_with_the_adapter_off_the_reference_shares_as_well():
    model, rows = with_adapter(tiny("Qwen2")), ragged_pairs()
    share_prefix(model)
    with torch.no_grad(), model.disable_adapter():
        assert_close(logps(model, rows, pack(model, rows)), logps(model, rows))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients_are_the_same_under_gradient_checkpointing(attention, use_reentrant):
    model = with_adapter(tiny("Gemma3", attention)).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_sharing_changes_nothing(model, ragged_pairs())
    rows = ragged_pairs()
    checkpointed = loss_and_gradients(model, logps(model, rows, pack(model, rows)), rows)[1]
    model.gradient_checkpointing_disable()
    plain = loss_and_gradients(model, logps(model, rows, pack(model, rows)), rows)[1]
    for name, gradient in plain.items():
        assert_close(checkpointed[name], gradient)


def test_a_copy_of_a_patched_model_runs_its_own_weights():
    model, rows = tiny("Llama"), ragged_pairs()
    share_prefix(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.model.embed_tokens.weight.mul_(2)
        assert_close(logps(twin, rows, pack(twin, rows)), logps(twin, rows))
        assert not torch.allclose(logps(twin, rows), logps(model, rows))


@pytest.mark.parametrize("direction", ["reverse", "both"])
def test_divergences_from_a_reference_are_those_of_whole_rows(direction):
    policy, reference, rows = tiny("Gemma3", seed=1), tiny("Gemma3", seed=2), ragged_pairs()
    for model in (policy, reference):
        add_reference_head(model)
        share_prefix(model)
    packed = pack(policy, rows)
    outputs = []
    for inputs in (whole_inputs(rows), {**cut_inputs(rows), "packed": packed}):
        with torch.no_grad():
            against = reference(**inputs, output_head_input=True)
        against.weight = reference.get_output_embeddings().weight.detach()
        outputs.append(policy(**inputs, against=against, kl_direction=direction))
    whole, shared = outputs
    for name in ("log_probs", "entropy", *(["kl"] if direction == "reverse" else ["reverse_kl", "forward_kl"])):
        assert_close(getattr(shared, name), getattr(whole, name))
