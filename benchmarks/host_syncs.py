"""Host syncs: operations for which Python waits until the device has done all it was given, by the line that asks.

They are counted on a CPU, where nothing waits, so that a count needs no GPU and has no noise. Python sees the model's
device as `cpu:0` and the host as `cpu`. A tensor is on the device if it was copied there, made there, or computed from
one that is. Its memory has the mark, not the Python object, so that views and what autograd keeps are followed. What
waits on a GPU:

    "read"    a number or a tensor comes to the host: item, bool, tolist, cpu, equal
    "shape"   a shape depends on values: nonzero, a boolean mask as an index, unique, repeat_interleave
    "upload"  a number, a list or a tensor goes to the device and the copy does not say `non_blocking`: torch.tensor,
              new_tensor, to; a number or a list in `x[...]`

An upload waits as a read does: CUDA copies, then waits for the stream. Collectives are left out: one process has none.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import _allowed_determinism_checks_to_fns as COMPARISONS
from transformers import Trainer

Kind = Literal["read", "shape", "upload"]
Phase = Literal["setup", "fetch", "micro_batch", "step", "log"]
DEVICE = torch.device("cpu", 0)
HOST = torch.device("cpu")
PACKAGES = ("alignkit", "trl", "peft", "transformers", "accelerate")
READS = ("aten::_local_scalar_dense", "aten::equal")
SHAPES = (
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
)
OFF_A_GPU_ONLY = ("check_arguments", "label_rows_of_tiles", "_count_sequences", "_normals")
"""Functions of alignkit that ask for the type of the device first, and look at values or move them on a CPU only."""


@dataclass(frozen=True)
class Sync:
    """One wait.

    Attributes:
        operation (`str`): of torch.
        package (`str`): whose code asks, the innermost of [`PACKAGES`] in the stack; "torch" without any.
        line (`str`): of that code, `package/file.py:number function`.
        phase: "fetch" (`get_batch_samples`), "micro_batch" (`training_step`), "log", or the rest of the step.
    """

    kind: Kind
    operation: str
    package: str
    line: str
    phase: Phase


class HostSyncs:
    """Records the host syncs of a training's second optimiser step, from the end of the first to its own end.

    Args:
        trainer: not yet trained.

    Attributes:
        syncs (`list[Sync]`): in their order.
        n_micro_batches (`int`): of the step.
    """

    def __init__(self, trainer: Trainer):
        self.syncs: list[Sync] = []
        self.n_micro_batches = trainer.args.gradient_accumulation_steps
        self._trainer = trainer
        self._phase: Phase = "setup"
        self._on_device: dict[int, StorageWeakRef] = {}

    def train(self) -> None:
        """Train three steps and look at the second."""
        trainer = self._trainer
        trainer.args.max_steps = 3
        phases: dict[str, Phase] = {"get_batch_samples": "fetch", "training_step": "micro_batch", "log": "log"}
        with ExitStack() as stack:
            for name, phase in phases.items():
                stack.enter_context(self._in_phase(name, phase))
            # The models of a trainer, also those that it keeps beside the one that it trains.
            for module in {id(each): each for each in _modules(trainer)}.values():
                for tensor in (*module.parameters(), *module.buffers()):
                    self.put(tensor)
            stack.enter_context(patch.dict(PartialState._shared_state, {"device": DEVICE}))
            stack.enter_context(patch.dict(trainer.accelerator.state.__dict__, {"device": DEVICE}))
            stack.enter_context(patch.dict(trainer.args.__dict__, {"_setup_devices": DEVICE}))
            self._phase = "step"
            stack.enter_context(self.watching())
            trainer.train()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context every operation is looked at."""
        calls, run_backward = _Calls(self), torch.autograd._engine_run_backward

        def watched(*args: Any, **kwargs: Any) -> Any:
            with calls:  # which is off while it looks at a call, of which `backward` is one
                return run_backward(*args, **kwargs)

        with (
            patch("torch.autograd._engine_run_backward", watched),
            # Activations that are computed again are compared with the first ones, by their device, too.
            patch.dict(COMPARISONS, {"default": COMPARISONS["none"]}),
            calls,
            _Operations(self),
        ):
            yield

    def of_package(self, package: str, phase: Phase | None = None) -> list[Sync]:
        return [sync for sync in self.syncs if sync.package == package and phase in (None, sync.phase)]

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of syncs by phase and package."""
        table: dict[str, Counter[str]] = {}
        for sync in self.syncs:
            table.setdefault(sync.phase, Counter())[sync.package] += 1
        return {phase: dict(counter) for phase, counter in table.items()}

    def lines(self) -> list[dict[str, Any]]:
        """Syncs of the step by line, most first."""
        counter = Counter(self.syncs)
        return [{**vars(sync), "count": count} for sync, count in counter.most_common()]

    # ---- What the two modes tell ----

    def put(self, tensor: Tensor) -> Tensor:
        """Say that a tensor is on the device."""
        storage = tensor.untyped_storage()
        self._on_device[storage._cdata] = StorageWeakRef(storage)
        return tensor

    def take(self, tensor: Tensor) -> Tensor:
        """Say that it is on the host."""
        self._on_device.pop(tensor.untyped_storage()._cdata, None)
        return tensor

    def has(self, value: Any) -> bool:
        """Whether a value is a tensor on the device."""
        if not isinstance(value, Tensor):
            return False
        reference = self._on_device.get(value.untyped_storage()._cdata)
        return reference is not None and not reference.expired()

    def add(self, kind: Kind, operation: str) -> None:
        """Record a wait for the code that is running."""
        if self._trainer.state.global_step != 1:
            return
        package, line = _caller()
        if not line.endswith(tuple(f" {name}" for name in OFF_A_GPU_ONLY)):
            self.syncs.append(Sync(kind, operation, package, line, self._phase))

    @contextmanager
    def _in_phase(self, method: str, phase: Phase) -> Iterator[None]:
        run = getattr(self._trainer, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            before, self._phase = self._phase, phase
            try:
                return run(*args, **kwargs)
            finally:
                self._phase = before

        with patch.object(self._trainer, method, watched):
            yield


class _Operations(TorchDispatchMode):
    """Follows tensors through operations, and sees those that wait."""

    def __init__(self, syncs: HostSyncs):
        super().__init__()
        self.syncs = syncs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, syncs, name = kwargs or {}, self.syncs, func._schema.name
        is_on_device = any(syncs.has(value) for value in tree_iter((args, kwargs)))
        if is_on_device:
            self._look(name, args, kwargs)
        result = func(*args, **kwargs)
        if name == "aten::copy_":
            return result
        if is_on_device or kwargs.get("device") == DEVICE:
            for value in tree_iter(result):
                if isinstance(value, Tensor):
                    syncs.put(value)
        return result

    def _look(self, name: str, args: Any, kwargs: Any) -> None:
        syncs = self.syncs
        if name in READS:
            syncs.add("read", name)
        elif name in SHAPES or (name == "aten::repeat_interleave" and kwargs.get("output_size") is None):
            syncs.add("shape", name)
        elif name == "aten::copy_" and syncs.has(args[0]) != syncs.has(args[1]) and not (args[2:] and args[2]):
            syncs.add("upload" if syncs.has(args[0]) else "read", name)
        elif name in ("aten::index", "aten::index_put", "aten::index_put_"):
            indices = [index for index in args[1] if index is not None]
            fills = name != "aten::index" and args[2].dim() == 0 and not syncs.has(args[2])
            if any(index.dtype == torch.bool for index in indices) and not (fills and len(indices) == 1):
                syncs.add("shape", name)
            if any(not syncs.has(index) for index in indices) or (fills and indices[0].dtype != torch.bool):
                syncs.add("upload", name)


class _Calls(TorchFunctionMode):
    """Sees what the dispatcher does not: copies between a host and a device that are one here."""

    def __init__(self, syncs: HostSyncs):
        super().__init__()
        self.syncs = syncs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, syncs, name = kwargs or {}, self.syncs, getattr(func, "__name__", "")
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]  # a getter of C
            return DEVICE if syncs.has(args[0]) else HOST
        if name in ("tolist", "numpy") and syncs.has(args[0]):
            syncs.add("read", name)
            with torch._C.DisableTorchFunction():
                return func(syncs.take(args[0].clone()), *args[1:], **kwargs)
        result = func(*args, **kwargs)
        if name in ("cpu", "to") and isinstance(result, Tensor):
            return self._moved(name, result, args, kwargs)
        if name in ("tensor", "as_tensor", "new_tensor"):
            is_wanted = kwargs.get("device") == DEVICE or (name == "new_tensor" and syncs.has(args[0]))
            source = args[0] if name == "as_tensor" and args else None
            if is_wanted and not syncs.has(source):
                syncs.add("upload", name)
                return syncs.put(result.clone() if result is source else result)
        return result

    def _moved(self, name: str, result: Tensor, args: Any, kwargs: Any) -> Tensor:
        """The copy that a GPU would make, where there would be one."""
        syncs = self.syncs
        targets = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, str | torch.device | Tensor)]
        to_device, to_host = (
            name == "to" and any(map(self._is_device, targets)),
            name == "cpu" or any(map(self._is_host, targets)),
        )
        if to_device and not syncs.has(args[0]):
            if not kwargs.get("non_blocking"):
                syncs.add("upload", name)
            return syncs.put(result.clone())
        if to_host and syncs.has(args[0]):
            if not kwargs.get("non_blocking"):
                syncs.add("read", name)
            return syncs.take(result.clone())
        return result

    def _is_device(self, target: Any) -> bool:
        return self.syncs.has(target) if isinstance(target, Tensor) else torch.device(target) == DEVICE

    def _is_host(self, target: Any) -> bool:
        return not self.syncs.has(target) if isinstance(target, Tensor) else torch.device(target) == HOST


def _modules(trainer: Any) -> Iterator[nn.Module]:
    yield trainer.model
    if isinstance(getattr(trainer, "ref_model", None), nn.Module):
        yield trainer.ref_model
    if getattr(trainer, "reference", None) is not None and trainer.reference.ref_model is not None:
        yield trainer.reference.ref_model


def _caller() -> tuple[str, str]:
    """The package and the line of the innermost code that is of one of [`PACKAGES`]."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").split(".")[0]
        if package in PACKAGES:
            path = Path(frame.f_code.co_filename).as_posix().rpartition(f"/{package}/")[2]
            return package, f"{package}/{path}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "torch", "torch"
