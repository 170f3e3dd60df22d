"""The direction between two personas in a model's hidden states, and adding it while the model runs.

How this differs from the steer-heal-love loop it is modelled on:

1. The depth of layer i of L is (i + 1/2) / L, so that a model with an odd number of layers has one in the middle.
2. The last prompt token is found by the attention mask, never by index -1.
3. A base model without a chat template is steered too: personas then stand in front of the context as plain text.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignkit.kl_barrier.rounds.proposals import render_prompt
from alignkit.kl_barrier.rounds.scoring import device_of, encode, evaluating, pad


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a causal language model, also within a `PeftModel`.

    Found without names of architectures: in the decoder that the model itself names, the outermost list of modules
    that is as long as its configuration has layers.

    Raises:
        ValueError: no such list.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    n_layers = base.config.get_text_config().num_hidden_layers
    lists = [
        (name.count("."), module)
        for name, module in base.get_decoder().named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise ValueError(f"{type(base).__name__} has no list of {n_layers} layers, so it cannot be steered")
    return min(lists, key=lambda found: found[0])[1]


def layers_in_band(n_layers: int, band: tuple[float, float]) -> list[int]:
    """Indices of the layers whose depth (i + 1/2) / n_layers lies in the closed `band`.

    Raises:
        ValueError: a band that is not ordered within [0, 1], or that holds no layer.
    """
    low, high = band
    if not 0 <= low <= high <= 1:
        raise ValueError(f"layer_band={band} must be two shares of the depth, 0 <= low <= high <= 1")
    depths = [(index + 0.5) / n_layers for index in range(n_layers)]
    layers = [index for index, depth in enumerate(depths) if low <= depth <= high]
    if not layers:
        shown = ", ".join(f"{depth:.3g}" for depth in depths)
        raise ValueError(f"layer_band={band} holds none of the {n_layers} layers, at depths {shown}; widen it")
    return layers


def persona_direction(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    positive: str | Sequence[str],
    negative: str | Sequence[str],
    contexts: Sequence[str],
    layers: Sequence[int],
    *,
    separator: str = "\n",
    batch_size: int = 32,
) -> dict[int, Tensor]:
    """The direction from one persona to the other in the output of each layer, not normalised.

        v_l = mean over contexts c and positive texts p of h_l(p, c) - the same mean over the negative texts

    h_l is the hidden state after layer l at the last token of the prompt: the persona as system message of the chat
    template, or as plain text, `separator`, context (`render_prompt`). Dropout is off.

    Args:
        positive, negative (`str` or list of `str`): persona texts; several are averaged.
        contexts (list of `str`): openings or questions that both personas are given.
        layers (list of `int`): indices into `decoder_layers`.

    Returns:
        for each layer a float32 tensor (H,) on the model's device. Padding and batch size do not change it.

    Raises:
        ValueError: an empty persona text, or no contexts.
    """
    if isinstance(contexts, str) or not contexts or not all(contexts):
        raise ValueError(f"contexts={contexts!r} must be a list of texts, at least one and none empty")
    means = [
        _mean_last_states(
            model,
            [
                encode(tokenizer, render_prompt(tokenizer, context, system=persona, separator=separator))
                for persona in check_persona(name, texts)
                for context in contexts
            ],
            layers,
            batch_size,
        )
        for name, texts in (("positive", positive), ("negative", negative))
    ]
    return {layer: (means[0][layer] - means[1][layer]).float() for layer in layers}


def check_persona(name: str, texts: str | Sequence[str]) -> list[str]:
    """The persona's texts as a list.

    Raises:
        ValueError: no text, or a blank one; `name` is said in the message.
    """
    listed = [texts] if isinstance(texts, str) else list(texts)
    if not listed or not all(text.strip() for text in listed):
        raise ValueError(f"the {name} persona is {texts!r}; give a text, or a list of texts of which none is blank")
    return listed


def _mean_last_states(
    model: nn.Module, rows: Sequence[list[int]], layers: Sequence[int], batch_size: int
) -> dict[int, Tensor]:
    """Mean over the rows of the hidden state (H,) after each layer at a row's last token, summed in float32."""
    modules, device = decoder_layers(model), device_of(model)
    seen: dict[int, Tensor] = {}

    def remember(layer: int, module: nn.Module, inputs: Any, output: Any) -> None:
        seen[layer] = _hidden(output)

    handles = [modules[layer].register_forward_hook(partial(remember, layer)) for layer in layers]
    sums: dict[int, Tensor] = {}
    try:
        with evaluating(model):
            for start in range(0, len(rows), batch_size):
                input_ids, mask = pad(rows[start : start + batch_size], device, side="right")
                model(input_ids=input_ids, attention_mask=mask, use_cache=False)
                last = mask.sum(dim=1) - 1  # (B,)
                for layer, hidden in seen.items():
                    states = hidden[torch.arange(len(last), device=device), last]  # (B, H)
                    sums[layer] = sums.get(layer, 0) + states.float().sum(dim=0)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: total / len(rows) for layer, total in sums.items()}


def _hidden(output: Any) -> Tensor:
    """The hidden state (B, T, H) in what a layer returns: a tensor, or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def steer(model: nn.Module, direction: Mapping[int, Tensor], strength: float) -> Iterator[None]:
    """Add `strength` · direction (H,) to the output of each layer named, at every position, while active.

    The hooks are removed on exit, also after an error.
    """
    layers = decoder_layers(model)

    def add(vector: Tensor, module: nn.Module, inputs: Any, output: Any) -> Any:
        hidden = _hidden(output)
        moved = hidden + (strength * vector).to(hidden.device, hidden.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handles = []
    try:
        for layer, vector in direction.items():
            handles.append(layers[layer].register_forward_hook(partial(add, vector)))
        yield
    finally:
        for handle in handles:
            handle.remove()
