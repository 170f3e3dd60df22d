"""Two gloo ranks are one process with twice the batch; a model sharded over them is the whole one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.kl_barrier.run_training import train_on_ranks

RUN = Path(__file__).parent / "run_training.py"
RUNS = ["sequence", "step", "rank_global", "dual", "empty_rank", "sharded", "sharded_adapter"]
# Of a rank's own micro-batch, respectively of batches as they fall: no number of the whole step or set.
OF_THE_SPLIT = {"barrier/pressure", "eval_loss"}


def launch(script: Path, *arguments: str) -> str:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """Records of all runs on two ranks: one start for all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    launch(RUN, str(folder), *RUNS, "--batch-size", "4")
    return folder


@pytest.mark.parametrize("run", RUNS)
def test_two_ranks_equal_one_process_with_the_same_global_batch(tmp_path, two_ranks, run):
    train_on_ranks(tmp_path, run, batch_size=8)
    one, two = (json.loads((folder / f"{run}.json").read_text()) for folder in (tmp_path, two_ranks))
    assert (one["processes"], two["processes"]) == (1, 2)
    gradients = [load_file(folder / f"{run}.safetensors") for folder in (tmp_path, two_ranks)]
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


@pytest.mark.slow
def test_fsdp2_shards_kept_and_moving_references_without_changing_losses_gradients_or_a_resumed_run(tmp_path):
    cases = ["kept_copy", "moving_copy", "moving_adapter"]
    assert launch(RUN.with_name("run_fsdp.py"), str(tmp_path), *cases).count("equal") == 2
