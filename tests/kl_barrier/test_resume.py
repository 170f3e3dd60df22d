"""A run that is killed and resumed ends in the same weights as one that is not."""

from pathlib import Path

import pytest
import torch

from tests.killed import kill_after_step_5
from tests.kl_barrier.run_training import train_to_the_end

RUN = Path(__file__).parent / "run_training.py"


def trained(trainer) -> dict[str, torch.Tensor]:
    state = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    return state | {f"reference.{name}": value for name, value in trainer.reference.state_dict().items()}


@pytest.mark.slow  # tests/faults has one such run of every trainer in the default tier
@pytest.mark.parametrize("run", ["moving_reference", "moving_copy", "step_with_dropout"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, run):
    kill_after_step_5(RUN, tmp_path / "killed", run)
    resumed = train_to_the_end(tmp_path / "killed", run, resume=True)
    whole = train_to_the_end(tmp_path / "whole", run)
    expected, found = trained(whole), trained(resumed)
    assert expected.keys() == found.keys() and len(expected) > 0
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    logs = [[entry for entry in trainer.state.log_history if "loss" in entry] for trainer in (resumed, whole)]
    assert logs[0] == logs[1]
    assert (whole.barrier_weight, whole.tau_nats) == (resumed.barrier_weight, resumed.tau_nats)
    assert any(entry["kl/gate_open"] > 0 for entry in logs[1][3:])
