"""Two gloo ranks are one process with twice the batch; a model sharded over them is the whole one."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.dpo.run_training import train_on_ranks

ON_RANKS = "tests.dpo.run_training"
RUNS = ["shared", "unshared", "own_betas", "dynamic", "target", "precomputed"]
RUNS += ["sharded", "sharded_adapter", "sharded_precomputed"]
# Measured by the parent over ranks' means, or over what one rank sees.
OF_THE_SPLIT = ("entropy", "mean_token_accuracy", "logits/")


@pytest.mark.parametrize("run", RUNS)
def test_two_ranks_equal_one_process_with_the_same_global_batch(tmp_path, two_ranks, run):
    train_on_ranks(tmp_path, run, batch_size=8)
    folders = (tmp_path, two_ranks / ON_RANKS)
    one, two = (json.loads((folder / f"{run}.json").read_text()) for folder in folders)
    assert (one["processes"], two["processes"]) == (1, 2)
    gradients = [load_file(folder / f"{run}.safetensors") for folder in folders]
    assert gradients[0].keys() == gradients[1].keys() and any(name.startswith("2.") for name in gradients[0])
    for name, expected in gradients[0].items():
        atol = 1e-5 * expected.abs().max().item() + 1e-10
        torch.testing.assert_close(gradients[1][name], expected, rtol=0, atol=atol)
    for ours, theirs in zip(two["log"], one["log"], strict=True):
        assert without(ours) == pytest.approx(without(theirs), rel=1e-4, abs=1e-6)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4) and len(one["metrics"]) >= 4


def without(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(OF_THE_SPLIT)}
