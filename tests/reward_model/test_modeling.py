"""Pooling by mask, a float32 head over any backbone, names and initial weights of the heads."""

import logging
import math

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    Gemma3TextConfig,
    GPT2Config,
    Qwen2Config,
    Qwen3Config,
)

from alignkit.reward_model import RewardModel, load_reward_model
from alignkit.reward_model.data import encode_text
from alignkit.reward_model.loading import take_in_model
from alignkit.reward_model.modeling import add_reward_forward, initialize_score, last_positions, token_scores
from alignkit.tasks.toy import byte_tokenizer, generate, tiny_sequence_classifier

HEADS = ["clear", "kind", "brief"]
SMALL = {"vocab_size": 259, "pad_token_id": 256, "eos_token_id": 258, "num_labels": 3}
DECODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    **SMALL,
}
ARCHITECTURES = {
    "llama": None,
    "qwen2": Qwen2Config(**DECODER),
    "qwen3": Qwen3Config(head_dim=8, **DECODER),
    "gemma3": Gemma3TextConfig(head_dim=8, sliding_window=16, **DECODER),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, **SMALL),
}


def build(name: str) -> torch.nn.Module:
    if name == "llama":
        model = tiny_sequence_classifier(HEADS, seed=2)
    else:
        torch.manual_seed(2)
        model = AutoModelForSequenceClassification.from_config(ARCHITECTURES[name])
    add_reward_forward(model)
    return model.eval()


