"""A small real HTTP server with the documented routes of vLLM and SGLang, on top of the population engine.

It takes exactly the fields that are documented, and can fail in the ways that servers do.

python -m tests.es_lora.lora_server vllm PORT [--die-in-request N]
"""

import argparse
import json
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig

from alignkit.es_lora.population import evaluate_population
from alignkit.es_lora.sampling import SharedGumbelProcessor
from tests.es_lora.conftest import lively_lm

BASE = "tiny/base"
SAMPLING = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
SAMPLING |= {"stop_token_ids"}
VLLM_FIELDS = SAMPLING | {"model", "prompt", "max_tokens", "seed", "return_token_ids", "cache_salt"}
SGLANG_SAMPLING_FIELDS = SAMPLING | {"max_new_tokens", "sampling_seed"}
OPEN = {"top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclass
class Faults:
    """How the server misbehaves; not at all by default."""

    no_lora: bool = False
    largest_rank: int = 8
    most_adapters: int = 1000
    load_seconds: float = 0.0
    reply_seconds: float = 0.0
    slow_or_failing: str = ""  # completions of adapters whose names end so, of all by default
    status: int = 200
    null_content: bool = False
    model: str = ""
    without_adapter: bool = False
    adds_to_zero: bool = False
    forget_in_requests: tuple[int, ...] = ()  # as if it had been restarted just before them
    die_in_request: int = 0


@dataclass
class LoRAServer:
    """The model and its adapters, behind a lock: `generate` is not for several threads.

    Attributes:
        log: (route, adapter, body) of all requests.
    """

    kind: str
    faults: Faults = field(default_factory=Faults)
    model: Any = field(default_factory=lively_lm)
    adapters: dict[str, Any] = field(default_factory=dict)
    log: list[tuple[str, str | None, dict[str, Any]]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)
    n_completions: int = 0

    def answer(self, method: str, route: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status, and JSON or a text."""
        routes = {
            "GET /health": lambda body: (200, ""),
            "GET /v1/models": lambda body: (200, {"object": "list", "data": [{"id": BASE, "object": "model"}]}),
        }
        if self.kind == "vllm":
            routes["POST /v1/completions"] = self._vllm_completion
            if not self.faults.no_lora:  # the routes are there with VLLM_ALLOW_RUNTIME_LORA_UPDATING only
                routes |= {"POST /v1/load_lora_adapter": self._load, "POST /v1/unload_lora_adapter": self._unload}
        else:
            routes["POST /generate"] = self._sglang_completion
            routes |= {"POST /load_lora_adapter": self._load, "POST /unload_lora_adapter": self._unload}
        if f"{method} {route}" not in routes:
            return 404, {"detail": "Not Found"}
        adapter = body.get("lora_name", body.get("lora_path", body.get("model")))
        self.log.append((route, None if adapter == BASE else adapter, body))
        return routes[f"{method} {route}"](body)

    # ---- Adapters ----

    def _load(self, body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(self.faults.load_seconds)
        assert set(body) == {"lora_name", "lora_path"}
        with self.lock:
            return self._read_adapter(body)

    def _read_adapter(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, folder = body["lora_name"], Path(body["lora_path"])
        if self.faults.no_lora:
            return self._refused(400, "LoRA is not enabled. Please set `--enable-lora` to enable LoRA.")
        if name in self.adapters:
            return self._refused(400, f"The lora adapter '{name}' has already been loaded.")
        if len(self.adapters) >= self.faults.most_adapters:
            return self._refused(400, f"{self.faults.most_adapters} adapters are loaded, which is the most")
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["peft_type"] == "LORA" and not config["use_dora"] and not config["use_rslora"]
        if config["r"] > self.faults.largest_rank:
            message = f"LoRA rank {config['r']} is greater than max_lora_rank {self.faults.largest_rank}."
            return self._refused(500, message)
        weights = load_file(folder / "adapter_model.safetensors")
        modules = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in weights}
        assert {module.rpartition(".")[2] for module in modules} == set(config["target_modules"])
        adapter = {}
        for module in modules:
            a, b = (weights[f"base_model.model.{module}.lora_{factor}.weight"] for factor in "AB")
            assert len(a) == b.shape[1] == config["r"]
            adapter[module] = a.T[None], b.T[None] * config["lora_alpha"] / config["r"]
        self.adapters[name] = adapter
        return self._succeeded(f"Success: LoRA adapter '{name}' added successfully.")

    def _unload(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["lora_name"]
        with self.lock:
            found = self.adapters.pop(name, None)
        if found is None and self.kind == "vllm":
            return self._refused(404, f"The lora adapter '{name}' cannot be found.")
        if found is None:
            return self._refused(400, f"LoRA with name {name} does not exist. Loaded LoRAs: []")
        return self._succeeded(f"Success: LoRA adapter '{name}' removed successfully.")

    def _succeeded(self, message: str) -> tuple[int, Any]:
        return 200, message if self.kind == "vllm" else {"success": True, "error_message": "", "loaded_adapters": {}}

    def _refused(self, status: int, message: str) -> tuple[int, Any]:
        if self.kind == "vllm":
            return status, {"error": {"message": message, "type": "InvalidUserInput", "param": None, "code": status}}
        return 400, {"success": False, "error_message": message, "loaded_adapters": {}}

    # ---- Completions ----

    def _adapter(self, name: str) -> Any:
        """The adapter of a completion, which it keeps whatever becomes of the name; None for an unknown one."""
        with self.lock:
            self.n_completions += 1
            if self.n_completions == self.faults.die_in_request:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.n_completions in self.faults.forget_in_requests:
                self.adapters.clear()
            return {} if name == BASE else self.adapters.get(name)

    def _vllm_completion(self, body: dict[str, Any]) -> tuple[int, Any]:
        assert set(body) <= VLLM_FIELDS and body["top_k"] == 0 and body["return_token_ids"] is True
        name = body["model"]
        assert body["cache_salt"] == name
        adapter = self._adapter(name)
        if adapter is None:
            return self._refused(404, f"The model `{name}` does not exist.")
        tokens = self._tokens(body["prompt"], body, body["max_tokens"], body.get("seed"), name, adapter)
        if isinstance(tokens, int):
            return tokens, {"error": {"message": "out of memory", "type": "InternalServerError", "code": tokens}}
        choice = {"index": 0, "text": None if tokens is None else "text", "token_ids": tokens, "finish_reason": "stop"}
        return 200, {"object": "text_completion", "model": self.faults.model or name, "choices": [choice]}

    def _sglang_completion(self, body: dict[str, Any]) -> tuple[int, Any]:
        assert set(body) <= {"input_ids", "sampling_params", "lora_path"}
        sampling, name = body["sampling_params"], body.get("lora_path", BASE)
        assert set(sampling) <= SGLANG_SAMPLING_FIELDS and sampling["top_k"] == -1
        adapter = self._adapter(name)
        if adapter is None:
            message = f"Got LoRA adapter that has never been loaded: {name}\nAll loaded adapters: dict_keys([])."
            return 400, {"error": {"message": message}}
        seed = sampling.get("sampling_seed")
        tokens = self._tokens(body["input_ids"], sampling, sampling["max_new_tokens"], seed, name, adapter)
        if isinstance(tokens, int):
            return tokens, {"error": {"message": "out of memory"}}
        return 200, {"text": None if tokens is None else "text", "output_ids": tokens, "meta_info": {}}

    def _tokens(
        self, prompt: list[int], sampling: dict[str, Any], longest: int, seed: int | None, name: str, adapter: Any
    ) -> Any:
        """Ids; or a status other than 200, or None, as the faults say."""
        assert {key: sampling[key] for key in OPEN} == OPEN
        assert (seed is None) == (sampling["temperature"] == 0)
        if name != BASE and name.endswith(self.faults.slow_or_failing):
            time.sleep(self.faults.reply_seconds)
            if self.faults.status != 200:
                return self.faults.status
            if self.faults.null_content:
                return None
        ids = torch.tensor([prompt])
        config = GenerationConfig(
            do_sample=False, max_new_tokens=longest, eos_token_id=sampling["stop_token_ids"], pad_token_id=256
        )
        processors: list[Any] = []
        if seed is not None:
            processors.append(
                SharedGumbelProcessor(
                    seed=seed, step=0, keys=[(0, 0)], prompt_length=len(prompt), temperature=sampling["temperature"]
                )
            )
        options = {"attention_mask": torch.ones_like(ids), "generation_config": config, "logits_processor": processors}
        if self.faults.adds_to_zero:
            adapter = {module: (a, b + 1.0) for module, (a, b) in adapter.items()}
        with self.lock:
            if not adapter or self.faults.without_adapter:
                return self.model.generate(ids, **options)[0, len(prompt) :].tolist()
            return evaluate_population(self.model, adapter, ids, **options)[0, 0, len(prompt) :].tolist()


class Listener(ThreadingHTTPServer):
    """Closes the connections that clients keep open and ends its threads, which must not outlive torch."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._connections: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.append(request)
        super().process_request(request, client_address)

    def server_close(self) -> None:
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


def listen(server: LoRAServer, port: int = 0) -> Listener:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self, method: str) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
            try:
                status, answer = server.answer(method, self.path, body)
            except AssertionError as error:  # a request that the documentation does not allow
                status, answer = 422, f"not as documented: {body} {error}"
            data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._reply("GET")

        def do_POST(self) -> None:
            self._reply("POST")

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

        def handle(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # a client that gave up waiting
                super().handle()

    return Listener(("127.0.0.1", port), Handler)


@contextmanager
def serving(kind: str, **faults: Any):
    """A server in a thread, and its URL."""
    server = LoRAServer(kind, Faults(**faults))
    http = listen(server)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def main() -> None:
    """Serve, and as a service manager does start another server when one is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["vllm", "sglang"])
    parser.add_argument("port", type=int)
    parser.add_argument("--die-in-request", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    faults = Faults(die_in_request=options.die_in_request)
    while True:
        child = os.fork()
        if not child:
            listen(LoRAServer(options.kind, faults), options.port).serve_forever()
        os.waitpid(child, 0)
        faults = Faults()


if __name__ == "__main__":
    main()
