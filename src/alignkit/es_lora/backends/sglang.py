"""How SGLang names things, as its documentation of 0.5 and the source of its native server do.

    POST /load_lora_adapter    {"lora_name", "lora_path"}  -> 200 or 400, {"success", "error_message", ...}
    POST /unload_lora_adapter  {"lora_name"}               -> the same, once the adapter's requests are finished
    POST /generate             {"input_ids", "lora_path": adapter, "sampling_params": {...}}
                               -> {"text", "output_ids": [...], "meta_info": {...}}

What to know of it:

1. The adapter is named by `lora_path`, and no answer says which one was used: the canary does.
2. `sampling_seed` keys noise that belongs to tokens, so that members share it, under
   `--enable-deterministic-inference` only. Without it they sample independently: a noisier estimate, and no wrong one.
3. What a request leaves open is taken from the model's `generation_config.json`, so that nothing is.
4. `--max-lora-rank` and `--lora-target-modules` must be given to a server that starts without an adapter. Smaller
   ranks are taken as they are.
5. Each load gets an id of its own, by which the prefix cache is keyed.
"""

from collections.abc import Sequence
from typing import Any

from alignkit.es_lora.backends.http import Row


class SGLang:
    """[`Dialect`] of SGLang."""

    server = "SGLang"
    load_route = "/load_lora_adapter"
    unload_route = "/unload_lora_adapter"

    def rank(self, largest: int) -> int:
        return largest

    def start(self, rank: int, modules: Sequence[str]) -> str:
        return (
            f"python -m sglang.launch_server --model-path MODEL --enable-lora --max-lora-rank {rank} "
            f"--lora-target-modules {' '.join(modules)} --max-loras-per-batch MEMBERS_AT_A_TIME"
        )

    def request(self, row: Row, base: str, adapter: str | None) -> tuple[str, dict[str, Any]]:
        sampling = {
            "max_new_tokens": row.max_tokens,
            "temperature": row.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": list(row.end_tokens),
        }
        if row.seed is not None:
            sampling["sampling_seed"] = row.seed
        body: dict[str, Any] = {"input_ids": list(row.prompt), "sampling_params": sampling}
        if adapter is not None:
            body["lora_path"] = adapter
        return "/generate", body

    def tokens(self, answer: Any, base: str, adapter: str | None) -> Any:
        return answer.get("output_ids") if isinstance(answer, dict) else None
