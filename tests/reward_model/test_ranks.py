"""Two gloo ranks are one process with twice the batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RUN = Path(__file__).parent / "run_training.py"


def run(output: Path, ranks: int, *arguments: str) -> dict:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, str(RUN), str(output), *arguments, "--batch-size", str(8 // ranks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return json.loads((output / "record.json").read_text())


PAIRS, TIERS = ["--data", "pairs"], ["--data", "tiers", "--regularizer", "center"]


@pytest.mark.parametrize("data", [pytest.param(PAIRS, marks=pytest.mark.slow), TIERS], ids=["pairs", "tiers"])
def test_two_ranks_equal_one_process_with_the_same_global_batch(tmp_path, data):
    one, two = (run(tmp_path / str(ranks), ranks, *data, "--optim", "sgd") for ranks in (1, 2))
    assert two["processes"] == 2
    gradients = [load_file(tmp_path / ranks / "gradients.safetensors") for ranks in ("1", "2")]
    assert gradients[0].keys() == gradients[1].keys()
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], rtol=0, atol=1e-6)
    for ours, theirs in zip(two["log"], one["log"], strict=True):
        for entry in (ours, theirs):  # these count every encoded text, and each rank encodes the negatives
            del entry["num_tokens"], entry["mean_reward"]
        assert ours == pytest.approx(theirs, abs=1e-5, nan_ok=True)
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-5)
    for name, value in one["metrics"].items():  # a streamed evaluation set is the same set
        if name.startswith("eval_whole"):
            assert one["metrics"][name.replace("whole", "streamed")] == pytest.approx(value, abs=1e-5)
    weights = [load_file(tmp_path / ranks / "final" / "model.safetensors") for ranks in ("1", "2")]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=0, atol=1e-6)


def test_a_model_sharded_by_fsdp2_has_the_scores_and_gradients_of_the_whole_one():
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*launcher, str(RUN.with_name("run_fsdp.py"))], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2
