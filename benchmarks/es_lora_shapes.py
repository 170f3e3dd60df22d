"""The population on a GPU, in the shapes of Qwen2.5 with random weights: its share of plain batched generate."""

import statistics
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from claims import Claim
from timing import raw_times, run_in_turns, seconds, time_ratio
from torch import Tensor
from transformers import CompileConfig, Qwen2Config, Qwen2ForCausalLM

from alignkit.es_lora.population import evaluate_population

TARGET = 0.9


@dataclass(frozen=True)
class ShapeWork:
    """What is measured.

    Attributes:
        configs: model configurations by name.
        populations, prompts: every P and M, decoded eagerly.
        compiled: pairs (P, M) that are decoded by compiled code as well; each costs a minute of compiling.
        rank, prompt_tokens, new_tokens, turns: of every measurement.
        device, dtype: of the model.
        compile_config: of `generate`; None is its default on a GPU, CUDA graphs included.
    """

    configs: dict[str, Qwen2Config]
    populations: tuple[int, ...]
    prompts: tuple[int, ...]
    compiled: tuple[tuple[int, int], ...]
    rank: int
    prompt_tokens: int
    new_tokens: int
    turns: int
    device: str
    dtype: torch.dtype
    compile_config: CompileConfig | None


def on_gpu() -> ShapeWork:
    shared = {"vocab_size": 151_936, "num_key_value_heads": 2, "tie_word_embeddings": True}
    small = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    large = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
    return ShapeWork(
        configs={
            "Qwen2.5-0.5B": Qwen2Config(**shared, **small),
            "Qwen2.5-1.5B": Qwen2Config(**shared, **large),
        },
        populations=(8, 30, 64),
        prompts=(1, 8, 32),
        compiled=((30, 1), (30, 8), (30, 32)),
        rank=8,
        prompt_tokens=64,
        new_tokens=64,
        turns=5,
        device="cuda",
        dtype=torch.bfloat16,
        compile_config=None,
    )


def toy() -> ShapeWork:
    """That all of it runs, on a CPU; code is captured, and not compiled."""
    config = Qwen2Config(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    captured = CompileConfig(backend="eager", mode=None)
    captured._compile_all_devices = True
    return ShapeWork({"toy": config}, (3,), (2,), ((3, 2),), 2, 4, 4, 2, "cpu", torch.float32, captured)


def measure_shapes(work: ShapeWork) -> list[Claim]:
    """A claim for each model, P, M and way of decoding."""
    claims = []
    for name, config in work.configs.items():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config).to(device=work.device, dtype=work.dtype).eval()
        for members, prompts in product(work.populations, work.prompts):
            ways = ["eager", "compiled"] if (members, prompts) in work.compiled else ["eager"]
            claims += [_claim(work, name, model, members, prompts, way) for way in ways]
            claims[-1].print()
        del model
    return claims


def _claim(work: ShapeWork, name: str, model: Qwen2ForCausalLM, members: int, prompts: int, way: str) -> Claim:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 250, (prompts, work.prompt_tokens), generator=generator).to(work.device)
    mask = torch.ones_like(ids)
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": work.new_tokens}
    settings |= {"min_new_tokens": work.new_tokens, "pad_token_id": 0}
    if way == "compiled":
        settings |= {"cache_implementation": "static", "compile_config": work.compile_config}
    adapters = _adapters(work, model, members)

    def plain() -> Tensor:
        rows = ids.repeat(members, 1)
        return model.generate(rows, attention_mask=mask.repeat(members, 1), **settings)

    def population() -> Tensor:
        return evaluate_population(model, adapters, ids, mask, **settings)

    times = run_in_turns({"plain": plain, "population": population}, work.turns)
    ratio = time_ratio(times["plain"], times["population"])
    tokens = members * prompts * work.new_tokens
    return Claim(
        name=f"tokens per second: the population / the base alone, {way}, {name}, {members} x {prompts} rows",
        measured_in=ratio.measured_in,
        values=ratio.values,
        relation=">=",
        target=TARGET,
        limit=1.0,
        limit_is="the products of the adapters are free",
        setting={
            "model": f"{name}'s shape, random weights, {str(work.dtype).removeprefix('torch.')}",
            "members": members,
            "prompts": prompts,
            "rank": work.rank,
            "prompt_tokens": work.prompt_tokens,
            "new_tokens": work.new_tokens,
            "decoding": way,
        },
        raw=raw_times(times),
        also=ratio.also | {f"{side}_tokens_per_s": tokens / statistics.median(seconds(times[side])) for side in times},
    )


def _adapters(work: ShapeWork, model: Qwen2ForCausalLM, members: int) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        name: (
            torch.randn(members, module.in_features, work.rank, device=work.device, dtype=work.dtype) / 100,
            torch.randn(members, work.rank, module.out_features, device=work.device, dtype=work.dtype) / 100,
        )
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
