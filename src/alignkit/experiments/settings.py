"""What one training is set to: fields of the training config and of the LoRA, and the id that follows from them."""

import dataclasses
import hashlib
import itertools
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig

from alignkit.dpo.config import ScheduledDPOConfig
from alignkit.spec_files import check_known, construct, field_names, fitted

LORA = "lora."
TRAINING_SET_ELSEWHERE = {"output_dir", "seed", "data_seed", "run_name", "resume_from_checkpoint", "ref_cache_dir"}
LORA_SET_ELSEWHERE = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    "inference_mode",
}
TRAINING_KEYS = field_names(ScheduledDPOConfig, TRAINING_SET_ELSEWHERE)
LORA_KEYS = field_names(LoraConfig, LORA_SET_ELSEWHERE)
ID_LENGTH = 10  # hexadecimal digits: of 10,000 settings two agree with a probability of 5e-5


@dataclass(frozen=True)
class Settings:
    """Fields of the training config and, but for full fine-tuning, of the LoRA, that are not at their default."""

    training: dict[str, Any]
    lora: dict[str, Any] | None = None

    def changed(self, overrides: Mapping[str, Any], where: str) -> "Settings":
        """These settings with others on top, named `field` or `lora.field`.

        Raises:
            ValueError: an unknown field or a value that does not fit; names the key under `where`.
        """
        for key in overrides:
            check_setting(key, where)
        training = {key: value for key, value in overrides.items() if not key.startswith(LORA)}
        lora = {key.removeprefix(LORA): value for key, value in overrides.items() if key.startswith(LORA)}
        return Settings(
            not_default(ScheduledDPOConfig, {**self.training, **fitted(ScheduledDPOConfig, training, where)}),
            not_default(LoraConfig, {**(self.lora or {}), **fitted(LoraConfig, lora, f"{where}.lora")})
            if lora or self.lora is not None
            else None,
        )

    def flat(self) -> dict[str, Any]:
        """One mapping for a record: the LoRA's fields get the prefix `lora_` where they have none."""
        return {**self.training, **lora_fields(self.lora)}

    def check(self, where: str) -> None:
        """Let the configs check themselves; a ValueError names `where`."""
        # Of a GPU nothing is needed here, and the process that starts the runs should not hold memory on it.
        training = {key: value for key, value in self.training.items() if key != "tf32"}
        with warnings.catch_warnings():
            # Of the two names of this switch, only the old one is known to every supported version of transformers.
            warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)
            construct(ScheduledDPOConfig, where, {**training, "output_dir": "unused", "use_cpu": True})
        if self.lora is not None:
            construct(LoraConfig, f"{where}.lora", {"task_type": "CAUSAL_LM", **self.lora})


def check_setting(key: Any, where: str) -> None:
    """Raise a ValueError with the nearest name unless the key is a field of the training or `lora.` and one of it."""
    check_known(key, f"{where}.{key}", [*TRAINING_KEYS, *(LORA + name for name in LORA_KEYS)])


def fitted_setting(key: str, value: Any, where: str) -> Any:
    """The value of one field, named `field` or `lora.field`, in the type that it is declared with."""
    kind, name = (LoraConfig, key.removeprefix(LORA)) if key.startswith(LORA) else (ScheduledDPOConfig, key)
    return fitted(kind, {name: value}, where)[name]


def lora_fields(lora: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fields of a LoRA by the names they have in a record: `r` -> `lora_r`, `lora_alpha` as it is.

    `bias` takes the name `lora_bias`; the switch that PEFT calls so becomes `lora_lora_bias`.
    """
    named = {"lora_bias": "lora_lora_bias"}
    return {
        named.get(key, key if key.startswith("lora_") else f"lora_{key}"): value for key, value in (lora or {}).items()
    }


def grid_points(grid: Mapping[str, list[Any]]) -> Iterable[dict[str, Any]]:
    """Every combination of one value for each key, the last key changing fastest."""
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))


def identity(values: Mapping[str, Any]) -> str:
    """Hexadecimal digest of plain values, whatever the order of their keys.

    Raises:
        ValueError: a value that JSON cannot hold, such as NaN or a date.
    """
    try:
        text = json.dumps(values, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{dict(values)!r:.200} cannot be written down: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def not_default(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """A value that is written out although it is the default makes no other settings."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    return {
        key: value
        for key, value in sorted(values.items())
        if value != defaults[key] or type(value) is not type(defaults[key])
    }
