"""A training over HTTP is the training in process, and settings that no server can serve are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import ESLoRAConfig, ESLoRATrainer
from alignkit.es_lora.backends.client import BackendError
from tests.es_lora.conftest import make_es_trainer, prompts, trained
from tests.es_lora.lora_server import serving

WEIGHTS = {"perturb": "both", "sigma_mode": "weight", "sigma": 0.3, "learning_rate": 0.2}
GREEDY = {"temperature": 0.0, **WEIGHTS}


def train(folder: Path, **settings: Any) -> ESLoRATrainer:
    trainer = make_es_trainer(folder, **settings)
    trainer.train()
    return trainer


def train_greedily(folder: Path, **settings: Any) -> ESLoRATrainer:
    return train(folder, eval_dataset=prompts(2), eval_steps=1, **GREEDY, **settings)


def history(trainer: ESLoRATrainer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trainer._folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def in_process(tmp_path_factory) -> ESLoRATrainer:
    return train_greedily(tmp_path_factory.mktemp("hf"))


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize("settings", [{}, {"population_chunk_size": 3, "gradient_accumulation_steps": 2}])
def test_a_greedy_training_on_a_server_equals_the_one_in_process(tmp_path, in_process, kind, settings):
    with serving(kind) as (server, url):
        trainer = train_greedily(tmp_path, backend=kind, backend_url=url, **settings)
        assert not server.adapters
    assert history(trainer) == history(in_process)
    assert any(len(set(record["fitness"])) > 1 for record in history(trainer) if "fitness" in record)
    for name, weight in trained(in_process).items():
        assert torch.equal(trained(trainer)[name], weight), name


def test_sampling_on_a_server_is_repeatable(tmp_path):
    with serving("vllm") as (_, url):
        settings = {"temperature": 1.0, "rollouts_per_prompt": 2, "population_size": 2, **WEIGHTS}
        first, second = (
            train(tmp_path / name, backend="vllm", backend_url=url, **settings) for name in ("first", "second")
        )
    assert history(first) == history(second)


def test_a_server_too_slow_for_one_member_ends_the_training_in_words(tmp_path):
    with serving("sglang") as (server, url):
        trainer = make_es_trainer(tmp_path, backend="sglang", backend_url=url, backend_timeout_s=3.0, **GREEDY)
        server.faults.reply_seconds, server.faults.slow_or_failing = 9.0, "-step1-3"
        with pytest.raises(BackendError, match=r"has not answered /generate within 3.0 s; raise backend_timeout_s"):
            trainer.train()
    assert len([record for record in history(trainer) if "fitness" in record]) == 1  # the first step is kept


def test_a_server_that_is_not_there_is_an_error_before_anything_is_trained(tmp_path):
    with serving("vllm") as (_, url):
        pass
    with pytest.raises(BackendError, match=r"cannot be reached within 0.2 s"):
        make_es_trainer(tmp_path, backend="vllm", backend_url=url, backend_timeout_s=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "vllm"}, "backend is 'vllm' and backend_url None; give the server's URL"),
        ({"backend": "sglang", "backend_url": "localhost:30000"}, "backend_url 'localhost:30000'; give"),
        ({"backend_url": "http://localhost:8000"}, "backend 'hf' has no server"),
        (
            {"backend": "vllm", "backend_url": "http://x", "perturb": "lowrank"},
            "no adapter of a vllm server holds",
        ),
        ({"backend_timeout_s": 0.0}, "backend_timeout_s is 0.0"),
    ],
)
def test_settings_that_no_server_can_serve_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        ESLoRAConfig(str(tmp_path), use_cpu=True, report_to="none", **settings)
