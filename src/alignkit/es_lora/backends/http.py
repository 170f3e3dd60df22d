"""The backends of servers that take LoRA adapters over HTTP: all that vLLM and SGLang share.

The adapter of a member is written to shared memory, loaded under a name that is used once, named by every request of
that member, unloaded and deleted. `population_chunk_size` members are loaded at a time.

How this differs from the `hf` backend, and why:

1. The server adds adapters in its own dtype and with its own kernels, so that its greedy tokens equal those of `hf`
   but for rounding. It must serve the model that the trainer has: that one is not asked for a token, but it gives the
   adapter's modules and shapes, and all but `sigma_mode="weight"` measure its weights.
2. Members share the seed of each (step, prompt, rollout), and so the server's noise, as far as the server keys its
   noise by it. It is not the noise of `hf`: the same run there samples other tokens.
3. A server that fails is an error that ends the run, which goes on from its last checkpoint. As a failed member it
   would get the lowest fitness for what the server did. A restart in a step is survived once: adapters are loaded
   again, and the completions asked for that are still missing.
4. No cache is flushed, which would slow down other ranks. Prefix caches are keyed by the adapter, and no two adapters
   have a name in common.
"""

import logging
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from alignkit.es_lora.backends.adapter_files import folder_with_room, largest_rank, target_modules, write_adapter
from alignkit.es_lora.backends.client import MAX_REQUESTS, BackendError, ServerClient, ServerLostError
from alignkit.es_lora.backends.protocol import GenerationRequest
from alignkit.es_lora.centre import Member
from alignkit.es_lora.grouped_lora import Adapters
from alignkit.es_lora.noise import keyed_words

logger = logging.getLogger(__name__)

_CANARY_TOKENS = 8
_CANARY_GAIN = 3.0


@dataclass(frozen=True)
class Row:
    """One completion to ask for.

    Attributes:
        prompt: token ids.
        max_tokens: of the completion.
        temperature: 0 for greedy decoding.
        seed: of sampling, 31 bits; None for greedy decoding.
        end_tokens: any of which ends the completion.
    """

    prompt: Sequence[int]
    max_tokens: int
    temperature: float
    seed: int | None
    end_tokens: Sequence[int]


class Dialect(Protocol):
    """What differs from server to server."""

    server: str
    load_route: str
    unload_route: str

    def rank(self, largest: int) -> int:
        """The rank of adapters with which the server can be started, from the largest of any module."""
        ...

    def start(self, rank: int, modules: Sequence[str]) -> str:
        """The command that starts a server which takes such adapters."""
        ...

    def request(self, row: Row, base: str, adapter: str | None) -> tuple[str, dict[str, Any]]:
        """Route and body."""
        ...

    def tokens(self, answer: Any, base: str, adapter: str | None) -> Any:
        """Where an answer has its tokens."""
        ...


