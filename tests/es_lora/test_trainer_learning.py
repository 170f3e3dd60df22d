"""A simple reward is learned on a tiny model within seconds, also with the default settings."""

from dataclasses import fields

import pytest
from peft import LoraConfig

from alignkit import ESLoRAConfig
from tests.es_lora.conftest import prompts, share_of_small_letters

SIZES = {
    "max_steps": 50,
    "population_size": 16,
    "prompts_per_step": 4,
    "logging_steps": 50,
    "reward_funcs": share_of_small_letters,
}
TUNED = ("sigma", "sigma_mode", "perturb", "temperature", "learning_rate")
DEFAULTS = {field.name: field.default for field in fields(ESLoRAConfig) if field.name in TUNED}


@pytest.mark.parametrize("perturb", ["B", "both"])
def test_a_trivial_reward_is_overfitted(make_trainer, perturb):
    trainer = make_trainer(
        **SIZES,
        perturb=perturb,
        sigma=0.1,
        learning_rate=0.2,
        eval_dataset=prompts(),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
    )
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    assert trainer.evaluate()["eval_reward"] > before + 0.2


@pytest.mark.parametrize("rank", [2, 16])
def test_the_default_settings_learn_at_a_low_and_a_high_rank(make_trainer, rank):
    trainer = make_trainer(
        **SIZES,
        **DEFAULTS,
        eval_dataset=prompts(),
        peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"),
    )
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    assert trainer.evaluate()["eval_reward"] > before + 0.1
