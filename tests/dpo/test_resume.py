"""A run that is killed and resumed ends in the same weights as one that is not."""

from pathlib import Path

import pytest
import torch

from tests.dpo.run_training import train_to_the_end
from tests.killed import kill_after_step_5

RUN = Path(__file__).parent / "run_training.py"


def trained(trainer) -> dict[str, torch.Tensor]:
    state = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    return state | {f"reference.{name}": value for name, value in trainer.reference.state_dict().items()}


@pytest.mark.slow  # tests/faults has one such run of every trainer in the default tier
@pytest.mark.parametrize(
    "run", ["target_of_moving_reference", "dynamic_with_dropout", "moving_copy", "precomputed", "shared"]
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, run):
    kill_after_step_5(RUN, tmp_path / "killed", run)
    resumed = train_to_the_end(tmp_path / "killed", run, resume=True)
    whole = train_to_the_end(tmp_path / "whole", run)
    expected, found = trained(whole), trained(resumed)
    assert expected.keys() == found.keys() and len(expected) > 0
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    logs = [[entry for entry in trainer.state.log_history if "loss" in entry] for trainer in (resumed, whole)]
    assert logs[0] == logs[1] and len({entry["beta"] for entry in logs[0]}) > (run != "precomputed")


def test_a_checkpoint_without_the_state_that_beta_needs_says_so(tmp_path):
    train_to_the_end(tmp_path / "run", "dynamic_with_dropout")
    checkpoint = tmp_path / "run" / "checkpoint-8"
    (checkpoint / "manifest.json").unlink()  # which would notice first
    state = checkpoint / "dpo_state.json"
    state.write_text("{}")
    with pytest.raises(ValueError, match=r"dpo_state\.json is damaged .*average_margin_nats"):
        train_to_the_end(tmp_path / "run", "dynamic_with_dropout", resume=True)
    state.unlink()
    with pytest.raises(ValueError, match="saved without dynamic_beta_alpha or target_kl"):
        train_to_the_end(tmp_path / "run", "dynamic_with_dropout", resume=True)
