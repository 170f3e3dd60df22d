"""With one head and pairs, the trainer is TRL's RewardTrainer."""

import pytest
import torch
from datasets import Dataset
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from alignkit.tasks.toy import byte_tokenizer, preference_pairs, tiny_sequence_classifier


def pairs(margins: bool) -> Dataset:
    data = preference_pairs(16, seed=5).remove_columns("head")
    return data.add_column("margin", [0.1 * i for i in range(16)]) if margins else data


@pytest.fixture
def train_both(make_trainer, quiet_settings, tmp_path):
    """Both trainers after four steps on the same pairs from the same weights."""

    def train(margins: bool, **settings):
        settings = {"per_device_train_batch_size": 4, "max_steps": 4, **settings}
        parent = RewardTrainer(
            tiny_sequence_classifier(["reward"], seed=1),
            RewardConfig(str(tmp_path / "parent"), **{**quiet_settings, **settings}),
            train_dataset=pairs(margins),
            processing_class=byte_tokenizer(),
        )
        ours = make_trainer(["reward"], pairs(margins), share_prefix=False, **settings)
        for trainer in (parent, ours):
            trainer.train()
        return ours, parent

    return train


def logged(trainer, names: tuple[str, ...]) -> torch.Tensor:
    return torch.tensor([[entry[name] for name in names] for entry in trainer.state.log_history if "loss" in entry])


@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"center_rewards_coefficient": 0.01}])
def test_one_head_on_pairs_logs_what_the_reward_trainer_logs(train_both, margins, settings):
    ours, parent = train_both(margins, **settings)
    # min_reward and max_reward are left out: the parent averages the extremes of micro-batches.
    names = ("loss", "grad_norm", "learning_rate", "margin", "accuracy", "mean_reward", "num_tokens")
    torch.testing.assert_close(logged(ours, names), logged(parent, names), rtol=1e-6, atol=1e-6)


def test_one_head_on_pairs_learns_the_weights_of_the_reward_trainer(train_both):
    # Plain SGD: Adam turns rounding of near-zero gradients into steps of full size.
    ours, parent = train_both(True, optim="sgd", learning_rate=0.1)
    for our_weight, weight in zip(ours.model.parameters(), parent.model.parameters(), strict=True):
        torch.testing.assert_close(our_weight, weight, rtol=0, atol=1e-6)


def test_one_head_on_pairs_evaluates_to_the_parents_metrics_when_batches_are_full(train_both, make_trainer):
    ours, parent = train_both(False, optim="sgd", learning_rate=0.1)
    ours_metrics, metrics = ours.evaluate(pairs(False)), parent.evaluate(pairs(False))
    for name in ("eval_loss", "eval_accuracy", "eval_margin"):
        assert ours_metrics[name] == pytest.approx(metrics[name], abs=1e-6)
