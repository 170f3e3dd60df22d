"""Packed rows on two ranks."""

import pytest
import torch

from tests.shared_prefix.completions import assert_close, tiny
from tests.shared_prefix.run_ranks import RUNS, gradients, rows_of

ON_RANKS = "tests.shared_prefix.run_ranks"


@pytest.mark.parametrize("run", RUNS)
def test_two_ranks_and_a_sharded_model_have_the_gradients_of_one_process(two_ranks, run):
    halves = [gradients(tiny("Gemma3"), rows_of(rank), shared=False) for rank in (0, 1)]
    found = torch.load(two_ranks / ON_RANKS / f"{run}.pt")
    assert found.keys() == halves[0].keys()
    for name in found:
        assert_close(found[name], (halves[0][name] + halves[1][name]) / 2)
