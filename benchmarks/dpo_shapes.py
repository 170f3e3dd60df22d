"""What the DPO benchmark runs: models, lengths of prompts and completions, and how often."""

import random
import string
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from transformers import Gemma3TextConfig, PretrainedConfig, Qwen3Config

LORA_RANK = 8
LETTERS = string.ascii_lowercase + " "


@dataclass(frozen=True)
class Shape:
    """A model with random weights.

    Attributes:
        family (`str`): Qwen 3, with full attention; or Gemma 3, where all layers but the last slide.
        sliding_window (`int`): of Gemma 3's sliding layers.
        dtype (`torch.dtype`): of the weights.
    """

    family: str
    vocab_size: int
    hidden_size: int = 512
    layers: int = 4
    intermediate_size: int = 1536
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    sliding_window: int = 256
    dtype: torch.dtype = torch.float32

    @property
    def title(self) -> str:
        return f"{self.family}, V = {self.vocab_size:,}"

    def config(self) -> PretrainedConfig:
        common: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        }
        if self.family == "Qwen 3":
            return Qwen3Config(**common)
        layer_types = ["sliding_attention"] * (self.layers - 1) + ["full_attention"]
        return Gemma3TextConfig(**common, sliding_window=self.sliding_window, layer_types=layer_types)

    def setting(self) -> dict[str, Any]:
        """What a claim depends on."""
        return {
            "model": f"{self.title}, hidden {self.hidden_size}, {self.layers} layers, random weights",
            "sliding_window": self.sliding_window if self.family == "Gemma 3" else None,
            "dtype": str(self.dtype).removeprefix("torch."),
            "lora_rank": LORA_RANK,
            "gradient_checkpointing": True,
        }


@dataclass(frozen=True)
class Lengths:
    """Pairs of a step, and how long their parts are.

    Attributes:
        prompt, completion (`tuple[int, int]`): least and greatest number of tokens, drawn with equal probability.
        longest_prompt (`int`, *optional*): to which longer prompts are cut, as both trainers get them.
        pairs (`int`): of a step.
        batches (`int`): different ones; then they come again.
    """

    name: str
    prompt: tuple[int, int]
    completion: tuple[int, int]
    pairs: int
    batches: int = 1
    longest_prompt: int | None = None

    def setting(self) -> dict[str, Any]:
        prompt = self.prompt if self.longest_prompt is None else (*self.prompt, f"cut to {self.longest_prompt}")
        return {"pairs_per_step": self.pairs, "prompt_tokens": prompt, "completion_tokens": self.completion}

    def rows(self) -> Dataset:
        """Random letters, a token each; `<bos>` and `<eos>`, which the tokenizer and the trainers add, count."""
        generator = random.Random(0)

        def text(n_tokens: int) -> str:
            return "".join(generator.choices(LETTERS, k=n_tokens - 1))

        def row() -> dict[str, str]:
            n_prompt = min(generator.randint(*self.prompt), self.longest_prompt or self.prompt[1])
            chosen, rejected = (generator.randint(*self.completion) for _ in range(2))
            return {"prompt": text(n_prompt), "chosen": text(chosen), "rejected": text(rejected)}

        return Dataset.from_list([row() for _ in range(self.batches * self.pairs)])


# Prompts of TAT-QA in tokens (median 460, two in three over the limit of the low-memory preset) and short answers.
TATQA = Lengths("TAT-QA lengths", (200, 700), (5, 25), pairs=4, batches=2, longest_prompt=384)
SHORT = Lengths("512/16", (512, 512), (16, 16), pairs=1)
LONG = Lengths("512/512", (512, 512), (512, 512), pairs=1)
RAGGED = Lengths("ragged 512/512", (64, 512), (64, 512), pairs=2, batches=2)


@dataclass(frozen=True)
class Workload:
    """What is run.

    Attributes:
        backbones (`tuple[Shape, ...]`): with so small a vocabulary that the head hardly counts.
        with_head (`Shape`): with a large one.
        every_length (`tuple[Lengths, ...]`): with the former; `head_lengths` with the latter.
        turns (`int`): timed rounds over the batches of each side; of a single batch twice as many.
        sweep (`Lengths`): of the sweep, whose `batches` are the steps of a run; `betas` its runs.
        reward_prompt, reward_completion (`int`): tokens, for the reward model; `reward_prompts` prompts in a step.
        memory (`Lengths`): where peak memory is measured.
    """

    backbones: tuple[Shape, ...]
    with_head: Shape
    every_length: tuple[Lengths, ...]
    head_lengths: tuple[Lengths, ...]
    turns: int
    sweep: Lengths
    betas: tuple[float, ...]
    reward_prompt: int
    reward_completion: int
    reward_prompts: int
    memory: Lengths


# So small that a step's time is that of everything else.
SMALLEST = Shape("Qwen 3", 512, hidden_size=16, layers=1, intermediate_size=16, heads=1, kv_heads=1, head_dim=16)
BETAS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)
FULL = Workload(
    backbones=(Shape("Qwen 3", 512), Shape("Gemma 3", 512)),
    with_head=Shape("Qwen 3", 32_768),
    every_length=(replace(TATQA, pairs=2), SHORT, LONG, RAGGED),
    head_lengths=(replace(TATQA, pairs=2), SHORT),
    turns=5,
    sweep=replace(TATQA, pairs=2),
    betas=BETAS,
    reward_prompt=512,
    reward_completion=64,
    reward_prompts=2,
    memory=TATQA,
)
TOY = Shape("Qwen 3", 512, hidden_size=64, layers=2, intermediate_size=96, heads=2, kv_heads=1)
TOY_ROWS = Lengths("toy", (24, 60), (4, 12), pairs=2, batches=2, longest_prompt=40)
QUICK = Workload(
    backbones=(TOY, replace(TOY, family="Gemma 3", sliding_window=16)),
    with_head=replace(TOY, vocab_size=2048),
    every_length=(TOY_ROWS, replace(SHORT, name="512/512", prompt=(40, 40), completion=(8, 8))),
    head_lengths=(TOY_ROWS,),
    turns=1,
    sweep=TOY_ROWS,
    betas=BETAS[:2],
    reward_prompt=40,
    reward_completion=8,
    reward_prompts=2,
    memory=TOY_ROWS,
)
