"""Scores and gradients of a reward model, whole in one process, or sharded over two ranks by FSDP2."""

from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from alignkit.fused_head.modeling import whole
from alignkit.reward_model import Comparisons
from alignkit.reward_model.losses import bradley_terry_loss
from alignkit.reward_model.modeling import add_reward_forward
from alignkit.tasks.toy import tiny_sequence_classifier

ENCODE_BATCH_SIZES = {"at_once": None, "in_chunks": 2}


def scores_and_gradients(run: str, *, sharded: bool) -> dict[str, Tensor]:
    """Under `scores` and the parameters' names."""
    model = tiny_sequence_classifier(["a", "b"], seed=1)
    add_reward_forward(model)
    if sharded:
        mesh = torch.distributed.init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    ids = torch.randint(0, 250, (6, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 12:] = 0
    first, second = torch.arange(0, 6, 2), torch.arange(1, 6, 2)
    comparisons = Comparisons(first, second, torch.tensor([0, 1, 0]))
    size = ENCODE_BATCH_SIZES[run]
    scores = model(input_ids=ids, attention_mask=mask, use_cache=False, encode_batch_size=size).logits
    bradley_terry_loss(scores, comparisons).loss.backward()
    return {"scores": scores.detach(), **{name: whole(weight.grad) for name, weight in model.named_parameters()}}


def on_ranks(output: Path, run: str) -> None:
    """Both ranks with the same texts; the first leaves what it found."""
    state = PartialState(cpu=True)
    found = scores_and_gradients(run, sharded=True)
    if state.is_main_process:
        torch.save(found, output / f"{run}.pt")
