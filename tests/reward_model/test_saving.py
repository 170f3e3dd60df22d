"""Scores before saving equal scores after loading, in every form, in a fresh process too."""

import json
import math
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig, pipeline

from alignkit.reward_model import RewardModel, export_scalar, load_reward_model
from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer, generate, preference_pairs, tiny_causal_lm

HEADS = ["tidy", "short"]
TEXTS = generate("fable", 3, seed=9) + ["a much shorter one"]
LORA = {"task_type": "SEQ_CLS", "r": 4, "target_modules": "all-linear", "lora_dropout": 0.0}


@pytest.fixture
def causal_checkpoint(tmp_path):
    """A causal language model and its tokenizer in a folder, as one downloads them."""
    path = tmp_path / "causal"
    tiny_causal_lm(seed=4).save_pretrained(path)
    byte_tokenizer(chat_template=CHAT_TEMPLATE).save_pretrained(path)
    return str(path)


@pytest.fixture
def trained(make_trainer, causal_checkpoint):
    """A trainer after a few steps, from the causal checkpoint by path."""

    def train(**settings):
        data = preference_pairs(16, seed=3)
        settings = {"model": causal_checkpoint, "processing_class": None, "max_steps": 3, **settings}
        trainer = make_trainer(HEADS, data, learning_rate=1e-2, **settings)
        trainer.train()
        return trainer

    return train


def scores_of(trainer) -> torch.Tensor:
    return RewardModel(trainer.model, trainer.processing_class).score(TEXTS)


FORMS = {
    "full": {},
    "lora": {"peft_config": LoraConfig(**LORA)},
    "bfloat16": {"model_init_kwargs": {"dtype": "bfloat16"}},
    "bfloat16 lora": {"peft_config": LoraConfig(**LORA), "model_init_kwargs": {"dtype": "bfloat16"}},
    "soft cap": {"score_softcap": 2.0},
}


@pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)
def test_what_the_trainer_saves_scores_the_same_after_loading(trained, tmp_path, settings):
    trainer = trained(**settings)
    before = scores_of(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = load_reward_model(tmp_path / "saved")
    assert loaded.head_names == HEADS
    assert torch.equal(loaded.score(TEXTS), before)


def test_a_language_model_gets_fresh_heads_of_unit_size_from_the_seed(make_trainer, causal_checkpoint):
    heads = [f"h{i}" for i in range(32)]
    data = Dataset.from_list([{"chosen": f"a {i}", "rejected": f"b {i}", "head": i} for i in range(32)])
    settings = {"model": causal_checkpoint, "processing_class": None}
    first, again, other = (make_trainer(heads, data, seed=seed, **settings).model.score.weight for seed in (1, 1, 2))
    assert first.std().item() == pytest.approx(1 / math.sqrt(64 + 1), rel=0.05)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("form", ["full", "adapter", "merged"])
def test_every_form_of_a_lora_model_scores_the_same_after_loading(trained, tmp_path, form):
    trainer = trained(peft_config=LoraConfig(**LORA))
    before = scores_of(trainer)
    RewardModel(trainer.model, trainer.processing_class).save(tmp_path / form, form=form)
    torch.testing.assert_close(load_reward_model(tmp_path / form).score(TEXTS), before, rtol=0, atol=1e-6)
    torch.testing.assert_close(scores_of(trainer), before, rtol=0, atol=0)  # saving changed nothing


def test_a_full_save_of_a_lora_model_needs_nothing_beside_it(trained, tmp_path, causal_checkpoint):
    trainer = trained(peft_config=LoraConfig(**LORA))
    before = scores_of(trainer)
    RewardModel(trainer.model, trainer.processing_class).save(tmp_path / "full", form="full")
    (tmp_path / "causal").rename(tmp_path / "gone")
    assert torch.equal(load_reward_model(tmp_path / "full").score(TEXTS), before)


def test_a_lora_on_a_model_built_in_memory_is_saved_with_its_base(make_trainer, tmp_path):
    trainer = make_trainer(HEADS, preference_pairs(8), peft_config=LoraConfig(**LORA), max_steps=2)
    trainer.train()
    before = scores_of(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    assert torch.equal(load_reward_model(tmp_path / "saved").score(TEXTS), before)


def test_a_fresh_process_gets_the_same_scores(trained, tmp_path):
    trainer = trained(peft_config=LoraConfig(**LORA))
    trainer.save_model(str(tmp_path / "saved"))
    code = (
        "import json, sys, torch; torch.set_num_threads(1)\n"
        "from alignkit.reward_model import load_reward_model\n"
        "print(json.dumps(load_reward_model(sys.argv[1]).score(json.loads(sys.argv[2])).tolist()))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "saved"), json.dumps(TEXTS)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert torch.equal(torch.tensor(json.loads(printed.splitlines()[-1])), scores_of(trainer))


def test_a_plain_automodel_and_a_pipeline_return_the_raw_scores_under_the_heads_names(trained, tmp_path):
    trainer = trained()
    trainer.save_model(str(tmp_path / "saved"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = TEXTS[0] + tokenizer.eos_token
    with torch.no_grad():
        plain = model(**tokenizer(text, return_tensors="pt")).logits[0]
    torch.testing.assert_close(plain, scores_of(trainer)[0], rtol=0, atol=1e-5)
    labelled = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)([text])[0]
    by_name = {entry["label"]: entry["score"] for entry in labelled}
    assert by_name == pytest.approx(dict(zip(HEADS, plain.tolist(), strict=True)), abs=1e-5)


def test_heads_of_a_reward_checkpoint_are_kept_when_training_goes_on(trained, make_trainer, tmp_path):
    trained().save_model(str(tmp_path / "saved"))
    before = load_reward_model(tmp_path / "saved")
    again = make_trainer(HEADS, preference_pairs(8), model=str(tmp_path / "saved"), processing_class=None)
    assert torch.equal(again.model.score.weight, before.model.score.weight)
    assert torch.equal(scores_of(again), before.score(TEXTS))


def test_an_adapter_form_needs_an_adapter_and_an_unknown_form_is_named(trained, tmp_path):
    plain = trained()
    with pytest.raises(ValueError, match="form='full'"):
        RewardModel(plain.model, plain.processing_class).save(tmp_path / "x", form="adapter")
    with pytest.raises(ValueError, match="choose 'full', 'adapter' or 'merged'"):
        RewardModel(plain.model, plain.processing_class).save(tmp_path / "x", form="tarball")


def test_an_adapter_is_found_from_any_folder_and_a_lost_base_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = trained(model="causal", peft_config=LoraConfig(**LORA))  # a relative path
    before = scores_of(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(load_reward_model(tmp_path / "saved").score(TEXTS), before)
    (tmp_path / "causal").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"is an adapter of .*causal.*save the adapter with form='full'"):
        load_reward_model(tmp_path / "saved")


def test_one_text_instead_of_a_list_is_refused(trained):
    model = RewardModel(trained().model, byte_tokenizer(chat_template=CHAT_TEMPLATE))
    assert model.score([""]).shape == (1, 2)  # a policy may complete with nothing
    for texts in ("one text", [{"role": "user", "content": "hi"}], [[]]):
        with pytest.raises(ValueError, match=r"must be a list of strings or of conversations.*wrap one in \[\]"):
            model.score(texts)


def test_training_goes_on_with_a_saved_adapter_given_by_path(trained, make_trainer, tmp_path):
    first = trained(peft_config=LoraConfig(**LORA))
    first.save_model(str(tmp_path / "saved"))
    again = make_trainer(
        HEADS, preference_pairs(16, seed=3), model=str(tmp_path / "saved"), processing_class=None, max_steps=2
    )
    assert torch.equal(scores_of(again), scores_of(first))
    again.train()
    moved = {name for name, p in again.model.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in moved) and any("score" in name for name in moved)
    assert not torch.equal(scores_of(again), scores_of(first))


def test_a_bfloat16_backbone_trains_directly_under_bf16_with_a_float32_head(trained):
    trainer = trained(model_init_kwargs={"dtype": "bfloat16"}, bf16=True, max_steps=5)
    assert trainer.model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert trainer.model.score.weight.dtype == torch.float32
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("settings", [{}, {"peft_config": LoraConfig(**LORA)}], ids=["full", "lora"])
def test_the_exported_scalar_is_the_weighted_sum_of_the_heads(trained, tmp_path, settings):
    trainer = trained(**settings)
    model = RewardModel(trainer.model, trainer.processing_class)
    scalar = export_scalar(model, {"tidy": 2.0, "short": -0.5})
    assert scalar.config.num_labels == 1
    expected = model.score(TEXTS) @ torch.tensor([2.0, -0.5])
    scalar.save_pretrained(tmp_path / "scalar")
    trainer.processing_class.save_pretrained(tmp_path / "scalar")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scalar")
    for one in (scalar, plain):
        scores = RewardModel(one, trainer.processing_class).score(TEXTS)[:, 0]
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_a_soft_cap_cannot_be_folded_and_an_unknown_head_is_named(trained):
    trainer = trained(score_softcap=2.0)
    model = RewardModel(trainer.model, trainer.processing_class)
    with pytest.raises(ValueError, match="score_softcap"):
        export_scalar(model, {"tidy": 1.0})
    with pytest.raises(ValueError, match=r"'wise'.*\['tidy', 'short'\]"):
        export_scalar(model, {"wise": 1.0})


NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def test_qlora_trains_saves_and_loads_a_float32_head(trained, tmp_path):
    trainer = trained(
        peft_config=LoraConfig(**LORA), quantization_config=NF4, max_steps=20, lr_scheduler_type="constant"
    )
    score = trainer.model.base_model.model.score
    trained_weight, initial_weight = score.modules_to_save["default"].weight, score.original_module.weight
    assert trained_weight.dtype == torch.float32
    assert (trained_weight != initial_weight).float().mean() > 0.99
    before = scores_of(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = load_reward_model(tmp_path / "saved")
    torch.testing.assert_close(loaded.score(TEXTS), before, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"quantised base.*quantization_config=None"):
        loaded.save(tmp_path / "merged", form="merged")
    with pytest.raises(ValueError, match="use form='adapter'"):
        loaded.save(tmp_path / "full")
    assert not (tmp_path / "full").exists()
    unquantised = load_reward_model(tmp_path / "saved", quantization_config=None)  # as the message says
    unquantised.model.float()  # the adapter computed in bfloat16, which no merge can repeat
    unquantised.save(tmp_path / "merged", form="merged")
    merged = load_reward_model(tmp_path / "merged")
    assert not getattr(merged.model, "is_quantized", False)
    torch.testing.assert_close(merged.score(TEXTS), unquantised.score(TEXTS), rtol=0, atol=1e-5)
