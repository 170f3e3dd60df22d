"""How vLLM names things, as its documentation of 0.28 and the source of its OpenAI-compatible server do.

    POST /v1/load_lora_adapter    {"lora_name", "lora_path"}  -> 200, a text; if VLLM_ALLOW_RUNTIME_LORA_UPDATING=1
    POST /v1/unload_lora_adapter  {"lora_name"}               -> 200, a text
    POST /v1/completions          {"model": adapter, "prompt": token ids, "return_token_ids": true, ...}
                                  -> {"model": adapter, "choices": [{"token_ids": [...], ...}]}

What to know of it:

1. `return_token_ids` is in 0.10.2 and later. The ids are taken to have the token that ended the completion.
2. `seed` gives a request a generator of its own, whose exponential noise belongs to tokens: members share it.
3. What a request leaves open is taken from the model's `generation_config.json`, so that nothing is.
4. An adapter that had to make room for another is read from its folder again when it is asked for, so that folders
   stay until all members are done; to unload it may then fail, with a warning. `--max-loras`, or `--max-cpu-loras`
   where slots on the GPU are few, should be as many as are loaded at a time.
5. `cache_salt` keeps prefixes of an adapter apart even where the name is not part of the cache's key.
6. Behind `--data-parallel-size` an adapter is loaded on one replica only: start one server for each instead.
"""

from collections.abc import Sequence
from typing import Any

from alignkit.es_lora.backends.client import BackendError
from alignkit.es_lora.backends.http import Row

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class VLLM:
    """[`Dialect`] of vLLM."""

    server = "vLLM"
    load_route = "/v1/load_lora_adapter"
    unload_route = "/v1/unload_lora_adapter"

    def rank(self, largest: int) -> int:
        """The smallest `--max-lora-rank` that the adapter fits in."""
        found = next((rank for rank in RANKS if rank >= largest), None)
        if found is None:
            raise ValueError(f"the adapter has rank {largest} and vLLM takes {RANKS[-1]} at most; lower r")
        return found

    def start(self, rank: int, modules: Sequence[str]) -> str:
        return (
            f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank {rank} "
            "--max-loras MEMBERS_AT_A_TIME"
        )

    def request(self, row: Row, base: str, adapter: str | None) -> tuple[str, dict[str, Any]]:
        body = {
            "model": adapter or base,
            "prompt": list(row.prompt),
            "max_tokens": row.max_tokens,
            "temperature": row.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": list(row.end_tokens),
            "return_token_ids": True,
            "cache_salt": adapter or base,
        }
        if row.seed is not None:
            body["seed"] = row.seed
        return "/v1/completions", body

    def tokens(self, answer: Any, base: str, adapter: str | None) -> Any:
        try:
            model, tokens = answer["model"], answer["choices"][0]["token_ids"]
        except (LookupError, TypeError):
            return None
        if model != (adapter or base):
            raise BackendError(f"vLLM is asked for {adapter or base!r} and answers as {model!r}: not with the adapter")
        return tokens
