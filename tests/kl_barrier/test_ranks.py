"""Two gloo ranks are one process with twice the batch; a model sharded over them is the whole one."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.kl_barrier.run_training import train_on_ranks

ON_RANKS = "tests.kl_barrier.run_training"
RUNS = ["sequence", "step", "rank_global", "dual", "empty_rank", "sharded", "sharded_adapter"]
# Of a rank's own micro-batch, respectively of batches as they fall: no number of the whole step or set.
OF_THE_SPLIT = {"barrier/pressure", "eval_loss"}


@pytest.mark.parametrize("run", RUNS)
def test_two_ranks_equal_one_process_with_the_same_global_batch(tmp_path, two_ranks, run):
    train_on_ranks(tmp_path, run, batch_size=8)
    folders = (tmp_path, two_ranks / ON_RANKS)
    one, two = (json.loads((folder / f"{run}.json").read_text()) for folder in folders)
    assert (one["processes"], two["processes"]) == (1, 2)
    gradients = [load_file(folder / f"{run}.safetensors") for folder in folders]
    assert gradients[0].keys() == gradients[1].keys() and any(name.startswith("2.") for name in gradients[0])
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=0, atol=1e-6 * expected.abs().max().item())
    for ours, theirs in zip(two["log"], one["log"], strict=True):
        assert without(ours) == pytest.approx(without(theirs), rel=1e-5)
    assert without(two["metrics"]) == pytest.approx(without(one["metrics"]), rel=1e-5)
    assert two["worst"] == one["worst"]
    if run == "sequence":
        assert all(0 < entry["kl/gate_open"] < 1 for entry in one["log"])
    if run == "dual":
        assert len({entry["barrier/weight"] for entry in one["log"]}) == 3


def without(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in OF_THE_SPLIT}
