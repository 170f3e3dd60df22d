"""Rounds side by side as ranks: one adapter that equals the stack of them, and a model that is left as it was."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from alignkit._compat import keep_cpu_4bit_gradients_right
from alignkit.kl_barrier.rounds import LoraAdapter, concatenate_adapters, load_adapter, save_adapter
from alignkit.kl_barrier.rounds.adapters import HISTORY, check_additive, join_rounds, read_adapter, student, trainee
from alignkit.kl_barrier.rounds.settings import weights_digest
from alignkit.tasks.toy import tiny_causal_lm

IDS = torch.arange(18).reshape(2, 9)
Q = "base_model.model.model.layers.0.self_attn.q_proj"

# Different ranks, scalings, modules, patterns and dropout: everything that two rounds may differ in.
FIRST = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)
SECOND = LoraConfig(
    r=2,
    lora_alpha=5,
    use_rslora=True,
    target_modules=["q_proj", "down_proj"],
    rank_pattern={"layers.1.self_attn.q_proj": 3},
    alpha_pattern={"down_proj": 7},
)


def fill(model: PeftModel, seed: int) -> None:
    """Give the adapter that is to be trained weights as if it had been."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_B" in name or "lora_embedding" in name):
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def two_rounds(model, folder, configs=(FIRST, SECOND)):
    """Logits with all rounds active as training sees them, and the folder of the cumulative adapter."""
    history, logits = None, None
    for number, config in enumerate(configs):
        with trainee(model, history, config) as peft_model:
            fill(peft_model, number)
            logits = peft_model.eval()(IDS).logits.detach()
            save_adapter(read_adapter(peft_model), folder / f"delta_{number}")
        save_adapter(join_rounds(history, folder / f"delta_{number}"), folder / f"all_{number}")
        history = folder / f"all_{number}"
    return logits, history


def loaded_logits(model, folder):
    with student(model, folder) as peft_model:
        return peft_model(IDS).logits.detach()


def test_ranks_are_concatenated_with_the_scaling_folded_into_b():
    adapters = [
        LoraAdapter(LoraConfig(r=1, lora_alpha=2, target_modules=["q_proj"]), one_rank([1.0, 2.0], [3.0, 4.0])),
        LoraAdapter(LoraConfig(r=1, lora_alpha=3, target_modules=["q_proj"]), one_rank([5.0, 6.0], [7.0, 8.0])),
    ]
    joined = concatenate_adapters(*adapters)
    assert joined.weights[f"{Q}.lora_A.weight"].tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert joined.weights[f"{Q}.lora_B.weight"].tolist() == [[6.0, 21.0], [8.0, 24.0]]
    assert joined.config.r == joined.config.lora_alpha == 2


def one_rank(a, b):
    return {f"{Q}.lora_A.weight": torch.tensor([a]), f"{Q}.lora_B.weight": torch.tensor(b)[:, None]}


def test_rank_stabilised_scaling_is_alpha_over_the_root_of_the_rank():
    config = LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj"])
    weights = {f"{Q}.lora_A.weight": torch.ones(4, 2), f"{Q}.lora_B.weight": torch.ones(2, 4)}
    assert concatenate_adapters(LoraAdapter(config, weights)).weights[f"{Q}.lora_B.weight"].tolist() == [[3.0] * 4] * 2


def test_a_bfloat16_adapter_is_joined_in_float32():
    weights = {name: tensor.bfloat16() for name, tensor in one_rank([1.0, 2.0], [3.0, 4.0]).items()}
    joined = concatenate_adapters(LoraAdapter(LoraConfig(r=1, lora_alpha=1, target_modules=["q_proj"]), weights))
    assert {tensor.dtype for tensor in joined.weights.values()} == {torch.float32}


def test_the_cumulative_adapter_equals_the_stack_of_rounds(tmp_path):
    model = tiny_causal_lm()
    base = loaded_logits(model, None)
    stacked, folder = two_rounds(model, tmp_path)
    assert (loaded_logits(model, folder) - stacked).abs().max() < 1e-6
    assert (stacked - base).abs().max() > 0.1


