"""What a step does with its rewards."""

import torch

from alignkit.es_lora.outcome import step_outcome


def test_a_step_whose_pairs_all_tie_moves_nothing_though_members_differ():
    of_members = torch.tensor([1.0, 1.0, 3.0, 3.0, 2.0], dtype=torch.float64)  # two pairs, and the centre
    rewards = of_members.view(5, 1, 1, 1)
    weights = torch.ones(1, dtype=torch.float64)
    tied, scored = (step_outcome(rewards, weights, how) for how in ("sign", "z_score"))
    assert not tied.moves and tied.shaped.tolist() == [0.0] * 4
    assert scored.moves and scored.shaped.tolist() == [-1.0, -1.0, 1.0, 1.0]
