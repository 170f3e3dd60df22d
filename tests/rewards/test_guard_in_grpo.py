"""A guard is a reward function of TRL's GRPO as it is."""

from pathlib import Path

import pytest
from datasets import Dataset
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from alignkit.rewards.guard import GuardedReward
from alignkit.tasks.toy import byte_tokenizer, tiny_causal_lm
from tests.rewards import guarded_functions


def test_grpo_takes_a_guard_as_its_reward_function_and_logs_what_it_logs(tmp_path: Path) -> None:
    guard = GuardedReward(guarded_functions.logging_length, 60)
    trainer = GRPOTrainer(
        tiny_causal_lm(layers=1),
        guard,
        GRPOConfig(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=4,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_dict({"prompt": ["ab"] * 4, "extra": [1] * 4}),
        processing_class=byte_tokenizer(),
    )
    trainer.train()
    guard.close()
    log = trainer.state.log_history[0]
    assert log["rewards/logging_length/mean"] == pytest.approx(log["mean_length"])
