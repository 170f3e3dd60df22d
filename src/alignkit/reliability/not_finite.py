"""A run stops at the first NaN or infinity, before the optimiser has spread it over the weights.

How this differs from TRL: there a loss of NaN is logged as 0.0, the optimiser makes every weight NaN, and the run ends
as if all were well. Large but finite values are not stopped here: a spike may pass.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or a weight is NaN or infinite. The message names the step and the first such tensor."""


def are_finite(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Whether no value of any tensor is NaN or infinite: a boolean on the device, which is not waited for.

    By the largest value, because a sum of squares overflows on values that are finite. On a GPU all tensors share a
    few kernels; on a CPU that norm is not vectorised, and the two ends of one tensor after the other are faster.
    """
    parts = map(_local, tensors)
    local = [part.detach() for part in parts if part.numel()]  # a rank may hold none of a sharded tensor
    if device.type == "cpu":
        ends = [end for part in local for end in torch.aminmax(part.to(device))]
        return torch.stack([torch.isfinite(end) for end in ends]).all() if ends else torch.tensor(True)
    return torch.isfinite(get_total_norm(local, norm_type=torch.inf)).to(device)


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor with a NaN or an infinity, with how many, or None. Waits for the device."""
    for name, tensor in named:
        part = _local(tensor).detach()
        n_bad = int((~torch.isfinite(part)).sum())
        if n_bad:
            return f"{name} ({n_bad:,} of {part.numel():,} values)"
    return None


def describe(model: nn.Module, loss: float) -> str:
    """What is not finite: a weight, which is the cause of all else, or the loss, or the first gradient."""
    weight = first_not_finite(model.named_parameters())
    gradients = ((name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None)
    gradient = first_not_finite(gradients)
    found = [
        f"the loss is {loss}" if not torch.isfinite(torch.tensor(loss)) else "the loss is finite",
        f"the first weight that is not finite is {weight}" if weight else "every weight is finite",
    ]
    if gradient and not weight:
        found.append(f"the first gradient that is not finite is that of {gradient}")
    return ", ".join(found)


def _local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that FSDP2 shards, or of a weight that ZeRO-3 does, whose own data is empty."""
    return tensor.to_local() if isinstance(tensor, DTensor) else getattr(tensor, "ds_tensor", tensor)
