"""Gradients of packed rows under DDP and FSDP2 (gloo), compared with one whole model. Run by torchrun on two ranks."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from alignkit.shared_prefix import share_prefix
from tests.shared_prefix.completions import Rows, assert_close, logps, pack, ragged_pairs, tiny


def gradients(model: nn.Module, rows: Rows, *, shared: bool) -> dict[str, torch.Tensor]:
    packed = pack(getattr(model, "module", model), rows) if shared else None
    (logps(model, rows, packed).sum() / 10).backward()
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        found[name.removeprefix("module.")] = whole
    return found


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    everything = ragged_pairs()
    # Rank r has the pairs r, r + 2, ...: the second rank the one that stands alone in its prompt.
    mine = Rows(*(field[dist.get_rank() :: 2] for field in everything))
    halves = [
        gradients(tiny("Gemma3"), Rows(*(field[rank::2] for field in everything)), shared=False) for rank in (0, 1)
    ]
    expected = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}

    replica = tiny("Gemma3")
    share_prefix(replica)
    sharded = tiny("Gemma3")
    share_prefix(sharded)
    mesh = torch.distributed.init_device_mesh("cpu", (dist.get_world_size(),))
    exact = MixedPrecisionPolicy(param_dtype=torch.float32)
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=exact)
    fully_shard(sharded, mesh=mesh, mp_policy=exact)
    for model in (DistributedDataParallel(replica), sharded):
        found = gradients(model, mine, shared=True)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert_close(found[name], gradient)
        if dist.get_rank() == 0:
            sys.stdout.write("equal\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
