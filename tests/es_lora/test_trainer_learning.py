"""The default settings learn a simple reward on a tiny model within seconds."""

import pytest
from peft import LoraConfig

from tests.es_lora.conftest import prompts, share_of_small_letters


@pytest.mark.parametrize("perturb", ["B", "both"])
def test_a_trivial_reward_is_overfitted(make_trainer, perturb):
    trainer = make_trainer(
        perturb=perturb,
        reward_funcs=share_of_small_letters,
        max_steps=50,
        population_size=16,
        prompts_per_step=4,
        sigma=0.1,
        learning_rate=0.2,
        eval_dataset=prompts(),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
        logging_steps=50,
    )
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    assert trainer.evaluate()["eval_reward"] > before + 0.2
