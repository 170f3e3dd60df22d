"""What alignkit relies on in TRL's RewardTrainer and in transformers: a release that breaks it fails here first."""

import pytest
import torch
from accelerate.utils import send_to_device
from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from alignkit._compat import (
    keep_cpu_4bit_gradients_right,
    load_sequence_classifier,
    score_in_float32,
    seen_as_single_label,
)
from alignkit.reward_model import Comparisons
from alignkit.tasks.toy import byte_tokenizer, preference_pairs, tiny_causal_lm, tiny_sequence_classifier

HEADS = ["tidy", "short"]
QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False}


def test_the_parent_still_refuses_several_labels_and_accepts_them_seen_as_one(tmp_path):
    loading = {"dtype": "float32"}
    model = tiny_sequence_classifier(HEADS)
    args = RewardConfig(str(tmp_path), model_init_kwargs=loading, **QUIET)
    data = {"train_dataset": preference_pairs(4), "processing_class": byte_tokenizer()}
    with pytest.raises(ValueError, match="num_labels=1"):
        RewardTrainer(model, args, **data)
    with seen_as_single_label(model.config, args):
        assert args.model_init_kwargs is None  # of which the parent would warn
        RewardTrainer(model, args, **data)
    assert args.model_init_kwargs == loading
    assert model.config.id2label == dict(enumerate(HEADS))
    assert model.config.label2id == {"tidy": 0, "short": 1}


def test_the_parent_keeps_the_attributes_that_our_overrides_use(tmp_path):
    trainer = RewardTrainer(
        tiny_sequence_classifier(["reward"]),
        RewardConfig(str(tmp_path), **QUIET),
        train_dataset=preference_pairs(4),
        processing_class=byte_tokenizer(),
    )
    assert trainer._total_train_tokens == 0
    assert trainer._tp_size == 1
    assert trainer.label_names == [] and trainer.can_return_loss
    assert RewardTrainer.loss_is_scaled_for_ga is False


@pytest.fixture
def causal_checkpoint(tmp_path):
    tiny_causal_lm(seed=1).to(torch.bfloat16).save_pretrained(tmp_path / "causal")
    return str(tmp_path / "causal")


def test_from_pretrained_keeps_score_in_float32_inside_the_context_only(tmp_path):
    model = tiny_sequence_classifier(HEADS, seed=3).to(torch.bfloat16)
    model.score.float()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    with score_in_float32(config):
        inside = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype="auto")
    outside = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype="auto")
    assert inside.model.embed_tokens.weight.dtype == outside.score.weight.dtype == torch.bfloat16
    assert torch.equal(inside.score.weight, model.score.weight)
    assert torch.equal(outside.score.weight, model.score.weight.bfloat16())


def test_what_a_class_keeps_in_float32_by_itself_stays_so(monkeypatch):
    config = tiny_sequence_classifier(HEADS).config
    kind = AutoModelForSequenceClassification._model_mapping[type(config)]
    monkeypatch.setattr(kind, "_keep_in_fp32_modules_strict", {"norm"})
    with score_in_float32(config):
        assert kind._keep_in_fp32_modules_strict == {"norm", "score.weight"}
    assert kind._keep_in_fp32_modules_strict == {"norm"}


def test_a_language_model_loads_without_a_score_and_a_reward_model_without_one_is_an_error(causal_checkpoint):
    config = AutoConfig.from_pretrained(causal_checkpoint, num_labels=2)
    model = load_sequence_classifier(causal_checkpoint, config, has_score=False)
    assert model.score.weight.shape == (2, config.hidden_size)
    with pytest.raises(ValueError, match=r"holds no score\.weight"):
        load_sequence_classifier(causal_checkpoint, config, has_score=True)


def test_an_evaluation_forward_does_not_change_the_gradients_of_a_4bit_model(causal_checkpoint):
    config = AutoConfig.from_pretrained(causal_checkpoint, num_labels=2)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = load_sequence_classifier(causal_checkpoint, config, has_score=False, quantization_config=nf4)
    keep_cpu_4bit_gradients_right(model)
    embeddings = torch.randn(2, 5, config.hidden_size, generator=torch.Generator().manual_seed(0))

    def gradient() -> torch.Tensor:
        inputs = embeddings.clone().requires_grad_()
        model.train()(inputs_embeds=inputs).logits.sum().backward()
        return inputs.grad

    before = gradient()
    with torch.no_grad():
        model.eval()(inputs_embeds=embeddings)
    torch.testing.assert_close(gradient(), before)
    assert before.abs().max() > 0


def test_accelerate_moves_the_comparisons_of_a_batch_with_it():
    comparisons = Comparisons(*(torch.zeros(3, dtype=torch.long) for _ in range(3)))
    moved = send_to_device({"comparisons": comparisons, "input_ids": torch.zeros(1)}, "meta")
    assert moved["comparisons"].winner.device.type == moved["comparisons"].weight.device.type == "meta"
