"""A model in 4 bits trains as one that holds the dequantised weights in float32, also between evaluations.

bitsandbytes repacks the weights at the first evaluation on a CPU with AVX512-BF16, for a product without autograd:
every later step would have wrong gradients and no error.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel

from alignkit.reward_model import load_reward_model
from alignkit.tasks.toy import STYLES, corpus_membership, tiny_sequence_classifier
from tests.dpo.conftest import pairs
from tests.es_lora.conftest import prompts
from tests.faults.four_bit import (
    BETWEEN_EVALUATIONS,
    NF4,
    give_same_weights,
    gradients_of,
    quantised_layers,
    saved_and_loaded,
)
from tests.faults.trainings import make_trainer, state_of
from tests.kl_barrier.conftest import prompts_and_completions
from tests.tiny_models import lively_lm

EVALUATED: dict[str, Callable[[int], Dataset]] = {
    "reward": lambda n: corpus_membership(n_per_style=4)[2].select(range(n)),
    "barrier": prompts_and_completions,
    "dpo": pairs,
    "es": prompts,
}


@pytest.fixture
def on_any_cpu(monkeypatch):
    """Every new layer asks for the repacking, unless it is told not to."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)


def new_model(method: str, folder: Path, **settings: Any) -> PreTrainedModel:
    model = tiny_sequence_classifier(list(STYLES), seed=1) if method == "reward" else lively_lm(1, hidden_size=64)
    return saved_and_loaded(model, folder, **settings)


def trainer_of(method: str, model: PreTrainedModel, output: Path, **settings: Any) -> Any:
    task = {"task_type": "SEQ_CLS"} if method == "reward" else {}
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", **task)
    options = {"eval_dataset": EVALUATED[method](4), "peft_config": lora, **BETWEEN_EVALUATIONS, **settings}
    return make_trainer(method, output, model=model, **options)


def twins(method: str, folder: Path) -> tuple[Any, Any]:
    """Trainers of a model in 4 bits and of its dequantised weights."""
    trainer = trainer_of(method, new_model(method, folder / "model", quantization_config=NF4), folder / "4 bits")
    assert not any(layer.support_avx512bf16_for_cpu for layer in quantised_layers(trainer.model).values())
    whole = trainer_of(method, new_model(method, folder / "model"), folder / "float32")
    give_same_weights(trainer.model, whole.model)
    return trainer, whole


@pytest.mark.parametrize("method", ["reward", "barrier", "dpo"])
def test_gradients_of_a_4_bit_model_are_those_of_its_dequantised_weights_before_and_after_evaluations(
    method, tmp_path, on_any_cpu
):
    trainer, whole = twins(method, tmp_path)
    found, expected = gradients_of(trainer), gradients_of(whole)
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == 3
    assert found.keys() == expected.keys() == {0, 1, 2}
    for step, gradients in expected.items():
        assert any("score" in name for name in gradients) == (method == "reward")
        assert all(gradient.any() for name, gradient in gradients.items() if "lora_B" in name)
        for name, gradient in gradients.items():
            limit = 1e-4 * gradient.abs().max().item()
            torch.testing.assert_close(found[step][name], gradient, rtol=1e-4, atol=limit)


def test_es_takes_the_same_steps_on_4_bits_as_on_the_dequantised_weights(tmp_path, on_any_cpu):
    trainer, whole = twins("es", tmp_path)
    trainer.train()
    whole.train()
    found, expected = state_of(trainer), state_of(whole)
    moved = [name for name in expected if "lora_" in name]
    for name in moved:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)
    assert any(expected[name].any() for name in moved if "lora_B" in name)


def test_a_reward_model_whose_adapter_was_trained_on_4_bits_is_not_repacked_where_it_scores(tmp_path, on_any_cpu):
    model = new_model("reward", tmp_path / "model", quantization_config=NF4)
    trainer_of("reward", model, tmp_path / "out").save_model(str(tmp_path / "adapter"))
    model = load_reward_model(tmp_path / "adapter").model
    assert not any(layer.support_avx512bf16_for_cpu for layer in quantised_layers(model).values())


@pytest.mark.skipif(not has_avx512bf16(), reason="bitsandbytes repacks weights on CPUs with AVX512-BF16 alone")
def test_a_4_bit_model_that_was_evaluated_before_is_refused(tmp_path):
    model = new_model("dpo", tmp_path / "model", quantization_config=NF4)
    with torch.no_grad():
        model.eval()(torch.tensor([[1, 2, 3]]))
    with pytest.raises(ValueError, match=r"self_attn\.q_proj.*was evaluated before.*load it again"):
        trainer_of("dpo", model, tmp_path / "out")
