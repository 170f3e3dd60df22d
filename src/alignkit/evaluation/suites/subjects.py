"""What suites are run on: a model in this process, or an endpoint that speaks the protocol of OpenAI.

A prompt that leaves no room for its completion in the model's context is an error unless `max_prompt_tokens` cuts it:
a model is not asked what nobody decided to ask it.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from alignkit.evaluation.decoding import cut_at_stop, prompt_seed
from alignkit.evaluation.generation import encode_prompt, generate_completions
from alignkit.evaluation.judge.client import ChatClient, MalformedReplyError, key_from
from alignkit.evaluation.judge.protocol import JudgeError
from alignkit.evaluation.metrics.perplexity import token_nlls
from alignkit.evaluation.suites.prompts import as_messages, as_text, stops_for
from alignkit.evaluation.suites.suite import Prompt
from alignkit.storage import PICKLED_WEIGHTS, refused_pickles_named

LONGEST_WINDOW_TOKENS = 2048
SEEDS = 2**31  # every server takes such a seed


class ModelSubject:
    """A causal language model, or a `PeftModel` of one, with its tokenizer.

    Args:
        batch_size: prompts or texts at a time; changes nothing but speed and memory.
        chat: whether prompts go through the chat template; None: if the tokenizer has one. Without it messages are
            written out as a text (see [`alignkit.evaluation.suites.prompts.as_text`]).
        chat_template_kwargs: for the chat template, such as `{"enable_thinking": False}`.
        max_prompt_tokens: longer prompts are cut to their last tokens, which is logged; None: never.
        do_sample, temperature, top_p, seed: as for [`alignkit.evaluation.generation.generate_completions`].

    Raises:
        ValueError: `chat=True` for a tokenizer without a chat template.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = 8,
        chat: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_prompt_tokens: int | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ):
        if chat and tokenizer.chat_template is None:
            raise ValueError("chat=True needs a tokenizer with a chat template, and this one has none; leave it out")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.chat = tokenizer.chat_template is not None if chat is None else chat
        self._template_arguments = dict(chat_template_kwargs or {})
        self._max_prompt_tokens = max_prompt_tokens
        self._decoding: dict[str, Any] = {
            "do_sample": do_sample,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
        }
        self._context_tokens = model.config.get_text_config().max_position_embeddings

    def complete(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop_strings: Sequence[str] = ()
    ) -> list[str]:
        """One completion of each prompt.

        Raises:
            ValueError: a prompt that does not fit, or as `generate_completions` says.
        """
        formed = [as_messages(prompt) if self.chat else as_text(prompt) for prompt in prompts]
        self._check_lengths(formed, max_new_tokens)
        return generate_completions(
            self.model,
            self.tokenizer,
            formed,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=self._max_prompt_tokens,
            batch_size=self.batch_size,
            stop_strings=stop_strings if self.chat else stops_for(prompts, stop_strings),
            chat_template_kwargs=self._template_arguments,
            **self._decoding,
        )

    def _check_lengths(self, prompts: Sequence[Any], max_new_tokens: int) -> None:
        context = self._context_tokens
        if max_new_tokens >= context:
            raise ValueError(f"max_new_tokens={max_new_tokens} leaves no prompt in a context of {context}; lower it")
        room = context - max_new_tokens
        if self._max_prompt_tokens is not None:
            if self._max_prompt_tokens > room:
                raise ValueError(
                    f"max_prompt_tokens={self._max_prompt_tokens} and max_new_tokens={max_new_tokens} are more than "
                    f"the model's context of {context} tokens; lower one of them"
                )
            return
        lengths = [len(encode_prompt(self.tokenizer, prompt, self._template_arguments)) for prompt in prompts]
        n_long = sum(length > room for length in lengths)
        if n_long:
            raise ValueError(
                f"{n_long} of {len(prompts)} prompts have more than {room} tokens (up to {max(lengths)}), which "
                f"max_new_tokens={max_new_tokens} leaves of the model's context of {context}; lower it, or give "
                f"max_prompt_tokens={room} to cut them"
            )

    def token_nlls(self, texts: Sequence[str]) -> list[list[float]]:
        """See [`alignkit.evaluation.metrics.perplexity.token_nlls`]; windows have at most 2048 tokens."""
        window = min(self._context_tokens, LONGEST_WINDOW_TOKENS)
        return token_nlls(self.model, self.tokenizer, texts, max_tokens=window, batch_size=self.batch_size)


