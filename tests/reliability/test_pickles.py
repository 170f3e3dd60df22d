"""A sharded checkpoint is loaded by libraries that unpickle anything, and yet nothing in it is run."""

import os

import pytest
import torch
import torch.distributed.checkpoint as shards

from alignkit.reliability.pickles import ALWAYS_WEIGHTS_ONLY, only_tensors_unpickled
from tests.faults.pickles import Touch, write_touching_pickle

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "touched"
    yield path
    assert not path.exists()


def save_shards(checkpoint, state):
    shards.save(state, checkpoint_id=checkpoint / "optimizer_0", no_dist=True)


def load_shards(checkpoint, state):
    with only_tensors_unpickled(str(checkpoint), by_deepspeed=False):
        shards.load(state, checkpoint_id=checkpoint / "optimizer_0", no_dist=True)
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_what_torch_has_written_in_shards_is_loaded(tmp_path, dtype):
    saved = {"state": {"w": torch.arange(3, dtype=dtype)}, "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}], "step": 3}
    save_shards(tmp_path, saved)
    empty = {"state": {"w": torch.zeros(3, dtype=dtype)}, "groups": [{"lr": 0.0, "betas": (0.0, 0.0)}], "step": 0}
    found = load_shards(tmp_path, empty)
    assert torch.equal(found["state"]["w"], saved["state"]["w"])
    assert (found["groups"], found["step"]) == (saved["groups"], saved["step"])


def test_a_pickle_as_the_plan_of_the_shards_is_refused_by_name(tmp_path, marker):
    save_shards(tmp_path, {"w": torch.ones(3)})
    write_touching_pickle(tmp_path / "optimizer_0" / ".metadata", marker, in_zip=False)
    with pytest.raises(ValueError, match=r"optimizer_0/\.metadata is refused: it holds more than tensors"):
        load_shards(tmp_path, {"w": torch.zeros(3)})


def test_a_pickle_within_a_shard_is_not_run(tmp_path, marker):
    save_shards(tmp_path, {"step": Touch(marker)})
    with pytest.raises(shards.CheckpointException, match="Weights only load failed"):
        load_shards(tmp_path, {"step": 0})


def test_a_load_of_any_class_is_refused_by_name_within_the_context_alone(tmp_path, marker):
    path = tmp_path / "global_step2" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    path.parent.mkdir()
    write_touching_pickle(path, marker)
    with (
        pytest.raises(ValueError, match=r"global_step2/zero_pp_rank_0.*\.pt is refused"),
        only_tensors_unpickled(str(tmp_path), by_deepspeed=False),
    ):
        torch.load(path, weights_only=False)
    assert not marker.exists() and ALWAYS_WEIGHTS_ONLY not in os.environ
    torch.load(path, weights_only=False)
    marker.unlink()
