"""The policy as its own reference, by flag flips.

Differs from PEFT's `disable_adapter` and `set_adapter`, and from TRL's `use_adapter` built on them:
1. nothing walks the model: the layers are listed once, and a flip takes microseconds per layer instead of tens;
2. `requires_grad` is never touched, so neither DDP nor an optimiser nor a saved graph sees a change;
3. dropout is off for the reference, LoRA's own included, and every `training` flag comes back as it was.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn

from alignkit._compat import adapters_switched, layers_with_adapters


class AdapterSwitch:
    """Turns a PEFT model into its reference and back.

    The lists of layers and modules are made again when an adapter was added to or deleted from `model.peft_config`
    since the last use; a module replaced by hand is not noticed.

    Args:
        model: the policy, not wrapped.
        choose: active adapters of a layer -> those of the reference; `None` for no adapter at all.
    """

    def __init__(self, model: PeftModel, choose: Callable[[list[str]], list[str]] | None):
        self._model = model
        self._choose = choose
        self._listed: list[object] = []
        self._layers: list[nn.Module] = []
        self._modules: list[nn.Module] = []

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within the context the model is its reference: adapters switched, eval mode, no gradients.

        A backward of something computed outside must not run inside: it would recompute checkpointed layers, or find
        its LoRA layers, with the reference's adapters.
        """
        self._list_layers()
        training = [module for module in self._modules if module.training]
        try:
            for module in training:
                # Not through nn.Module.__setattr__, which costs more than all the rest for thousands of modules.
                module.__dict__["training"] = False
            with torch.no_grad(), adapters_switched(self._model, self._layers, self._choose):
                yield
        finally:
            for module in training:
                module.__dict__["training"] = True

    def _list_layers(self) -> None:
        listed: list[object] = [item for pair in self._model.peft_config.items() for item in pair]
        if len(listed) != len(self._listed) or any(a is not b for a, b in zip(listed, self._listed, strict=True)):
            self._listed = listed
            self._layers = layers_with_adapters(self._model)
            self._modules = list(self._model.modules())
