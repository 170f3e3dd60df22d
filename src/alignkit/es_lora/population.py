"""A whole population of LoRA members in one pass of the base model.

The rows of member p are p·M to p·M + M - 1 of the batch. Every target adds two grouped products to its own output,

    y[p] += (x[p] A_p) B_p        x (P, M·T, H), A (P, H, R), B (P, R, O)

and nothing else of the model knows of the population: rows are independent in attention, cache and sampling.

How this differs from one `PeftModel` per member, and why:

1. The scaling α / r is part of B, so that members are two tensors for every module and nothing else.
2. The base is called once for all rows. Its weights are neither merged nor written, so that they may be quantised.
3. The model's own adapters are off: the LoRA of a member is all of its LoRA, the centre's share included.
4. Rows that have ended leave the batch; see [`finished_rows`].

The results do not depend on the size of the population or of its chunks, but for the rounding of matrix products:
their order of summation may change with their shapes, by about 1e-6 of a logit in float32. Greedy tokens are equal
unless the two best logits are that close.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from .finished_rows import dropping_finished_rows
from .grouped_lora import Adapters, PlainLoRA, base_model, evaluation_mode, grouped_lora, member_count, with_additions

# What member 0 of the check may differ by from the centre, as a share of the largest logit.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
_TOLERANCE_16_BIT = 0.1


@contextmanager
def population(model: nn.Module, adapters: Adapters) -> Iterator[PreTrainedModel]:
    """Within the context the model is a population: P·M rows in, rows p·M to p·M + M - 1 belonging to member p.

    There are no gradients inside. On leaving it, also by an error, the model is what it was; its weights never change.

    Args:
        model: a causal language model, or a `PeftModel`, whose own LoRA layers do not act inside.
        adapters (`Mapping[str, tuple[Tensor, Tensor]]`): path of each linear module, as in `named_modules()` of the
            model before PEFT wrapped it -> A (P, H, R) and B (P, R, O), with the scaling α / r in B. They are cast
            once, to the dtype in which the module answers.

    Yields:
        `PreTrainedModel`: the model without PEFT around it.

    Raises:
        ValueError: no adapter, an unknown module (with near names), one that is not linear or is merged with its
            adapter, or a shape that does not fit.
    """
    base = base_model(model)
    with grouped_lora(base, adapters):
        yield base


def evaluate_population(
    model: nn.Module,
    adapters: Adapters,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    population_chunk_size: int | None = None,
    **generate_kwargs: Any,
) -> Tensor:
    """Completions of every member for every prompt: all rows in one `generate`.

    Members with the same prompts sample with the same noise if `generate_kwargs` has
    [`SharedGumbelProcessor`] among its `logits_processor`. With `do_sample=True` every row draws from torch's global
    generator instead, and what it draws depends on the size of the population and of its chunks.

    Args:
        model, adapters: as for [`population`].
        input_ids (`Tensor`, (M, T)): prompts, padded on the left.
        attention_mask (`Tensor`, (M, T)): 1 for the tokens of a prompt.
        population_chunk_size (`int`, *optional*): members that are generated together when memory is short; all
            of them by default.
        generate_kwargs: for `model.generate`, such as `max_new_tokens`.

    Returns:
        `Tensor`, (P, M, T'): prompts with their completions; padding after the end of a completion, and up to the
            longest of any member.

    Raises:
        ValueError: as [`population`] does; prompts padded on the right; beam search; an output other than tokens; a
            chunk size below 1.
    """
    base = base_model(model)
    members = member_count(base, adapters)
    chunk_size = members if population_chunk_size is None else population_chunk_size
    end_tokens, pad_token = _check_request(base, input_ids, attention_mask, chunk_size, generate_kwargs)
    chunks = []
    with evaluation_mode(base):
        for start in range(0, members, chunk_size):
            part = {
                name: (a[start : start + chunk_size], b[start : start + chunk_size])
                for name, (a, b) in adapters.items()
            }
            n_members = min(chunk_size, members - start)
            with (
                grouped_lora(base, part) as layers,
                dropping_finished_rows(base, layers, n_members, input_ids, end_tokens),
            ):
                generate: Any = base.generate
                tokens = generate(
                    input_ids.repeat(n_members, 1),
                    attention_mask=attention_mask.repeat(n_members, 1),
                    **generate_kwargs,
                )
            chunks.append(tokens.view(n_members, len(input_ids), -1))
    length = max(tokens.shape[2] for tokens in chunks)
    return torch.cat([pad(tokens, (0, length - tokens.shape[2]), value=pad_token) for tokens in chunks])


def check_population(
    model: nn.Module,
    centre: Adapters,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    large_sigma: float = 1.0,
) -> dict[str, float]:
    """Canaries before a run: a member with σ = 0 equals the centre beside one with a large σ, which does not.

    The centre's logits come from a plain second implementation, one member and no groups.

    Args:
        model: as for [`population`].
        centre (`Mapping[str, tuple[Tensor, Tensor]]`): as for [`population`], but A (H, R) and B (R, O).
        input_ids, attention_mask (`Tensor`, (M, T)): a few prompts.
        large_sigma (`float`): standard deviation of the noise on all weights of the second member.

    Returns:
        `dict[str, float]`: `zero_sigma` and `large_sigma`, the largest difference of each member's logits from the
            centre's at the prompts' tokens, over the centre's largest logit. The first is the noise floor of the run.

    Raises:
        ValueError: as [`population`] does.
        RuntimeError: a module that the model does not call, or a canary that fails.
    """
    base = base_model(model)
    generator = torch.Generator().manual_seed(0)

    def two_members(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        return torch.stack([tensor, tensor + large_sigma * noise])

    members = {name: (two_members(a), two_members(b)) for name, (a, b) in centre.items()}
    mask = attention_mask.bool()
    with evaluation_mode(base):
        with grouped_lora(base, members) as layers:
            logits = base(input_ids.repeat(2, 1), attention_mask=attention_mask.repeat(2, 1)).logits
        silent = [layer.name for layer in layers if not layer.was_called]
        if silent:
            raise RuntimeError(f"the model never calls {silent}; leave them out, their noise would do nothing")
        with with_additions(base, {name: PlainLoRA(a, b) for name, (a, b) in centre.items()}):
            expected = base(input_ids, attention_mask=attention_mask).logits[mask]
    scale = expected.abs().max()
    zero, large = (((part[mask] - expected).abs().max() / scale).item() for part in logits.chunk(2))
    tolerance = _TOLERANCE.get(logits.dtype, _TOLERANCE_16_BIT)
    if not zero <= tolerance:
        raise RuntimeError(
            f"a member with sigma 0 differs from the centre by {zero:.2g} of the largest logit; rounding explains "
            f"{tolerance}. The model does not keep the rows of its batch apart, so they cannot be different members"
        )
    if large <= tolerance:  # NaN is different enough
        raise RuntimeError(
            f"a member with sigma {large_sigma} differs from the centre by only {large:.2g} of the largest logit: "
            "the adapters have no effect"
        )
    return {"zero_sigma": zero, "large_sigma": large}


def _check_request(
    base: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, chunk_size: int, generate_kwargs: dict[str, Any]
) -> tuple[Sequence[int], int]:
    """The tokens that end a completion, and the one that pads it."""
    if chunk_size < 1:
        raise ValueError(f"population_chunk_size is {chunk_size}; give at least 1 member, or None for all at once")
    if attention_mask.shape != input_ids.shape or not attention_mask[:, -1].all():
        raise ValueError(
            f"input_ids is {tuple(input_ids.shape)} and attention_mask {tuple(attention_mask.shape)}, with "
            f"{attention_mask[:, -1].tolist()} at the last position; give equal shapes, padded on the left"
        )
    config: Any = generate_kwargs.get("generation_config", base.generation_config)
    for name, allowed in {"num_beams": 1, "return_dict_in_generate": False}.items():
        asked = generate_kwargs.get(name, getattr(config, name))
        if asked is not None and asked != allowed:
            raise ValueError(f"{name} is {asked}; a population is generated with {name}={allowed}")
    end = generate_kwargs.get("eos_token_id", config.eos_token_id)
    end_tokens = [] if end is None else torch.as_tensor(end).flatten().tolist()
    pad_token = generate_kwargs.get("pad_token_id", config.pad_token_id)
    if pad_token is None:
        pad_token = end_tokens[0] if end_tokens else 0  # as in generate; without an end nothing is padded
    return end_tokens, pad_token