def test_the_cumulative_adapter_loads_in_plain_peft(tmp_path):
    stacked, folder = two_rounds(tiny_causal_lm(), tmp_path)
    plain = PeftModel.from_pretrained(tiny_causal_lm(), str(folder)).eval()
    assert (plain(IDS).logits - stacked).abs().max() < 1e-6
    assert set(plain.base_model.model.model.layers[1].self_attn.q_proj.scaling.values()) == {1.0}


def test_the_deltas_loaded_side_by_side_in_peft_equal_the_cumulative_adapter(tmp_path):
    stacked, _ = two_rounds(tiny_causal_lm(), tmp_path)
    both = PeftModel.from_pretrained(tiny_causal_lm(), str(tmp_path / "delta_0"), adapter_name="one")
    both.load_adapter(str(tmp_path / "delta_1"), adapter_name="two")
    both.base_model.set_adapter(["one", "two"])
    assert (both.eval()(IDS).logits - stacked).abs().max() < 1e-6


def test_an_embedding_is_joined_too(tmp_path):
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["embed_tokens", "q_proj"])
    model = tiny_causal_lm()
    stacked, folder = two_rounds(model, tmp_path, (config, config))
    assert (loaded_logits(model, folder) - stacked).abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_rounds_are_exact_on_a_4_bit_base(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "base")
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=nf4, dtype=torch.float32)
    keep_cpu_4bit_gradients_right(model)
    before = weights_digest(model)
    stacked, folder = two_rounds(model, tmp_path)
    assert (loaded_logits(model, folder) - stacked).abs().max() < 1e-6
    assert weights_digest(model) == before


def test_only_the_new_adapter_is_trained_and_both_are_active(tmp_path):
    model = tiny_causal_lm()
    _, folder = two_rounds(model, tmp_path)
    with trainee(model, folder, FIRST) as peft_model:
        trained = [name for name, parameter in peft_model.named_parameters() if parameter.requires_grad]
        assert trained and all(".default." in name for name in trained)
        assert peft_model.base_model.active_adapters == [HISTORY, "default"]
        fresh = peft_model.eval()(IDS).logits
    assert torch.equal(fresh, loaded_logits(model, folder))  # B = 0: a round starts as the one before it ended


def test_a_model_is_left_as_it_was_even_after_an_error(tmp_path):
    model = tiny_causal_lm().train()
    _, folder = two_rounds(model, tmp_path)
    modules = {name: (type(module), sorted(vars(module))) for name, module in model.named_modules()}
    weights, config = weights_digest(model), model.generation_config.to_dict()
    with pytest.raises(RuntimeError, match="stop"), trainee(model, folder, SECOND) as peft_model:
        peft_model.enable_input_require_grads()
        model.forward = None
        model.generation_config.eos_token_id = 7
        raise RuntimeError("stop")
    assert {name: (type(module), sorted(vars(module))) for name, module in model.named_modules()} == modules
    assert model.generation_config.to_dict() == config
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training and weights_digest(model) == weights
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": False}, "init_lora_weights=False"),
    ],
)
def test_an_adapter_that_is_more_than_ranks_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        check_additive(LoraConfig(**settings))


def test_a_tensor_that_is_no_lora_factor_is_refused():
    with pytest.raises(ValueError, match=r"lora_magnitude_vector.*no two-dimensional LoRA factor"):
        concatenate_adapters(LoraAdapter(LoraConfig(), {f"{Q}.lora_magnitude_vector": torch.ones(3)}))


def test_adapters_of_different_bases_are_refused():
    configs = [LoraConfig(base_model_name_or_path=name, target_modules=["q_proj"]) for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"base_model_name_or_path.*'a', 'b'"):
        concatenate_adapters(*(LoraAdapter(config, one_rank([1.0, 2.0], [3.0, 4.0])) for config in configs))


def test_equal_adapters_are_equal_files(tmp_path):
    _, folder = two_rounds(tiny_causal_lm(), tmp_path)
    save_adapter(load_adapter(folder), tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    modules = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(modules)


def test_a_truncated_adapter_is_named(tmp_path):
    _, folder = two_rounds(tiny_causal_lm(), tmp_path)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"all_1.adapter_model\.safetensors is damaged"):
        load_adapter(folder)


def test_a_missing_adapter_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.adapter_config\.json is missing"):
        load_adapter(tmp_path / "nowhere")
