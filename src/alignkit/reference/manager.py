"""What a policy is compared with: its reference model.

Differs from TRL's DPOTrainer, whose reference is the base model, an adapter or a model loaded again from its name:
1. a trained adapter without a word on what to compare with is an error, not silently one of the two;
2. the copy of a fully trained model is made in memory, so it is right for weights that were edited after loading;
3. an adapter whose initialisation rewrote the base weights is never switched off, which would not give back the
   original model;
4. several active adapters, and an average of the policy, can be the reference.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignkit._compat import layers_with_adapters

from .adapters import REFERENCE_ADAPTER, add_frozen_copy, parameter_twins
from .average import WeightAverage
from .choice import adapter_to_copy, check_base_is_original, check_switchable, default_kind
from .separate import check_comparable, frozen_copy, load_like
from .switch import AdapterSwitch
from .weights import weights_fingerprint

REFERENCE_KINDS = ("base", "adapter", "previous", "copy", "ema")


class ReferenceManager:
    """The reference of a policy, run by `with manager.active(model) as ref:`.

    Args:
        model: the policy, before DDP or FSDP wraps it and after the trainer's parent has patched its forward.
        ref: `None` for `"base"` with a fresh adapter, `"adapter"` where the adapter's initialisation rewrote the base,
            and `"copy"` without an adapter; or

            - `"base"`: the model with all adapters off;
            - `"adapter"`: the trained adapter as it is now, kept as a frozen adapter named `ref`;
            - `"previous"`: the active adapters that do not train, such as those of earlier rounds;
            - `"copy"`: a frozen deep copy of the whole model;
            - `"ema"`: an average of the policy, in an adapter `ref` or, without adapters, in a copy;
            - a path or hub name of a causal language model, loaded in the policy's dtype.
        ref_model: a model that is the reference; it is frozen, not copied.
        copied: with `"copy"` or `"ema"`, a copy of the policy that has been made already.
        ema_decay: share that the average keeps at each `update`, in [0, 1).

    Attributes:
        kind: one of `REFERENCE_KINDS`, or `"model"` for a path or an object.
        ref_model: the separate module, where there is one. A trainer that wraps it assigns the wrapped one.
        shares_head: whether policy and reference project with the same frozen tensor, so that one product serves both.

    Raises:
        ValueError: in words, for every combination whose reference would not be what its name says.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        ref: str | None,
        *,
        ref_model: Any = None,
        copied: Any = None,
        ema_decay: float = 0.99,
    ):
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay={ema_decay} must be at least 0 and below 1")
        if ref is not None and ref_model is not None:
            raise ValueError(f"both ref={ref!r} and ref_model are given; leave one of them out")
        self._policy = model
        self._switch: AdapterSwitch | None = None
        self._average: WeightAverage | None = None
        self.ref_model: Any = None
        if copied is not None:
            self._take_copy(model, ref or "copy", copied, ema_decay)
        elif ref_model is not None or ref not in (None, *REFERENCE_KINDS):
            self.kind = "model"
            self.ref_model = load_like(str(ref), model) if ref_model is None else ref_model
            check_comparable(model, self.ref_model)
            self.ref_model.requires_grad_(False).eval()
        elif isinstance(model, PeftModel) and ref != "copy":
            self._refer_to_own_weights(model, ref, ema_decay)
        else:
            self._refer_to_copy(model, ref, ema_decay)
        self._ref = model if self.ref_model is None else self.ref_model
        self.shares_head = self._find_shared_head()

    @contextmanager
    def active(self, model: nn.Module) -> Iterator[nn.Module]:
        """The reference, in eval mode and without gradients, until the context ends.

        Everything that belongs to the reference, the weight of its head included, must be read inside. The backward
        must run outside: inside it would silently use the reference's adapters.

        Args:
            model: the policy as the trainer calls it, wrapped or not.

        Yields:
            `model` where the policy's own weights serve, otherwise `ref_model`.
        """
        if self._switch is None:
            with torch.no_grad():
                yield self.ref_model
        else:
            with self._switch.on():
                yield model

    def update(self) -> None:
        """One step of the average, after an optimiser step; nothing for other kinds."""
        if self._average is not None:
            self._average.update()

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: the averages of `"ema"`, nothing for other kinds."""
        return {} if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` returned.

        Raises:
            ValueError: a state of another reference.
        """
        if self._average is not None:
            self._average.load_state_dict(state)
        elif state:
            raise ValueError(f"the checkpoint holds an average of the policy, but the reference is {self.kind!r}")

    def fingerprint(self) -> str:
        """Digest of exactly the weights and settings that make up the reference. Collective once they are sharded."""
        with self.active(self._policy):
            return weights_fingerprint(self._ref)

    def _refer_to_own_weights(self, model: PeftModel, ref: str | None, ema_decay: float) -> None:
        trained = check_switchable(model)
        self.kind = ref or default_kind(model, trained)
        if self.kind == "base":
            check_base_is_original(model)
            self._switch = AdapterSwitch(model, None)
        elif self.kind == "previous":
            self._switch = AdapterSwitch(model, lambda active: [name for name in active if name not in trained])
        else:
            twins = add_frozen_copy(model, adapter_to_copy(model, trained, self.kind))
            self._switch = AdapterSwitch(
                model, lambda active: [REFERENCE_ADAPTER if name in trained else name for name in active]
            )
            if self.kind == "ema":
                self._average = WeightAverage(twins, ema_decay)

    def _refer_to_copy(self, model: PreTrainedModel | PeftModel, ref: str | None, ema_decay: float) -> None:
        if ref not in (None, "copy", "ema"):
            raise ValueError(f"ref={ref!r} needs a model with a PEFT adapter; for this one use ref='copy'")
        self._take_copy(model, ref or "copy", frozen_copy(model), ema_decay)

    def _take_copy(self, model: PreTrainedModel | PeftModel, kind: str, ref_model: Any, ema_decay: float) -> None:
        self.kind = kind
        self.ref_model = ref_model
        check_comparable(model, ref_model)
        self.ref_model.requires_grad_(False).eval()
        if kind == "ema":
            self._average = WeightAverage(parameter_twins(model, self.ref_model), ema_decay)

    def _find_shared_head(self) -> bool:
        if self._switch is None:
            return False
        network: Any = self._policy.get_base_model()  # type: ignore[operator]
        head = network.get_output_embeddings()
        with self._switch.on():
            weight = network.get_output_embeddings().weight
        # An adapter on the head acts on top of a weight that policy and reference do have in common.
        has_adapter = any(layer is head and hasattr(layer, "base_layer") for layer in layers_with_adapters(network))
        return weight is head.weight and not weight.requires_grad and not has_adapter
