"""Without a barrier, or with a gate that never opens, the trainer is TRL's SFTTrainer."""

import pytest
import torch
from peft import LoraConfig
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from alignkit.tasks.toy import byte_tokenizer
from tests.kl_barrier.conftest import QUIET
from tests.tiny_models import lively_lm

OURS_ALONE = ("kl/", "barrier", "nll")


@pytest.fixture
def train_both(make_trainer, rows, tmp_path):
    """Our trainer and the parent after five steps on the same rows from the same weights."""

    def train(barrier: dict, with_lora: bool = False, model=lively_lm, **settings):
        settings = {"per_device_train_batch_size": 4, "max_steps": 5, "optim": "sgd", "learning_rate": 0.1, **settings}
        peft_config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1) if with_lora else None
        theirs = {name: value for name, value in QUIET.items() if name != "pressure_steps"}
        trainers = []
        for kind in ("ours", "parent"):
            torch.manual_seed(0)
            if kind == "ours":
                trainer = make_trainer(model=model(1), peft_config=peft_config, **barrier, **settings)
            else:
                trainer = SFTTrainer(
                    model(1),
                    SFTConfig(str(tmp_path / "parent"), **{**theirs, **settings}),
                    train_dataset=rows,
                    processing_class=byte_tokenizer(),
                    peft_config=peft_config,
                )
            torch.manual_seed(0)
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


SETTINGS = [
    {},
    {"gradient_accumulation_steps": 2},
    {"packing": True},
    {"padding_free": True, "max_length": None},
    {"loss_type": "dft"},
]
IDS = ["plain", "accumulation", "packing", "padding_free", "dft"]


@pytest.mark.filterwarnings("ignore:.*(flash|Packing|packing|attention).*")
@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
def test_weight_0_trains_bit_identically_to_the_parent(train_both, with_lora, settings):
    ours, parent = train_both({"barrier_weight": 0.0}, with_lora, **settings)
    assert logs(ours) == logs(parent)
    for our_weight, weight in zip(ours.model.parameters(), parent.model.parameters(), strict=True):
        assert torch.equal(our_weight, weight)


@pytest.mark.filterwarnings("ignore:.*(flash|Packing|packing|attention).*")
@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
@pytest.mark.parametrize("scope", ["sequence", pytest.param("step", marks=pytest.mark.slow)])
@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
def test_a_gate_that_stays_shut_trains_as_the_parent_does(train_both, with_lora, scope, settings):
    ours, parent = train_both({"tau_nats": 1e6, "aggregate_scope": scope}, with_lora, **settings)
    for our_entry, entry in zip(logs(ours), logs(parent), strict=True):
        assert our_entry == pytest.approx(entry, rel=1e-5, abs=1e-6)
    for our_weight, weight in zip(ours.model.parameters(), parent.model.parameters(), strict=True):
        torch.testing.assert_close(our_weight, weight, rtol=0, atol=1e-6)
