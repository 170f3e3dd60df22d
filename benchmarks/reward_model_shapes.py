"""Reward models in the shapes of published models, with random weights: tokens per second and peak memory."""

import statistics
from typing import Any

import torch
from reward_model_workloads import HEADS, attribute_pairs, micro_batch_peak, new_trainer, pairs_of_head
from timing import train_interleaved
from transformers import Gemma3TextConfig, PretrainedConfig, Qwen2Config


def published_shapes(*, small: bool) -> dict[str, PretrainedConfig]:
    """Configurations of two published models; `small` shrinks them to toys."""
    qwen = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151_936}
    gemma = {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "vocab_size": 262_144}
    toy = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 259} if small else {}
    return {
        "Qwen2.5-0.5B": Qwen2Config(
            **qwen | toy, num_attention_heads=2 if small else 14, num_key_value_heads=2, tie_word_embeddings=True
        ),
        "Gemma-3-270m": Gemma3TextConfig(
            **gemma | toy,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16 if small else 256,
            sliding_window=512,
        ),
    }


def measure_shapes(configs: dict[str, PretrainedConfig], *, pairs: int, tokens: int, n_turns: int) -> dict[str, Any]:
    """Tokens per second and peak memory, of TRL with 1 head, alignkit with 7, and that with the score cache.

    Args:
        configs (`dict[str, PretrainedConfig]`): shapes by name.
        pairs (`int`): pairs of a step, two texts each.
        tokens (`int`): length of every text.
        n_turns (`int`): timed steps of each side.
    """
    dataset = attribute_pairs(4 * pairs, tokens)
    sides: dict[str, dict[str, Any]] = {
        "trl_1_head": {"dataset": pairs_of_head(dataset, HEADS[0])},
        "alignkit_7_heads": {"dataset": dataset, "heads": HEADS},
        "alignkit_7_heads_score_cache": {"dataset": dataset, "heads": HEADS, "encode_batch_size": 2 * pairs // 8},
    }
    shapes: dict[str, Any] = {}
    for shape, config in configs.items():
        settings = {"config": config, "batch_size": pairs, "bf16": torch.cuda.is_available()}
        trainers = {name: new_trainer(**side, **settings) for name, side in sides.items()}
        times = train_interleaved(trainers, n_turns, warm_up=2)
        parameters = trainers["trl_1_head"].model.num_parameters()
        del trainers
        shapes[shape] = {
            "parameters": parameters,
            "pairs_per_step": pairs,
            "tokens_per_text": tokens,
            # float32: 4 bytes of weight, 4 of gradient and 8 of AdamW's moments for each parameter
            "weights_gradients_and_optimiser_state_bytes": 16 * parameters,
            "sides": {
                name: {
                    "tokens_per_s": 2 * pairs * tokens / statistics.median(times[name].wall_s),
                    "peak_bytes_above_those": micro_batch_peak(**side, **settings),
                    "raw_step_s": times[name].wall_s,
                }
                for name, side in sides.items()
            },
        }
    return shapes
