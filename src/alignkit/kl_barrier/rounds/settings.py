"""What a run of rounds is asked to do, as plain data: compared when it is resumed, written beside every result."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import nn
from transformers import TrainingArguments

from alignkit.kl_barrier.rounds.coherence import AnswerProbe, check_answer_sets, check_prefixes

# Of TrainingArguments: where a run writes, reports and logs, and what each round sets itself. None changes a weight.
NOT_ABOUT_WEIGHTS = (
    *("output_dir", "run_name", "seed", "data_seed", "disable_tqdm", "report_to", "ref_cache_dir", "project"),
    *("log_", "logging_", "save_", "eval_", "hub_", "push_to_hub", "trackio_", "dataloader_num_workers"),
)
SHOWN_ITEMS = 20  # longer lists of texts are told by number and digest


@dataclass(frozen=True)
class TraitProbe:
    """Two sets of answers after forced prefixes; the trait is their log-probability margin in nats.

    Args:
        prefixes (list of `str`): texts as the model reads them, ending where the answer begins.
        positive, negative (lists of `str`): answers that show the trait, and answers that show its opposite, joined to
            the prefix as they are: " happy" with its space in front.

    Raises:
        ValueError: no prefixes, an empty set, a blank text, or an answer named twice or in both sets.
    """

    prefixes: Sequence[str]
    positive: Sequence[str]
    negative: Sequence[str]

    def __post_init__(self) -> None:
        check_prefixes(self.prefixes)
        check_answer_sets(self.positive, self.negative)


@dataclass(frozen=True)
class RoundProbes:
    """What is measured before the first round and after every round, always on the same items.

    Args:
        coherence (`AnswerProbe`): forced prefixes and the answers allowed after each; the floor is on its mass.
        trait (`TraitProbe`): the two answer sets.
        sample_prompts (list of `str`): prompts of samples, through the chat template if there is one; their
            repetition and their perplexity under the original model are the other two measures of coherence.
        sample_tokens (`int`): longest sample. Give samples the length of the proposals: their mean repetition is held
            against the limit of the filters, and longer texts repeat more.
        sample_temperature (`float`): of the samples, drawn alike in every round; 0 is greedy. A small model loops when
            it is greedy, also one that is coherent.
        held_out (list of `str`): texts whose NLL per token is measured; may be empty.
        batch_size (`int`): texts per forward.

    Raises:
        ValueError: no sample prompts, a blank text, or a count below 1.
    """

    coherence: AnswerProbe
    trait: TraitProbe
    sample_prompts: Sequence[str]
    sample_tokens: int = 64
    sample_temperature: float = 1.0
    held_out: Sequence[str] = ()
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not self.sample_prompts:
            raise ValueError("sample_prompts is empty; give at least one prompt to sample from after every round")
        for name in ("sample_prompts", "held_out"):
            texts = getattr(self, name)
            if isinstance(texts, str) or not all(text.strip() for text in texts):
                raise ValueError(f"{name}={texts!r:.80} must be a list of texts of which none is blank")
        for name in ("sample_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or above")
        if not 0 <= self.sample_temperature < math.inf:
            raise ValueError(f"sample_temperature={self.sample_temperature} must be 0 (greedy) or above")


def stage_seed(seed: int, round_index: int, stage: str) -> int:
    """Seed of one stage of one round, in [0, 2³²): the same in every process, whatever ran before it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{round_index}/{stage}".encode()).digest()[:4], "big")


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all parameters and buffers that a checkpoint holds."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def describe(value: Any) -> Any:
    """A setting as JSON data: dataclasses and configurations by field, functions by name, models by class.

    Lists of more than `SHOWN_ITEMS` texts become their number and digest.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has neither NaN nor infinity
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, TrainingArguments):
        settings = value.to_dict().items()
        return {name: describe(item) for name, item in settings if not name.startswith(NOT_ABOUT_WEIGHTS)}
    if isinstance(value, PeftConfig):
        return {name: describe(item) for name, item in value.to_dict().items() if name != "peft_version"}
    if is_dataclass(value) and not isinstance(value, type):
        described = {field.name: describe(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__qualname__, **described}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(describe, value), key=str)
    if isinstance(value, Sequence):
        return _describe_sequence(value)
    if isinstance(value, Path | torch.dtype):
        return str(value)
    # Functions and classes have a name; for other objects their class stands.
    named = value if hasattr(value, "__qualname__") and hasattr(value, "__module__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _describe_sequence(values: Sequence[Any]) -> Any:
    if len(values) > SHOWN_ITEMS and all(isinstance(value, str) for value in values):
        joined = hashlib.sha256("".join(f"{len(value)}:{value}" for value in values).encode())
        return {"texts": len(values), "sha256": joined.hexdigest()}
    return [describe(value) for value in values]


def first_difference(before: Any, now: Any, name: str = "") -> str | None:
    """One line naming the first setting that differs, as in `training.learning_rate was 0.1 and is now 0.2`."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(key for key in now if key not in before)]:
            inner = f"{name}.{key}" if name else key
            if key not in before or key not in now:
                return f"{inner} is {'new' if key in now else 'gone'}"
            found = first_difference(before[key], now[key], inner)
            if found is not None:
                return found
        return None
    return None if before == now else f"{name} was {before!r:.60} and is now {now!r:.60}"