def padded(texts: list[str], side: str, pad_token_id: int) -> dict[str, torch.Tensor]:
    rows = [encode_text(byte_tokenizer(), text) for text in texts]
    width = max(map(len, rows))
    pads = [[pad_token_id] * (width - len(row)) for row in rows]
    masks = [[0] * (width - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    if side == "right":
        ids = [row + pad for row, pad in zip(rows, pads, strict=True)]
        mask = [one + zero for one, zero in zip(ones, masks, strict=True)]
    else:
        ids = [pad + row for row, pad in zip(rows, pads, strict=True)]
        mask = [zero + one for one, zero in zip(ones, masks, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


TEXTS = generate("recipe", 8, seed=0) + generate("ledger", 7, seed=0) + ["short"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_scores_do_not_depend_on_padding_side_pad_token_or_batch_size(architecture):
    model = build(architecture)
    alone = torch.cat([model(**padded([text], "right", 256)).logits for text in TEXTS])
    for side in ("left", "right"):
        for pad_token_id in (256, 258):  # 258 is the end-of-sequence token
            together = model(**padded(TEXTS, side, pad_token_id)).logits
            torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_score_is_that_of_the_last_real_token():
    model = build("llama")
    batch = padded(TEXTS, "right", 258)
    everywhere = token_scores(model, **batch)
    last = batch["attention_mask"].sum(1) - 1
    torch.testing.assert_close(model(**batch).logits, everywhere[torch.arange(len(TEXTS)), last])


def test_last_positions_are_right_for_left_right_and_no_padding():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]])
    assert last_positions(mask).tolist() == [1, 3, 3, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_scores_are_float32_and_not_on_the_grid_of_the_backbones_dtype(dtype, autocast):
    model = tiny_sequence_classifier(HEADS, seed=2).to(dtype)
    add_reward_forward(model)
    assert model.score.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scores = model(**padded(TEXTS, "right", 256)).logits
    assert scores.dtype == torch.float32
    assert (scores.bfloat16().float() != scores).float().mean() > 0.9


def test_several_texts_without_an_attention_mask_are_refused():
    ids = padded(TEXTS, "right", 256)["input_ids"]
    model = build("llama")
    with pytest.raises(ValueError, match="attention_mask is missing"):
        model(input_ids=ids)
    alone = padded(TEXTS[:1], "right", 256)
    torch.testing.assert_close(model(input_ids=alone["input_ids"]).logits, model(**alone).logits)


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_prompt_learning_adapters_score_alike_for_either_padding_and_cannot_be_probed(kind, make_config):
    settings = {"task_type": "SEQ_CLS", "num_virtual_tokens": 4}
    config = PrefixTuningConfig(**settings) if kind == "prefix" else PromptTuningConfig(**settings)
    torch.manual_seed(0)
    model = get_peft_model(build("llama"), config).eval()
    with torch.no_grad():
        left, right = (model(**padded(TEXTS, side, 256)).logits for side in ("left", "right"))
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be shown"):
        token_scores(model, **padded(TEXTS, "right", 256))
    with pytest.raises(ValueError, match="cannot split a batch under a"):
        take_in_model(model, make_config(HEADS, encode_batch_size=2), None)


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_prompt_learning_adapters_are_saved_whole_and_refuse_to_be_merged(kind, tmp_path):
    settings = {"task_type": "SEQ_CLS", "num_virtual_tokens": 4}
    config = PrefixTuningConfig(**settings) if kind == "prefix" else PromptTuningConfig(**settings)
    torch.manual_seed(0)
    model = RewardModel(get_peft_model(build("llama"), config).eval(), byte_tokenizer())
    before = model.score(TEXTS)
    model.save(tmp_path / "full")
    torch.testing.assert_close(load_reward_model(tmp_path / "full").score(TEXTS), before, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"cannot be merged.*save form='full'"):
        model.save(tmp_path / "merged", form="merged")


def test_only_pooled_rows_reach_score():
    model = build("llama")
    shapes = []
    model.score.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    model(**padded(TEXTS, "right", 256))
    assert shapes == [(len(TEXTS), model.config.hidden_size)]


def test_the_soft_cap_is_c_tanh_of_score_over_c():
    model = build("llama")
    with torch.no_grad():
        model.score.weight.mul_(30)
        raw = model(**padded(TEXTS, "right", 256)).logits
        add_reward_forward(model, score_softcap=5.0)
        capped = model(**padded(TEXTS, "right", 256)).logits
    torch.testing.assert_close(capped, 5 * torch.tanh(raw / 5))
    assert raw.abs().max() > 5 > capped.abs().max()


def test_fresh_heads_have_std_one_over_root_of_hidden_plus_one_and_depend_on_the_seed_alone():
    first, second = (tiny_sequence_classifier([f"h{i}" for i in range(64)], seed=s) for s in (1, 2))
    initialize_score(first, seed=7)
    initialize_score(second, seed=7)
    assert torch.equal(first.score.weight, second.score.weight)
    noise = torch.randn(64, first.config.hidden_size, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(first.score.weight.data, noise / math.sqrt(first.config.hidden_size + 1))
    initialize_score(second, seed=8)
    assert not torch.equal(first.score.weight, second.score.weight)


def test_default_label_names_of_the_right_count_are_renamed_and_the_weights_kept_with_one_log_line(
    make_config, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("alignkit"), "propagate", True)
    model = build("qwen2")
    before = model.score.weight.clone()
    assert take_in_model(model, make_config(HEADS), None) == HEADS
    assert model.config.id2label == dict(enumerate(HEADS))
    assert model.config.problem_type == "regression"
    (record,) = caplog.records
    assert "LABEL_0" in record.message and "clear" in record.message and "kept" in record.message
    assert torch.equal(model.score.weight, before)


@pytest.mark.parametrize("names", [["clear", "kind"], ["clear", "brief", "kind"], ["a", "b", "c"]])
def test_other_heads_than_the_models_are_an_error_that_lists_both(make_config, names):
    with pytest.raises(ValueError, match="head_names") as error:
        take_in_model(tiny_sequence_classifier(HEADS), make_config(names), None)
    assert str(names) in str(error.value) and str(HEADS) in str(error.value)


def test_an_encoder_without_score_is_refused_with_the_reason():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(ValueError, match="no bias-free linear `score`"):
        add_reward_forward(BertForSequenceClassification(config))
