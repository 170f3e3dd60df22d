"""The backends over HTTP against a real server: the adapters, the requests, and the failures of servers."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

from alignkit.es_lora.adapters import add_adapter
from alignkit.es_lora.backends import BackendSettings, make_backend
from alignkit.es_lora.backends import adapter_files as adapter_files_module
from alignkit.es_lora.backends.adapter_files import folder_with_room, write_adapter
from alignkit.es_lora.backends.client import BackendError, ServerLostError
from alignkit.es_lora.backends.protocol import GenerationRequest
from alignkit.es_lora.backends.vllm import VLLM
from alignkit.es_lora.centre import Centre
from alignkit.es_lora.population import population
from tests.es_lora.conftest import LORA, lively_lm
from tests.es_lora.lora_server import BASE, serving

ROOT = Path(__file__).parents[2]
KINDS = ["vllm", "sglang"]
EOS, PAD = 258, 256
MEMBERS = [None, 0, 1, 2]
PROMPTS = [[115, 97, 121, 32, 97], [115, 97, 121]]


@pytest.fixture(scope="module")
def adapted() -> tuple[PeftModel, Centre]:
    model, _ = add_adapter(lively_lm(), LoraConfig(**LORA), perturb="both", seed=0)
    return model, Centre(model, "both")


def members(centre: Centre, numbers: list[int | None] = MEMBERS) -> dict[str, Any]:
    return centre.members(numbers, dict.fromkeys(centre.layers, 0.3), seed=0, step=0, antithetic=False)


def request(temperature: float = 0.0, step: int = 0, rollouts: int = 1, length: int = 6) -> GenerationRequest:
    rows = [(place, rollout) for place in range(len(PROMPTS)) for rollout in range(rollouts)]
    return GenerationRequest([PROMPTS[place] for place, _ in rows], rows, step, length, temperature)


def make(adapted, kind: str, url: str | None = None, timeout_s: float = 20.0, chunk_size: int | None = None):
    settings = BackendSettings(kind, url, timeout_s, chunk_size, seed=7)
    return make_backend(settings, *adapted, PROMPTS[0], [EOS], PAD)


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch) -> Path:
    """A folder in the place of shared memory, which is other processes' too."""
    monkeypatch.setattr(adapter_files_module, "SHARED_MEMORY", tmp_path / "memory")
    (tmp_path / "memory").mkdir()
    return tmp_path / "memory"


@pytest.fixture
def expected(adapted) -> list[list[list[int]]]:
    """Completions by the model in this process."""
    tokens = make(adapted, "hf").generate(MEMBERS, members(adapted[1]), request())
    assert len({str(member) for member in tokens}) == len(MEMBERS)
    return tokens


# ---- Adapters on disk ----


def test_a_written_adapter_is_the_member_for_peft(tmp_path, adapted):
    adapters = members(adapted[1])
    write_adapter(tmp_path / "member", adapters, place=2, rank=8)
    loaded = PeftModel.from_pretrained(lively_lm(), tmp_path / "member")
    config = loaded.peft_config["default"]
    assert (config.r, config.lora_alpha) == (8, 8)
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad(), population(adapted[0], {name: (a[2:3], b[2:3]) for name, (a, b) in adapters.items()}) as one:
        logits = one(ids).logits
        torch.testing.assert_close(loaded(ids).logits, logits, rtol=0, atol=1e-5)
        assert (logits - lively_lm()(ids).logits).abs().max() > 0.1


@pytest.mark.parametrize(("rank", "served"), [(1, 1), (2, 8), (8, 8), (9, 16), (257, 320), (512, 512)])
def test_a_rank_is_filled_up_to_one_that_vllm_takes(rank, served):
    assert VLLM().rank(rank) == served


def test_a_rank_above_all_that_vllm_takes_is_refused():
    with pytest.raises(ValueError, match="rank 513 and vLLM takes 512 at most"):
        VLLM().rank(513)


def test_adapters_go_to_temporary_files_where_shared_memory_has_no_room(memory, adapted):
    adapters = members(adapted[1])
    assert folder_with_room(adapters, 4, 8) == str(memory)
    assert folder_with_room(adapters, 10**12, 8) == tempfile.gettempdir()
    memory.rmdir()
    assert folder_with_room(adapters, 4, 8) == tempfile.gettempdir()


