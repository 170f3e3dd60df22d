"""Completions that a proposer offers for a round, and how they are sampled."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignkit.kl_barrier.rounds.scoring import device_of, encode, evaluating, pad

# Over whatever a model's generation config says.
AS_IT_IS = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "pad_token_id": 0}


@dataclass(frozen=True)
class Proposal:
    """One completion offered for training.

    Args:
        prompt (`str`): the text that the model read, a chat template already applied. `prompt + completion` is the
            text to train on; a beginning-of-sequence token that the tokenizer adds by itself is not spelled out.
        completion (`str`): what it wrote, without the end-of-sequence token.
        strength (`float`, *optional*): multiple of the steering direction that was added; `None` without steering.
    """

    prompt: str
    completion: str
    strength: float | None = None


Proposer = Callable[[nn.Module, PreTrainedTokenizerBase, int, int], list[Proposal]]
"""`(model, tokenizer, round_index, seed) -> proposals`: equal arguments give equal proposals."""


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, *, system: str | None = None, separator: str = "\n"
) -> str:
    """The text that a model reads for a prompt: through the chat template if there is one, else as it is.

    Args:
        system (`str`, *optional*): instruction in front: the system message of a chat template; without a template
            plain text, then `separator`, then the prompt.

    Raises:
        ValueError: a chat template that refuses a system message.
    """
    if tokenizer.chat_template is None:
        return prompt if system is None else f"{system}{separator}{prompt}"
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": prompt})
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise ValueError(
            f"the chat template refuses these messages: {error}; if it takes no system message, set "
            "tokenizer.chat_template = None, so that personas stand in front of the context as plain text"
        ) from error
    if tokenizer.bos_token and encode(tokenizer, "")[:1] == [tokenizer.bos_token_id]:
        return text.removeprefix(tokenizer.bos_token)
    return text


def sample_completions(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    seed: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 0.95,
    top_k: int = 64,
    batch_size: int = 32,
    strength: float | None = None,
) -> list[Proposal]:
    """One completion of every prompt with `model.generate`, dropout off.

    A repetition penalty in the model's generation config is not applied: it would hide the loops that are looked for.
    The same seed gives the same completions on the same device at the same batch size. The global random state and
    the training flags are as before on return.

    Args:
        prompts (list of `str`): texts as the model reads them (`render_prompt`); repeat one for several completions.
        temperature (`float`): of sampling; 0 is greedy decoding, without top_p and top_k.
        top_p (`float`), top_k (`int`): nucleus share; most likely tokens to keep, 0 for all.
        batch_size (`int`): prompts per call of `generate`.
        strength (`float`, *optional*): written into the proposals.

    Raises:
        ValueError: no prompts, a prompt without a token, or a temperature that is negative or NaN.
    """
    if not prompts:
        raise ValueError("there are no prompts to complete; give at least one")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature={temperature} must be 0 (greedy) or above")
    encoded = [encode(tokenizer, prompt) for prompt in prompts]
    if not all(encoded):
        raise ValueError(
            f"prompt {encoded.index([])} is {prompts[encoded.index([])]!r}, which gives no token; fill it"
        )
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    settings = sampling if temperature > 0 else {"do_sample": False}
    completions: list[str] = []
    with evaluating(model), _seeded(device_of(model), seed):
        for start in range(0, len(encoded), batch_size):
            batch = encoded[start : start + batch_size]
            input_ids, mask = pad(batch, device_of(model), side="left")
            output = model.generate(  # type: ignore[operator]  # of a PreTrainedModel or a PeftModel
                input_ids=input_ids, attention_mask=mask, max_new_tokens=max_new_tokens, **AS_IT_IS, **settings
            )
            completions += [
                _new_text(tokenizer, ids, row[input_ids.shape[1] :].tolist(), _end_ids(model))
                for ids, row in zip(batch, output, strict=True)
            ]
    return [Proposal(prompt, text, strength) for prompt, text in zip(prompts, completions, strict=True)]


def _end_ids(model: nn.Module) -> set[int]:
    """The ids at which `generate` stops."""
    ends = model.generation_config.eos_token_id  # type: ignore[union-attr]
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)  # type: ignore[arg-type]


def _new_text(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], new_ids: list[int], ends: set[int]) -> str:
    """The text that new tokens add to a prompt. Decoded alone, they would lose a space in front."""
    end = next((place for place, token in enumerate(new_ids) if token in ends), len(new_ids))

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return decode(prompt_ids + new_ids[:end])[len(decode(prompt_ids)) :]


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Random draws on the CPU and on `device` start from `seed` inside; both generators are as before on exit."""
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng(devices=[] if on_cpu else [device], device_type="cuda" if on_cpu else device.type):
        # Not torch.manual_seed, which would also reset the generators of accelerators that are not restored.
        torch.default_generator.manual_seed(seed)
        if not on_cpu:
            torch.get_device_module(device).manual_seed(seed)
        yield
