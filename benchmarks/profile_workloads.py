"""The four trainers and their parents as a profile sees them: the same rows and weights on both sides of a method."""

from collections.abc import Callable
from typing import Any

import dpo_workloads
import kl_barrier_workloads
import reward_model_workloads
import torch
from datasets import Dataset
from dpo_shapes import Lengths
from dpo_shapes import Shape as DPOShape
from es_lora_workloads import TARGETS, sum_of_codes
from es_lora_workloads import Shape as ESShape
from kl_barrier_shapes import Shape as BarrierShape
from kl_barrier_shapes import Side
from peft import LoraConfig
from reward_model_workloads import HEADS, attribute_pairs, pairs_of_head
from transformers import LlamaConfig, PrinterCallback, Trainer

from alignkit import ESLoRAConfig, ESLoRATrainer
from alignkit.tasks.toy import byte_tokenizer

MICRO_BATCHES = 2
STEPS = 8  # as many as are ever looked at

NewTrainer = Callable[[], Trainer]


def sides(quick: bool) -> dict[tuple[str, str], NewTrainer]:
    """What makes each trainer, by method and class."""
    return {
        ("reward model", "RewardTrainer"): lambda: _reward(quick, heads=None),
        ("reward model", "MultiHeadRewardTrainer"): lambda: _reward(quick, heads=HEADS),
        ("KL barrier", "SFTTrainer"): lambda: _barrier(quick, Side("sft")),
        ("KL barrier", "KLBarrierTrainer"): lambda: _barrier(quick, Side("barrier", is_open=True)),
        ("DPO", "DPOTrainer"): lambda: _dpo(quick, "TRL"),
        ("DPO", "ScheduledDPOTrainer"): lambda: _dpo(quick, "alignkit"),
        ("ES-LoRA", "ESLoRATrainer"): lambda: _es(quick),
    }


def setting(quick: bool) -> dict[str, Any]:
    """What a profile depends on."""
    return {
        "model": "2 layers of 32" if quick else "4 layers of 256",
        "micro_batches_per_step": MICRO_BATCHES,
        "reward model": "pairs with 7 heads, Llama, all weights trained",
        "KL barrier": "Gemma 3, LoRA of rank 8, gradient checkpointing, gate open",
        "DPO": "Qwen 3, LoRA of rank 8, gradient checkpointing, the head at positions of completions on both sides",
        "ES-LoRA": "Llama, 8 members, 4 prompts a step, 16 tokens each" if not quick else "Llama, 4 members, 8 tokens",
    }


def _reward(quick: bool, heads: list[str] | None) -> Any:
    hidden, layers, tokens = (32, 2, 16) if quick else (256, 4, 128)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        vocab_size=259,
    )
    rows = attribute_pairs(4 * MICRO_BATCHES * STEPS, tokens)
    return reward_model_workloads.new_trainer(
        pairs_of_head(rows, HEADS[0]) if heads is None else rows,
        config=config,
        batch_size=4,
        heads=heads,
        gradient_accumulation_steps=MICRO_BATCHES,
    )


def _barrier(quick: bool, side: Side) -> Any:
    hidden, layers, vocabulary, tokens = (32, 2, 259, 17) if quick else (256, 4, 32_768, 129)
    shape = BarrierShape(
        "Gemma 3", hidden, layers, 4 * hidden, max(1, hidden // 64), 1, min(64, hidden), vocabulary, 2, tokens
    )
    return kl_barrier_workloads.new_trainer(
        shape, side, kl_barrier_workloads.random_model(shape), gradient_accumulation_steps=MICRO_BATCHES
    )


def _dpo(quick: bool, side: dpo_workloads.Side) -> Any:
    hidden, layers, vocabulary = (32, 2, 259) if quick else (256, 4, 32_768)
    shape = DPOShape(
        "Qwen 3",
        vocabulary,
        hidden_size=hidden,
        layers=layers,
        intermediate_size=3 * hidden,
        heads=max(1, hidden // 64),
        kv_heads=1,
        head_dim=min(64, hidden),
    )
    prompt, completion = ((12, 24), (4, 8)) if quick else ((200, 384), (5, 25))
    lengths = Lengths("profile", prompt, completion, pairs=4, batches=MICRO_BATCHES * STEPS)
    model = dpo_workloads.random_model(shape)
    more = {} if side == "TRL" else {"kl_steps": 0}
    return dpo_workloads.new_trainer(
        side, model, lengths.rows(), pairs=4, gradient_accumulation_steps=MICRO_BATCHES, **more
    )


def _es(quick: bool) -> Any:
    shape = ESShape(4, 4, hidden_size=32, layers=2, new_tokens=8) if quick else ESShape(8, 4)
    args = ESLoRAConfig(
        "trainer",
        population_size=shape.members,
        prompts_per_step=shape.prompts,
        gradient_accumulation_steps=MICRO_BATCHES,
        max_completion_length=shape.new_tokens,
        sigma=0.5,  # so large that members differ, whatever the model
        max_steps=STEPS,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = ESLoRATrainer(
        shape.new_model(),
        sum_of_codes,
        args,
        Dataset.from_dict({"prompt": ["x" * shape.prompt_tokens] * shape.prompts}),
        processing_class=byte_tokenizer(),
        peft_config=LoraConfig(r=shape.rank, target_modules=list(TARGETS)),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
