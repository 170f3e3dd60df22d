"""What `ESLoRATrainer` relies on in transformers' Trainer: a release that breaks it fails here first."""

import pytest
from transformers import Trainer

from alignkit import ESLoRATrainer
from tests.contract.overridden import counting_calls, parameters_of
from tests.es_lora.conftest import make_es_trainer, prompts

# Members that alignkit overrides, with the parameters that its overrides take; None where they are passed on.
OVERRIDDEN = {
    "get_train_dataloader": ["self"],
    "get_eval_dataloader": ["self", "eval_dataset"],
    "get_total_train_batch_size": ["self", "args"],
    "floating_point_ops": ["self", "inputs"],
    "train": None,
    "create_optimizer": ["self", "model"],
    "_run_epoch": None,
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "evaluate": None,
    "evaluation_loop": [
        "self",
        "dataloader",
        "description",
        "prediction_loss_only",
        "ignore_keys",
        "metric_key_prefix",
    ],
    "log": ["self", "logs", "start_time"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "_save_checkpoint": ["self", "model", "trial"],
}


@pytest.mark.parametrize("name", [name for name, parameters in OVERRIDDEN.items() if parameters])
def test_the_overridden_member_has_the_signature_of_our_override(name):
    for trainer_class in (Trainer, ESLoRATrainer):
        assert parameters_of(trainer_class, name) == OVERRIDDEN[name]


def test_every_overridden_member_is_called_in_training(tmp_path, monkeypatch):
    spy, calls = counting_calls(ESLoRATrainer, OVERRIDDEN)
    monkeypatch.setattr("tests.es_lora.conftest.ESLoRATrainer", spy)
    trainer = make_es_trainer(
        tmp_path, eval_dataset=prompts(2), save_strategy="steps", save_steps=1, eval_steps=1, max_steps=1
    )
    trainer.train()
    assert all(calls.values()), calls
