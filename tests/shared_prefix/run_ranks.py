"""Gradients of packed rows: of one whole model, or on two ranks under DDP or FSDP2."""

from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from alignkit.fused_head.modeling import whole
from alignkit.shared_prefix import share_prefix
from tests.shared_prefix.completions import Rows, logps, pack, ragged_pairs, tiny

RUNS = ("replicated", "sharded")


def rows_of(rank: int) -> Rows:
    """Rank r has the pairs r, r + 2, ...: the second rank the one that stands alone in its prompt."""
    return Rows(*(field[rank::2] for field in ragged_pairs()))


def gradients(model: nn.Module, rows: Rows, *, shared: bool) -> dict[str, Tensor]:
    packed = pack(getattr(model, "module", model), rows) if shared else None
    (logps(model, rows, packed).sum() / 10).backward()
    return {name.removeprefix("module."): whole(weight.grad) for name, weight in model.named_parameters()}


def wrapped(run: str) -> nn.Module:
    """A model that shares prefixes, on each rank or sharded over them."""
    model = tiny("Gemma3")
    share_prefix(model)
    if run == "replicated":
        return DistributedDataParallel(model)
    mesh = torch.distributed.init_device_mesh("cpu", (dist.get_world_size(),))
    exact = MixedPrecisionPolicy(param_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=exact)
    fully_shard(model, mesh=mesh, mp_policy=exact)
    return model


def on_ranks(output: Path, run: str) -> None:
    """Each rank with its own pairs; the first leaves the gradients."""
    state = PartialState(cpu=True)
    found = gradients(wrapped(run), rows_of(state.process_index), shared=True)
    if state.is_main_process:
        torch.save(found, output / f"{run}.pt")