# ---- What is asked for ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_server_gives_the_tokens_of_the_model_in_this_process(adapted, expected, kind, chunk_size):
    with serving(kind) as (_, url):
        backend = make(adapted, kind, url, chunk_size=chunk_size)
        assert backend.generate(MEMBERS, members(adapted[1]), request()) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_each_adapter_is_loaded_once_under_a_name_of_its_own_and_used_by_all_its_requests(adapted, kind, memory):
    with serving(kind) as (server, url):
        backend = make(adapted, kind, url, chunk_size=3)
        server.log.clear()
        for _ in range(2):
            backend.generate(MEMBERS, members(adapted[1]), request())
        n_loaded, most = 0, 0
        uses: dict[str, list[str]] = {}
        for route, adapter, _ in server.log:
            uses.setdefault(adapter, []).append(route.rpartition("/")[2])
            n_loaded += ("/load" in route) - ("unload" in route)
            most = max(most, n_loaded)
        assert not server.adapters
    assert (len(uses), most, n_loaded) == (2 * len(MEMBERS), 3, 0)
    complete = {"vllm": "completions", "sglang": "generate"}[kind]
    expected = ["load_lora_adapter", complete, complete, "unload_lora_adapter"]
    assert all(routes == expected for routes in uses.values())
    assert sum("-step0-centre" in name for name in uses) == 2
    assert not list(memory.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_members_share_the_seeds_of_rows_and_nothing_else_does(adapted, kind):
    with serving(kind) as (server, url):
        backend = make(adapted, kind, url)
        server.log.clear()
        same = {
            name: (a.expand(3, -1, -1), b.expand(3, -1, -1)) for name, (a, b) in members(adapted[1], [None]).items()
        }
        first, second = (
            backend.generate([0, 1, 2], same, request(1.0, step=step, rollouts=2, length=8)) for step in (0, 1)
        )
        bodies = [body for route, _, body in server.log if "load" not in route]
    assert first[0] == first[1] == first[2] and first != second
    assert len({str(row) for row in first[0]}) == 4
    seeds = [body.get("seed", body.get("sampling_params", {}).get("sampling_seed")) for body in bodies]
    assert len(set(seeds)) == 8 and all(seeds.count(seed) == 3 for seed in seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_two_processes_with_the_same_members_do_not_meet_on_one_server(adapted, expected):
    with serving("vllm") as (server, url):
        backends = [make(adapted, "vllm", url) for _ in range(2)]
        with ThreadPoolExecutor() as pool:
            runs = [pool.submit(each.generate, MEMBERS, members(adapted[1]), request()) for each in backends]
            assert [run.result() for run in runs] == [expected, expected]
        assert not server.adapters


# ---- Failures ----


@pytest.mark.parametrize(
    ("kind", "faults", "message"),
    [
        (
            "vllm",
            {"no_lora": True},
            "404 .*Not Found.* VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve .*rank 8",
        ),
        (
            "sglang",
            {"no_lora": True},
            "LoRA is not enabled.*-lora-rank 2 --lora-target-modules down_proj q_proj",
        ),
        ("vllm", {"largest_rank": 1}, "refuses to load an adapter.*LoRA rank 8 is greater than max_lora_rank 1"),
        ("sglang", {"most_adapters": 1}, "1 adapters are loaded, which is the most.*population_chunk_size"),
        ("vllm", {"without_adapter": True}, "serves 'tiny/base', answers without the adapter"),
        ("sglang", {"without_adapter": True}, "answers without the adapter"),
        ("vllm", {"adds_to_zero": True}, "adds more than the adapter"),
        ("vllm", {"status": 500}, r"/v1/completions answers 500 .*out of memory"),
        ("sglang", {"status": 500}, "/generate answers 500 .*out of memory"),
        ("vllm", {"null_content": True}, "answers /v1/completions without the ids of a completion's tokens.*None"),
        ("sglang", {"null_content": True}, "answers /generate without the ids of a completion's tokens.*None"),
        ("vllm", {"model": BASE}, "asked for 'alignkit-.*' and answers as 'tiny/base': not with the adapter"),
        (
            "vllm",
            {"load_seconds": 1.0},
            "not answered /v1/load_lora_adapter within 0.4 s; raise backend_timeout_s",
        ),
        ("sglang", {"reply_seconds": 1.0}, "has not answered /generate within 0.4 s"),
    ],
)
def test_a_server_that_cannot_work_is_found_out_at_the_start(adapted, kind, faults, message, memory):
    with serving(kind, **faults) as (server, url):
        timeout_s = 0.4 if "_seconds" in str(faults) else 20.0
        with pytest.raises(BackendError, match="(?s)" + message):
            make(adapted, kind, url, timeout_s=timeout_s)
        assert not server.adapters or "load_seconds" in faults
    assert not list(memory.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_cannot_be_reached_is_named_with_the_command_that_starts_one(adapted, kind):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(
            BackendError, match=f"{re.escape(url)} cannot be reached within 0.3 s.*serve|launch_server"
        ):
            make(adapted, kind, url, timeout_s=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_one_member_whose_requests_fail_ends_the_run_and_leaves_nothing_loaded(adapted, kind, memory):
    with serving(kind) as (server, url):
        backend = make(adapted, kind, url)
        server.faults.status, server.faults.slow_or_failing = 500, "-step0-1"
        with pytest.raises(BackendError, match="answers 500"):
            backend.generate(MEMBERS, members(adapted[1]), request())
        assert not server.adapters
    assert not list(memory.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_lost_its_adapters_gets_them_again_once(adapted, expected, kind, caplog):
    with serving(kind) as (server, url):
        backend = make(adapted, kind, url)
        server.log.clear()
        server.faults.forget_in_requests = (server.n_completions + 4,)
        with caplog.at_level(logging.WARNING):
            assert backend.generate(MEMBERS, members(adapted[1]), request()) == expected
        loads = [adapter for route, adapter, _ in server.log if "/load" in route]
        assert sorted(loads) == sorted(2 * loads[: len(MEMBERS)])
        server.faults.forget_in_requests = tuple(range(server.n_completions + 1, server.n_completions + 100))
        with pytest.raises(ServerLostError, match=r"does not exist|never been loaded"):
            backend.generate(MEMBERS, members(adapted[1]), request())
    assert "Its adapters are loaded again" in caplog.text


@pytest.mark.parametrize("kind", ["vllm"])  # what is lost with a server is lost for both kinds alike
def test_a_server_killed_in_a_step_and_started_again_changes_no_token(adapted, expected, kind, caplog):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    after_the_canaries = str(3 + 4)
    command = [sys.executable, "-m", "tests.es_lora.lora_server", kind, str(port), "--die-in-request"]
    servers = subprocess.Popen([*command, after_the_canaries], cwd=ROOT, start_new_session=True)
    try:
        backend = make(adapted, kind, f"http://127.0.0.1:{port}", timeout_s=60.0)
        with caplog.at_level(logging.WARNING):
            assert backend.generate(MEMBERS, members(adapted[1]), request()) == expected
    finally:
        os.killpg(servers.pid, signal.SIGKILL)
        servers.wait()
    assert "broke the connection" in caplog.text
