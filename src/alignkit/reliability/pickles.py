"""The files of a sharded checkpoint, which the libraries that read them would unpickle whatever they hold.

`torch.load` takes tensors and numbers alone unless it is asked for more. DeepSpeed and torch.distributed.checkpoint
ask, and the plan of a checkpoint that FSDP has written in shards, `.metadata`, is a plain pickle.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.serialization import safe_globals

from alignkit.storage import refused_pickles_named

ALWAYS_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # which torch reads at each load
# What torch.distributed.checkpoint writes into a plan, besides the dtypes.
OF_A_PLAN = {
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},  # from Python 3.13 on
    "torch": {"Size"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}


@contextmanager
def only_tensors_unpickled(checkpoint: str | None, *, by_deepspeed: bool) -> Iterator[None]:
    """Within the context nothing that a pickle of a checkpoint holds is run, whoever loads it.

    Raises:
        ValueError: a file holds more than tensors, numbers and what DeepSpeed or FSDP put beside them.
    """
    if checkpoint is None:
        yield
        return
    for plan in Path(checkpoint).glob("*/.metadata"):
        with refused_pickles_named(plan.parent, plan.name), plan.open("rb") as file:
            _Plan(file).load()
    was = os.environ.get(ALWAYS_WEIGHTS_ONLY)
    os.environ[ALWAYS_WEIGHTS_ONLY] = "1"
    try:
        named = refused_pickles_named(checkpoint, "global_step*/*.pt")
        with named, safe_globals(_classes_of_deepspeed() if by_deepspeed else []):
            yield
    finally:
        if was is None:
            del os.environ[ALWAYS_WEIGHTS_ONLY]
        else:
            os.environ[ALWAYS_WEIGHTS_ONLY] = was


class _Plan(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in OF_A_PLAN.get(module, ()):  # before its module is imported
            raise pickle.UnpicklingError(f"{module}.{name} is not of a plan")
        return super().find_class(module, name)


def _classes_of_deepspeed() -> list[Any]:
    """What the states of its optimisers hold besides tensors."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
