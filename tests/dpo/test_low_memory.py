"""The preset sets what was left at its default, runs on a CPU but for pages of CUDA memory, and drops out for real."""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from alignkit import ScheduledDPOConfig
from alignkit.dpo.low_memory import (
    add_low_memory_arguments,
    apply_low_memory,
    low_memory_lora,
    low_memory_quantization,
    low_memory_settings,
)
from alignkit.tasks.toy import byte_tokenizer
from tests.dpo.conftest import QUIET
from tests.tiny_models import lively_lm

QUIET = {name: value for name, value in QUIET.items() if name not in ("bf16", "gradient_checkpointing")} | {
    "activation_checkpointing": True
}


def config(folder, **settings) -> ScheduledDPOConfig:
    return ScheduledDPOConfig(str(folder), **{**QUIET, "low_memory": True, **settings})


def test_on_cuda_every_field_of_the_preset_is_set(tmp_path, monkeypatch):
    args, preset = config(tmp_path, low_memory=False), low_memory_settings()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    args.use_cpu = False
    apply_low_memory(args)
    assert {name: getattr(args, name) for name in preset} == preset
    assert preset["optim"] == "paged_adamw_32bit"


def test_on_a_cpu_everything_but_the_optimiser_is_set_and_the_log_says_so(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    default = ScheduledDPOConfig(str(tmp_path), **QUIET)
    args, preset = config(tmp_path), low_memory_settings()
    assert {name: getattr(args, name) for name in preset} == preset | {"optim": default.optim}
    assert caplog.messages == [
        "low_memory: paged_adamw_32bit keeps its state in pages of CUDA memory, which is not used here; optim stays "
        "adamw_torch_fused"
    ]


def test_what_the_user_set_stays(tmp_path):
    chosen = {
        "optim": "adafactor",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_length": 200,
        "max_prompt_length": 150,
        "bf16": False,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 7,
        "gradient_checkpointing": False,
        "activation_checkpointing": False,
    }
    args = config(tmp_path, **chosen)
    assert {name: getattr(args, name) for name in chosen} == chosen
    assert args.disable_dropout is False


def test_a_shorter_row_halves_into_prompt_and_completion_and_no_limit_leaves_the_prompts(tmp_path):
    lengths = [(300, 150), (768, 384), (2000, 384), (None, 384), (2, 1)]
    for max_length, max_prompt_length in lengths:
        args = config(tmp_path, max_length=max_length)
        assert (args.max_length, args.max_prompt_length) == (max_length, max_prompt_length)


def test_without_the_preset_nothing_changes(tmp_path):
    args = config(tmp_path, low_memory=False)
    assert (args.max_length, args.max_prompt_length, args.gradient_accumulation_steps) == (1024, None, 1)


def test_quantisation_and_adapter_are_those_of_the_preset():
    quantization, lora = low_memory_quantization(), low_memory_lora()
    assert (quantization.bnb_4bit_quant_type, quantization.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (16, 32, 0.05)


def test_arguments_are_added_where_they_say_nothing(tmp_path):
    args, kwargs = config(tmp_path), {}
    add_low_memory_arguments("folder/of/model", args, kwargs)
    assert kwargs["quantization_config"].load_in_4bit and kwargs["peft_config"].r == 16
    assert args.model_init_kwargs == {"dtype": "bfloat16"}

    own, args = LoraConfig(r=2), config(tmp_path, model_init_kwargs={"dtype": "float32", "revision": "a"})
    kwargs = {"peft_config": own, "quantization_config": "own"}
    add_low_memory_arguments("folder/of/model", args, kwargs)
    assert kwargs == {"peft_config": own, "quantization_config": "own"}
    assert args.model_init_kwargs == {"dtype": "float32", "revision": "a"}

    args, kwargs = config(tmp_path), {}
    add_low_memory_arguments(lively_lm(1), args, kwargs)
    assert list(kwargs) == ["peft_config"] and args.model_init_kwargs is None

    kwargs = {}
    add_low_memory_arguments(get_peft_model(lively_lm(1), own), args, kwargs)
    assert kwargs == {}


@pytest.fixture
def trainer(tmp_path, make_trainer):
    lively_lm(1, hidden_size=64).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return make_trainer(
        model=str(tmp_path / "model"),
        **{**QUIET, "low_memory": True, "bf16": True, "gradient_accumulation_steps": 2, "max_steps": 3},
    )


def test_a_model_by_name_is_trained_in_four_bits_with_an_adapter_whose_dropout_draws(trainer):
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trainer.model.get_base_model().is_loaded_in_4bit
    assert all("lora_" in name for name in weights)
    trainer.train()
    assert all(not torch.equal(weights[name], p) for name, p in trainer.model.named_parameters() if name in weights)
    dropouts = [m for m in trainer.model.modules() if isinstance(m, nn.Dropout)]
    assert len(dropouts) == 14 and all(module.p == 0.05 for module in dropouts)
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]]))
    trainer.model.train()
    with torch.no_grad():
        losses = [trainer.compute_loss(trainer.model, dict(batch)).item() for _ in range(3)]
    assert len(set(losses)) > 1
