"""Which models share prefixes, and what those that cannot say."""

import pytest
import torch
import transformers
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from alignkit.shared_prefix import RowCost, row_cost, share_prefix, why_not_shared
from alignkit.tasks.toy import tiny_sequence_classifier
from tests.shared_prefix.completions import ARCHITECTURES, SIZES, tiny

MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
# Architecture, its settings, and a part of the reason.
REFUSED = {
    "Mamba": ({"state_size": 4}, "carries a state"),
    "Bamba": (MAMBA, "carries a state"),
    "Qwen3Next": ({**LINEAR, "head_dim": 8, "num_experts": 2}, "carries a state|linear_attention"),
    "Lfm2": ({"layer_types": ["conv", "full_attention"]}, "layers of type conv"),
    "Llama4Text": ({"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 32}, "chunked_attention"),
    "Bloom": ({}, "attention functions"),
    "Mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, "attention functions"),
    "Roberta": ({"is_decoder": True}, "positions"),
    "Mixtral": ({"num_local_experts": 2, "output_router_logits": True}, "router logits"),
    "Gemma3Text": ({"head_dim": 8, "use_bidirectional_attention": True}, "bidirectional"),
}


def build(architecture: str, **settings) -> PreTrainedModel:
    config_class = getattr(transformers, f"{architecture}Config")
    known = {name: value for name, value in SIZES.items() if name in config_class().to_dict()}
    return AutoModelForCausalLM.from_config(config_class(**{**known, "vocab_size": 61, **settings}))


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_mixes_tokens_in_a_way_that_no_mask_describes_is_refused_with_the_reason(architecture):
    settings, reason = REFUSED[architecture]
    model = build(architecture, **settings)
    found = why_not_shared(model)
    assert found is not None
    with pytest.raises(ValueError, match=f"prefixes cannot be shared: .*({reason}).*; set share_prefix=False"):
        share_prefix(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tested_architectures_share(architecture):
    assert why_not_shared(tiny(architecture, "eager")) is None


def test_flash_attention_is_refused_for_taking_no_mask():
    model = tiny("Llama")
    model.config._attn_implementation = "flash_attention_2"
    assert why_not_shared(model) == "flash_attention_2 takes no mask; use attn_implementation 'sdpa'"


def test_adapters_that_act_on_single_tokens_share_and_others_do_not():
    assert why_not_shared(get_peft_model(tiny("Llama"), LoraConfig(target_modules=["q_proj"]))) is None
    prefix = get_peft_model(tiny("Llama"), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert why_not_shared(prefix) == "its adapter (PREFIX_TUNING) acts on more than one token at a time"
    activated = LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[5], task_type="CAUSAL_LM")
    found = why_not_shared(get_peft_model(tiny("Llama"), activated))
    assert found == "an activated LoRA looks for its invocation tokens in every row"


def test_a_reward_model_shares():
    assert why_not_shared(tiny_sequence_classifier(["a"], seed=0)) is None


def test_the_cost_of_a_packed_row_has_a_square_only_where_attention_computes_one():
    assert row_cost(tiny("Llama")) == RowCost(linear=1.0, attention=0.0)
    model = tiny("Llama", "eager")
    inside = sum(weight.numel() for weight in model.model.layers.parameters()) + 32  # and the last norm
    cost = row_cost(get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=1)))
    assert cost.linear == pytest.approx(2 * (inside + 2 * 64) / 2)
    assert cost.attention == 4 * 32 * 1


def test_costs_grow_with_tokens_and_their_square():
    assert RowCost(linear=2.0, attention=0.5)(10) == 70.0
    assert torch.tensor(RowCost()(7)) == 7
