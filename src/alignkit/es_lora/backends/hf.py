"""The default backend: all members in one `generate` of the model in this process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from alignkit.es_lora.backends.protocol import GenerationRequest
from alignkit.es_lora.centre import Centre, Member
from alignkit.es_lora.grouped_lora import Adapters, base_model
from alignkit.es_lora.population import evaluate_population
from alignkit.es_lora.prompts import left_padded
from alignkit.es_lora.sampling import SharedGumbelProcessor
from alignkit.reliability.not_finite import NonFiniteError, first_not_finite


class HFBackend:
    """Args:
    model ([`~peft.PeftModel`]): the model.
    centre ([`Centre`]): its adapter.
    end_tokens (`Sequence[int]`): any of which ends a completion.
    pad_token (`int`): fills up rows; masked everywhere.
    seed (`int`): of sampling.
    chunk_size (`int`, *optional*): members at a time.
    """

    def __init__(
        self,
        model: PeftModel,
        centre: Centre,
        *,
        end_tokens: Sequence[int],
        pad_token: int,
        seed: int,
        chunk_size: int | None,
    ):
        self._model = model
        self._centre = centre
        self._end_tokens = list(end_tokens)
        self._pad_token = pad_token
        self._seed = seed
        self._chunk_size = chunk_size

    def generate(
        self, numbers: Sequence[Member], adapters: Adapters, request: GenerationRequest
    ) -> list[list[list[int]]]:
        input_ids, attention_mask = left_padded(request.prompts, self._pad_token, self._model.device)
        processors: list[LogitsProcessor] = [watch := _LogitsWatch()]
        if request.temperature:
            processors.append(
                SharedGumbelProcessor(
                    seed=self._seed,
                    step=request.step,
                    keys=request.keys,
                    prompt_length=input_ids.shape[1],
                    temperature=request.temperature,
                )
            )
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            use_cache=True,
            max_new_tokens=request.max_completion_length,
            eos_token_id=self._end_tokens,
            pad_token_id=self._pad_token,
        )
        with self._centre.shared(), _only_settings(base_model(self._model), config):
            tokens = evaluate_population(
                self._model,
                adapters,
                input_ids,
                attention_mask,
                population_chunk_size=self._chunk_size,
                generation_config=config,
                logits_processor=processors,
            )
        completions = tokens[:, :, input_ids.shape[1] :].tolist()
        watch.check(self._model, step=request.step + 1)
        return [[self._until_the_end(row) for row in member] for member in completions]

    def _until_the_end(self, tokens: list[int]) -> list[int]:
        ends = (place for place, token in enumerate(tokens) if token in self._end_tokens)
        return tokens[: next(ends, len(tokens)) + 1]


class _LogitsWatch(LogitsProcessor):
    """Notes logits that are no numbers, of which the argmax would be a token like any other."""

    def __init__(self) -> None:
        self._is_bad: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        is_bad = ~(scores < torch.inf).all()  # -inf is how a model says that a token is impossible
        self._is_bad = is_bad if self._is_bad is None else self._is_bad | is_bad
        return scores

    def check(self, model: PeftModel, *, step: int) -> None:
        """Raise a NonFiniteError if there were any. Waits for the device."""
        if self._is_bad is None or not self._is_bad:
            return
        weight = first_not_finite(model.named_parameters())
        raise NonFiniteError(
            f"step {step}: logits of the population are NaN or infinite; "
            + (
                f"the first weight that is not finite is {weight}"
                if weight
                else "every weight of the model is finite, so what is added to them is too large: lower learning_rate "
                "or sigma"
            )
        )


@contextmanager
def _only_settings(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Within the context nothing that the model's own `generation_config` asks for acts beside these settings."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own