class HTTPBackend:
    """Generates on a server. Every process of a run has its own, for the same server or another.

    Args:
        dialect ([`Dialect`]): of the server.
        url (`str`): of the server.
        example (`Mapping[str, tuple[Tensor, Tensor]]`): adapters of any number of members, for their shapes.
        end_tokens (`Sequence[int]`): any of which ends a completion.
        seed (`int`): of sampling.
        chunk_size (`int`, *optional*): members whose adapters are loaded at a time.
        timeout_s (`float`): deadline of each request, and for the server to be back after a restart.

    Raises:
        BackendError: no server within the deadline.
        ValueError: a rank that the server does not take.
    """

    def __init__(
        self,
        dialect: Dialect,
        url: str,
        example: Adapters,
        *,
        end_tokens: Sequence[int],
        seed: int,
        chunk_size: int | None,
        timeout_s: float,
    ):
        self._dialect = dialect
        self._rank = dialect.rank(largest_rank(example))
        self._client = ServerClient(dialect.server, url, timeout_s, dialect.start(self._rank, target_modules(example)))
        self._end_tokens = list(end_tokens)
        self._seed = seed
        self._chunk_size = chunk_size
        self._run = uuid.uuid4().hex[:12]
        self._loads = 0
        self._client.wait_until_ready()
        self._base = self._client.model()

    def generate(
        self, numbers: Sequence[Member], adapters: Adapters, request: GenerationRequest
    ) -> list[list[list[int]]]:
        rows = [
            Row(
                prompt,
                request.max_completion_length,
                request.temperature,
                self._row_seed(request.step, key) if request.temperature else None,
                self._end_tokens,
            )
            for prompt, key in zip(request.prompts, request.keys, strict=True)
        ]
        labels = [f"step{request.step}-{'centre' if number is None else number}" for number in numbers]
        size = self._chunk_size or len(labels)
        found = []
        for start in range(0, len(labels), size):
            chunk = {name: (a[start : start + size], b[start : start + size]) for name, (a, b) in adapters.items()}
            found += self._completions(labels[start : start + size], chunk, rows)
        return found

    def check(self, example: Adapters, prompt: Sequence[int]) -> None:
        """Canaries before a run: an adapter that is 0 changes no token, and a strong one changes some.

        Args:
            example: as for the constructor; only its shapes are read.
            prompt: token ids.

        Raises:
            BackendError: the server answers without the adapter, or adds more than it.
        """
        generator = torch.Generator().manual_seed(0)
        canaries = {}
        for name, (a, b) in example.items():
            strong_a, strong_b = (
                torch.randn(factor.shape[1:], generator=generator) / factor.shape[1] ** 0.5 for factor in (a, b)
            )
            zero_b = torch.zeros_like(strong_b)
            canaries[name] = torch.stack([strong_a, strong_a]), torch.stack([zero_b, _CANARY_GAIN * strong_b])
        row = Row(prompt[:_CANARY_TOKENS], _CANARY_TOKENS, 0.0, None, self._end_tokens)  # fits in any context
        base = self._complete(row, None)
        (zero,), (strong,) = self._completions(["canary-zero", "canary-strong"], canaries, [row])
        where = f"{self._dialect.server}, which serves {self._base!r}"
        if strong == base:
            raise BackendError(
                f"{where}, answers without the adapter: with a random one that drowns the base model it still gives "
                f"{base}. Members would be equal; look for the adapters' names in the server's log"
            )
        if zero[0] != base[0]:  # later tokens of equal models may differ by rounding
            raise BackendError(
                f"{where}, adds more than the adapter: with one that is 0 it gives {zero}, and {base} without one"
            )

    # ---- One chunk of members ----

    def _completions(self, labels: Sequence[str], adapters: Adapters, rows: Sequence[Row]) -> list[list[list[int]]]:
        """Of each member, of each row."""
        root = folder_with_room(adapters, len(labels), self._rank)
        with tempfile.TemporaryDirectory(prefix="alignkit-", dir=root) as folder:
            paths = {self._name(label): "" for label in labels}
            for place, name in enumerate(paths):
                paths[name] = str(Path(folder, name))
                write_adapter(Path(paths[name]), adapters, place, self._rank)
            done: dict[tuple[str, int], list[int]] = {}
            with ThreadPoolExecutor(min(MAX_REQUESTS, len(paths) * len(rows))) as pool:
                try:
                    self._complete_missing(pool, paths, rows, done)
                except ServerLostError as error:
                    logger.warning("%s. Its adapters are loaded again, and %d completions kept", error, len(done))
                    self._client.wait_until_ready()
                    _all(pool, self._unload, paths)
                    self._complete_missing(pool, paths, rows, done)
                finally:
                    _all(pool, self._unload, paths)
        return [[done[name, place] for place in range(len(rows))] for name in paths]

    def _complete_missing(
        self,
        pool: ThreadPoolExecutor,
        paths: Mapping[str, str],
        rows: Sequence[Row],
        done: dict[tuple[str, int], list[int]],
    ) -> None:
        def complete(key: tuple[str, int]) -> None:
            name, place = key
            done[key] = self._complete(rows[place], name)

        _all(pool, lambda name: self._client.load(self._dialect.load_route, name, paths[name]), paths)
        missing = [(name, place) for name in paths for place in range(len(rows)) if (name, place) not in done]
        _all(pool, complete, missing)

    def _complete(self, row: Row, adapter: str | None) -> list[int]:
        route, body = self._dialect.request(row, self._base, adapter)
        answer = self._client.post(route, body)
        tokens = self._dialect.tokens(answer, self._base, adapter)
        if not (isinstance(tokens, list) and tokens and all(isinstance(token, int) for token in tokens)):
            raise BackendError(
                f"{self._dialect.server} answers {route} without the ids of a completion's tokens: {answer!r:.400}; "
                "update the server"
            )
        return tokens

    def _unload(self, name: str) -> None:
        try:
            self._client.post(self._dialect.unload_route, {"lora_name": name})
        except ServerLostError:
            pass  # it does not have the adapter, and that is all that is asked for
        except BackendError as error:
            logger.warning("adapter %s stays loaded: %s", name, error)

    def _name(self, label: str) -> str:
        self._loads += 1  # the centre is loaded under one label with other weights at each evaluation
        return f"alignkit-{self._run}-{self._loads}-{label}"

    def _row_seed(self, step: int, key: tuple[int, int]) -> int:
        return int(keyed_words("server sampling", self._seed, step, *key, count=1)[0]) >> 33


def _all(pool: ThreadPoolExecutor, function: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Call it for all items at once. After an error those that have not begun are left out, and the rest awaited."""
    futures = [pool.submit(function, item) for item in items]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()
        wait(futures)
