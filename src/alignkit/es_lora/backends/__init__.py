"""What generates the completions of a population."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from peft import PeftModel

from alignkit.es_lora.backends.hf import HFBackend
from alignkit.es_lora.backends.http import HTTPBackend
from alignkit.es_lora.backends.protocol import PopulationBackend
from alignkit.es_lora.backends.sglang import SGLang
from alignkit.es_lora.backends.vllm import VLLM
from alignkit.es_lora.centre import Centre

BackendName = Literal["hf", "sglang", "vllm"]


@dataclass(frozen=True)
class BackendSettings:
    """Settings of the configuration that backends read, by the same names."""

    backend: BackendName
    backend_url: str | None
    backend_timeout_s: float
    population_chunk_size: int | None
    seed: int


def make_backend(
    settings: BackendSettings,
    model: PeftModel,
    centre: Centre,
    prompt: Sequence[int],
    end_tokens: Sequence[int],
    pad_token: int,
) -> PopulationBackend:
    """The backend of a run, after its canaries on one of the run's prompts.

    Raises:
        BackendError: a server that cannot be reached, refuses adapters or does not apply them.
    """
    if settings.backend == "hf":
        return HFBackend(
            model,
            centre,
            end_tokens=end_tokens,
            pad_token=pad_token,
            seed=settings.seed,
            chunk_size=settings.population_chunk_size,
        )
    example = centre.itself()
    backend = HTTPBackend(
        VLLM() if settings.backend == "vllm" else SGLang(),
        str(settings.backend_url),
        example,
        end_tokens=end_tokens,
        seed=settings.seed,
        chunk_size=settings.population_chunk_size,
        timeout_s=settings.backend_timeout_s,
    )
    backend.check(example, prompt)
    return backend
