"""With a constant β and unshared prompts the trainer is TRL's DPOTrainer; with shared ones the numbers are equal."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from alignkit.tasks.toy import byte_tokenizer
from tests.dpo.conftest import QUIET
from tests.tiny_models import lively_lm

OURS_ALONE = ("logratio/", "kl/", "beta", "truncated/")
LOSSES = [
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
LORA = {"r": 4, "target_modules": "all-linear"}


@pytest.fixture
def train_both(make_trainer, rows, tmp_path):
    """Our trainer and the parent after three steps on the same rows from the same weights."""

    def train(ours: dict, *, lora=None, steps=3, **settings):
        settings = {
            "per_device_train_batch_size": 4,
            "max_steps": steps,
            "optim": "sgd",
            "learning_rate": 0.1,
            **settings,
        }
        model = lively_lm(1)
        model.save_pretrained(tmp_path / "start")  # where the parent finds its reference
        trainers = []
        for kind in ("ours", "parent"):
            model = type(model).from_pretrained(tmp_path / "start")
            peft_config = None if lora is None else LoraConfig(**LORA, **lora)
            if kind == "ours":
                trainer = make_trainer(model=model, peft_config=peft_config, **ours, **settings)
            else:
                trainer = DPOTrainer(
                    model,
                    args=DPOConfig(str(tmp_path / "parent"), **{**QUIET, **settings}),
                    train_dataset=rows,
                    processing_class=byte_tokenizer(),
                    peft_config=peft_config,
                )
            trainer.train()
            trainers.append(trainer)
        return trainers

    return train


def logs(trainer) -> list[dict[str, float]]:
    """Everything that both trainers log at each step."""
    return [
        {name: value for name, value in entry.items() if not name.startswith(OURS_ALONE) and "runtime" not in name}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def assert_identical(ours, parent) -> None:
    assert logs(ours) == logs(parent) and len(logs(ours)) == 3
    for our_weight, weight in zip(ours.model.parameters(), parent.model.parameters(), strict=True):
        assert torch.equal(our_weight, weight)


NEUTRAL = {"share_prefix": False}


@pytest.mark.parametrize("loss", LOSSES)
def test_the_neutral_setting_trains_bit_identically_to_the_parent_for_every_loss(train_both, loss):
    smoothing = {"label_smoothing": 0.1} if loss in ("exo_pair", "robust") else {}
    assert_identical(*train_both(NEUTRAL, loss_type=loss, **smoothing))


SETTINGS = [
    {"gradient_accumulation_steps": 2},
    {"gradient_checkpointing": True},
    {"ld_alpha": 0.4},
    {"use_weighting": True},
    {"f_divergence_type": "js_divergence"},
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
@pytest.mark.parametrize("lora", [None, {}], ids=["full", "lora"])
def test_the_neutral_setting_trains_bit_identically_to_the_parent(train_both, lora, settings):
    assert_identical(*train_both(NEUTRAL, lora=lora, **settings))


def test_lora_dropout_that_is_on_is_the_parents(train_both):
    assert_identical(*train_both(NEUTRAL, lora={"lora_dropout": 0.3}, disable_dropout=False))


@pytest.mark.parametrize("settings", [{}, *SETTINGS], ids=lambda settings: next(iter(settings), "plain"))
@pytest.mark.parametrize("lora", [None, {}], ids=["full", "lora"])
def test_shared_prefixes_change_no_number(train_both, lora, settings):
    ours, parent = train_both({"share_prefix": True}, lora=lora, **settings)
    assert ours.data_collator.share_prefix
    for our_entry, entry in zip(logs(ours), logs(parent), strict=True):
        assert our_entry == pytest.approx(entry, rel=1e-4, abs=1e-5)
        assert our_entry["num_tokens"] == entry["num_tokens"]
    for our_weight, weight in zip(ours.model.parameters(), parent.model.parameters(), strict=True):
        torch.testing.assert_close(our_weight, weight, rtol=0, atol=1e-5)


def test_an_adapter_that_came_with_the_model_is_the_reference_as_in_the_parent(make_trainer, rows, tmp_path):
    losses = []
    for kind in ("ours", "parent"):
        torch.manual_seed(0)
        model = get_peft_model(lively_lm(1), LoraConfig(**LORA))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        settings = {"per_device_train_batch_size": 4, "max_steps": 2, "optim": "sgd", "learning_rate": 0.1}
        if kind == "ours":
            trainer = make_trainer(model=model, **NEUTRAL, **settings)
            assert trainer.reference.kind == "adapter"
        else:
            args = DPOConfig(str(tmp_path / "parent"), **{**QUIET, **settings})
            trainer = DPOTrainer(model, args=args, train_dataset=rows, processing_class=byte_tokenizer())
        trainer.train()
        losses.append([entry["loss"] for entry in logs(trainer)])
    assert losses[0] == losses[1] and losses[0][0] == pytest.approx(0.6931, abs=1e-4) and losses[0][1] < 0.69