def place_of(device: str | None) -> torch.device:
    """The device of that name; for None the accelerator if there is one, else the CPU."""
    return torch.device(device) if device else (torch.accelerator.current_accelerator(True) or torch.device("cpu"))


def load_model(
    path: str, *, adapter: Path | None = None, dtype: str = "auto", device: str | None = None
) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, from a folder or the hub.

    Args:
        adapter: a folder with a PEFT adapter, put on the model. A `path` that is an adapter brings its own model.
        dtype: of the weights; `"auto"` is that of the file.
        device: None: the accelerator if there is one.

    Raises:
        ValueError, OSError: a model, an adapter or a tokenizer that cannot be loaded, or a dtype that does not exist.
    """
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignkit.model_folder import check_config

    check_config(path)
    if adapter is not None and not (adapter / "adapter_config.json").is_file():
        raise FileNotFoundError(f"{adapter} has no adapter_config.json; give the folder of a PEFT adapter")
    if (Path(path) / "adapter_config.json").is_file():
        with refused_pickles_named(path, *PICKLED_WEIGHTS):
            model = AutoPeftModelForCausalLM.from_pretrained(path, dtype=dtype)
        own = (Path(path) / "tokenizer_config.json").is_file()
        named = path if own else model.peft_config["default"].base_model_name_or_path
    else:
        try:
            with refused_pickles_named(path, *PICKLED_WEIGHTS):
                model, named = AutoModelForCausalLM.from_pretrained(path, dtype=dtype), path
        except OSError as error:
            missing = "" if Path(path).is_dir() else ", which is no folder here and so was taken for a hub name"
            raise OSError(f"cannot load {path}{missing}: {error}") from error
    if adapter is not None:
        with refused_pickles_named(adapter, *PICKLED_WEIGHTS):
            model = PeftModel.from_pretrained(model, str(adapter))
    return model.to(place_of(device)).eval(), AutoTokenizer.from_pretrained(named)


class EndpointSubject:
    """A model behind an OpenAI-compatible server, asked by `/chat/completions`.

    Args:
        url: as OpenAI's `base_url`, such as `http://localhost:8000/v1`.
        model: name under which the server knows it.
        api_key_variable: environment variable that holds the API key.
        concurrency: requests under way at once.
        timeout_s, retries: of a request.
        do_sample, temperature, top_p, seed: drawn answers; with `do_sample=False` the temperature is 0. Each prompt of
            a call has a seed of its own, made from `seed` and its place. How far the server keeps to it is its affair.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_variable: str | None = None,
        concurrency: int = 8,
        timeout_s: float = 300.0,
        retries: int = 5,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ):
        if concurrency < 1:
            raise ValueError(f"concurrency={concurrency} must be at least 1")
        self._client = ChatClient(
            url,
            key=key_from(api_key_variable),
            timeout_s=timeout_s,
            retries=retries,
            requests_per_minute=None,
            connections=concurrency,
            server=f"the model {model!r}",
        )
        self._concurrency = concurrency
        drawn = {"temperature": temperature, "top_p": top_p}
        self._body: dict[str, Any] = {"model": model, **(drawn if do_sample else {"temperature": 0.0})}
        self._seed = seed if do_sample else None

    def complete(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop_strings: Sequence[str] = ()
    ) -> list[str]:
        """One completion of each prompt. A prompt without a role is a message of the user.

        Raises:
            OSError: the server cannot be reached, refuses a request, or answers with no chat completion.
        """

        def ask(place: int, prompt: Prompt) -> str:
            # Stop strings act here, since servers take four at most and look for them in leading blanks as well.
            body = {**self._body, "messages": as_messages(prompt), "max_tokens": max_new_tokens}
            if self._seed is not None:
                body["seed"] = prompt_seed(self._seed, place) % SEEDS
            try:
                return cut_at_stop(self._client.post(body).text, stop_strings)
            except (JudgeError, MalformedReplyError) as error:
                raise OSError(str(error)) from error

        with ThreadPoolExecutor(self._concurrency) as pool:
            futures = [pool.submit(ask, place, prompt) for place, prompt in enumerate(prompts)]
            try:
                return [future.result() for future in futures]
            finally:
                for future in futures:  # after an error those that have not begun are left out
                    future.cancel()

    def token_nlls(self, texts: Sequence[str]) -> list[list[float]]:
        """Raises a ValueError: the protocol has no log-probabilities of a given text."""
        raise ValueError("an endpoint gives no log-probabilities of a text; run this suite on a model in this process")
