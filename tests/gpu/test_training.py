"""The four trainers on a GPU, for what a CPU cannot show: `make gpu`.

Without a CUDA device every one of these fails, for a pass would say nothing.
"""

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig, PreTrainedModel

from alignkit.command_line.launch import config_file
from alignkit.tasks.toy import STYLES, tiny_sequence_classifier
from tests.equivalence.runs import read_record
from tests.equivalence.trainings import METHODS, Record, train
from tests.faults.four_bit import saved_and_loaded
from tests.faults.trainings import log_of, make_trainer, state_of
from tests.gpu import sharded
from tests.ranks import launch
from tests.tiny_models import lively_lm

pytestmark = pytest.mark.gpu

ON_GPU: dict[str, Any] = {"use_cpu": False}
WITH_GRADIENTS = ["reward", "barrier", "dpo"]
# A GPU sums in another order, and may round products to TF32. ES takes the same noise to other roundings.
CLOSE = {"rel": 2e-3, "abs": 2e-3}
BF16 = {"rel": 0.05, "abs": 0.05}
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def _needs_a_gpu():
    assert torch.cuda.is_available(), "no CUDA device"


def assert_close(found: Record, expected: Record, **tolerance: float) -> None:
    for ours, theirs in zip(found.log, expected.log, strict=True):
        assert ours == pytest.approx(theirs, **tolerance) and "loss" in ours
    assert found.weights.keys() == expected.weights.keys() and expected.weights
    for name, weight in expected.weights.items():
        torch.testing.assert_close(found.weights[name].cpu(), weight, rtol=0, atol=2e-3, msg=name)


def model_of(method: str, attention: str = "sdpa") -> PreTrainedModel:
    """With heads of 16 values, the fewest that flex attention takes."""
    tiny = tiny_sequence_classifier(list(STYLES), seed=1, hidden_size=64)
    model = tiny if method == "reward" else lively_lm(1, hidden_size=64)
    model.set_attn_implementation(attention)
    return model


def losses(trainer: Any) -> list[float]:
    trainer.train()
    assert all(parameter.is_cuda for parameter in trainer.model.parameters())
    return [entry["loss"] for entry in log_of(trainer)]


@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_trains_what_a_cpu_trains(tmp_path, method):
    settings = {"temperature": 0.0, "rollouts_per_prompt": 1} if method == "es" else {}  # sampled words differ
    found = train(method, tmp_path / "gpu", **ON_GPU, **settings)
    assert_close(found, train(method, tmp_path / "cpu", **settings), **CLOSE)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_bfloat16_has_the_losses_of_float32(tmp_path, method, lora):
    found, expected = (train(method, tmp_path / str(bf16), **ON_GPU, lora=lora, bf16=bf16) for bf16 in (True, False))
    for ours, theirs in zip(found.log, expected.log, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], **BF16)
    assert found.log != expected.log  # else it was no bfloat16
    assert all(weight.isfinite().all() for weight in found.weights.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_is_the_one_that_was_not_broken_off(tmp_path, method):
    whole, resumed = (make_trainer(method, tmp_path, **ON_GPU, save_steps=3) for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    expected = state_of(whole)
    for name, value in state_of(resumed).items():  # some sums on a GPU have no fixed order
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of flex attention in transformers and torch
@pytest.mark.parametrize("attention", ["sdpa", "flex_attention", "flash_attention_2"])
@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_every_attention_has_the_losses_of_the_plain_one(tmp_path, method, attention):
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    found = []
    for implementation in (attention, "eager"):
        model = model_of(method, implementation)
        # A prompt that runs once needs a mask that flash attention does not take.
        own = {"share_prefix": False} if method != "barrier" and attention == "flash_attention_2" else {}
        settings = {**ON_GPU, **own, "bf16": True, "max_steps": 3, "save_strategy": "no"}
        found.append(losses(make_trainer(method, tmp_path / implementation, model=model, **settings)))
    assert found[0] == pytest.approx(found[1], **BF16)


@pytest.mark.parametrize("method", METHODS)
def test_a_lora_on_4_bits_learns_with_a_paged_optimiser(tmp_path, method):
    model = saved_and_loaded(model_of(method), tmp_path / "model", quantization_config=NF4, device_map={"": 0})
    assert any(isinstance(module, bnb.nn.Linear4bit) for module in model.modules())
    own = {} if method == "es" else {"bf16": True, "optim": "paged_adamw_8bit"}
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS" if method == "reward" else "CAUSAL_LM")
    settings = {**ON_GPU, **own, "max_steps": 3, "save_strategy": "no", "peft_config": lora}
    trainer = make_trainer(method, tmp_path / "run", model=model, **settings)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert all(torch.tensor(losses(trainer)).isfinite())
    moved = {
        name for name, weight in trainer.model.named_parameters() if name in before and weight.ne(before[name]).any()
    }
    assert any("lora_B" in name for name in moved)


@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_fsdp2_on_the_gpus_that_there_are_trains_what_one_process_trains(tmp_path, method):
    launch(tmp_path, [f"{sharded.__name__}:{method}"], config_file("fsdp2"), n_processes=torch.cuda.device_count())
    found = read_record(Path(tmp_path, sharded.__name__, f"{method}.pt"))
    assert found.sharding == "fsdp2"
    assert_close(found, train(method, tmp_path / "one", **ON_GPU), **CLOSE)
