"""Two gloo ranks are one process with twice the batch; a model sharded over them is the whole one."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.reward_model.run_training import train_on_ranks

ON_RANKS = "tests.reward_model.run_training"


@pytest.mark.parametrize("run", [pytest.param("pairs", marks=pytest.mark.slow), "tiers"])
def test_two_ranks_equal_one_process_with_the_same_global_batch(tmp_path, two_ranks, run):
    train_on_ranks(tmp_path, run, batch_size=8)
    folders = (tmp_path / run, two_ranks / ON_RANKS / run)
    one, two = (json.loads((folder / "record.json").read_text()) for folder in folders)
    assert (one["processes"], two["processes"]) == (1, 2)
    gradients = [load_file(folder / "gradients.safetensors") for folder in folders]
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
    weights = [load_file(folder / "final" / "model.safetensors") for folder in folders]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=0, atol=1e-6)
