"""A reward model that FSDP2 has sharded over two ranks is the whole one."""

import pytest
import torch

from tests.reward_model.run_fsdp import ENCODE_BATCH_SIZES, scores_and_gradients

ON_RANKS = "tests.reward_model.run_fsdp"


@pytest.mark.parametrize("run", ENCODE_BATCH_SIZES)
def test_a_model_sharded_by_fsdp2_has_the_scores_and_gradients_of_the_whole_one(two_ranks, run):
    expected = scores_and_gradients(run, sharded=False)
    found = torch.load(two_ranks / ON_RANKS / f"{run}.pt")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
