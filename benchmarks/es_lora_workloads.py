"""Sizes, model, members and sides of the ES-LoRA benchmark."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from claims import NO_REASON
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, TrainerCallback

from alignkit import ESLoRAConfig, ESLoRATrainer
from alignkit.es_lora.grouped_lora import Adapters
from alignkit.es_lora.population import evaluate_population
from alignkit.es_lora.timing import Phase
from alignkit.tasks.toy import byte_tokenizer

END = 258
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """A population on a Llama with 64 numbers per attention head and a vocabulary of 259 bytes.

    Attributes:
        members, prompts (`int`): P and M.
        hidden_size, layers, rank (`int`): of the model, and of the LoRA on all of its linear modules.
        prompt_tokens, new_tokens (`int`): of every row, so that no side pads.
    """

    members: int
    prompts: int
    hidden_size: int = 256
    layers: int = 4
    rank: int = 4
    prompt_tokens: int = 16
    new_tokens: int = 16

    def setting(self) -> dict[str, Any]:
        """What a claim depends on."""
        return {
            "model": f"Llama, hidden {self.hidden_size}, {self.layers} layers, float32 weights",
            "members": self.members,
            "prompts": self.prompts,
            "rank": self.rank,
            "targets": "all linear modules of the layers",
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
        }

    def new_model(self) -> LlamaForCausalLM:
        config = LlamaConfig(
            hidden_size=self.hidden_size,
            intermediate_size=4 * self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.hidden_size // 64),
            vocab_size=259,
            pad_token_id=256,
            bos_token_id=257,
            eos_token_id=END,
        )
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()

    def new_adapters(self, model: LlamaForCausalLM) -> Adapters:
        """Random members, large enough to change the tokens."""
        generator = torch.Generator().manual_seed(0)
        return {
            name: (
                0.1 * torch.randn(self.members, module.in_features, self.rank, generator=generator),
                0.1 * torch.randn(self.members, self.rank, module.out_features, generator=generator),
            )
            for name, module in model.named_modules()
            if name.endswith(TARGETS)
        }

    def prompts_and_mask(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(0, 256, (self.prompts, self.prompt_tokens), generator=generator)
        return ids, torch.ones_like(ids)

    def lengths(self) -> dict[str, Any]:
        """Arguments of `generate`: greedy, and exactly `new_tokens` for every row."""
        return {"do_sample": False, "max_new_tokens": self.new_tokens, "min_new_tokens": self.new_tokens}


class Target(NamedTuple):
    """What a ratio must reach, and why it may not."""

    value: float
    if_missed: str = NO_REASON


_ABOVE_THE_LIMIT = "the target is above the limit: the base alone, without any adapter, is not that much faster either"
_READS_MEMBERS = (
    "each decoding step reads the members' A and B, 11 MB at 30 members, beside the base's 15 MB, and only the few "
    "rows of a member share them"
)
# Against the loop over members, and against `adapter_names`. For larger models the former is reported, not promised.
PEFT_TARGETS = {
    Shape(30, 2): (Target(8.0, _ABOVE_THE_LIMIT), Target(2.0)),
    Shape(16, 4): (Target(4.0), Target(2.0)),
    Shape(16, 4, hidden_size=512): (Target(1.0), Target(2.0, _ABOVE_THE_LIMIT)),
    Shape(16, 4, hidden_size=768): (Target(1.0), Target(2.0, _ABOVE_THE_LIMIT)),
}
# The bars of a smaller share of the limit are for more rows, where the population's products weigh more.
LIMIT_TARGETS = {
    Shape(30, 2): Target(0.85, _READS_MEMBERS),
    Shape(16, 4): Target(0.85, _READS_MEMBERS),
    Shape(30, 16): Target(0.75),
}
STRAGGLERS = Shape(30, 4, new_tokens=128)
TRAINED = Shape(30, 8, rank=8, new_tokens=64)
QUICK_SHAPE = Shape(4, 2, hidden_size=32, layers=2, new_tokens=4)
QUICK_STRAGGLERS = Shape(4, 2, hidden_size=32, layers=2, new_tokens=32)


# ---- Sides: each returns the tokens (P, M, T') ----


class Sides:
    """One model, its members, and the ways to let each member answer each prompt."""

    def __init__(self, shape: Shape):
        self.shape = shape
        self.model = shape.new_model()
        self.adapters = shape.new_adapters(self.model)
        self.ids, self.mask = shape.prompts_and_mask()
        self.rows = {
            "input_ids": self.ids.repeat(shape.members, 1),
            "attention_mask": self.mask.repeat(shape.members, 1),
            **shape.lengths(),
        }

    def population(self) -> Tensor:
        return evaluate_population(self.model, self.adapters, self.ids, self.mask, **self.shape.lengths())

    def plain(self) -> Tensor:
        """As many rows of the base alone."""
        return self._by_member(self.model.generate(**self.rows))

    def loop(self) -> Callable[[], Tensor]:
        """One PEFT model that becomes each member in turn."""
        peft_model = get_peft_model(self.shape.new_model(), self._config()).eval()
        weights = [(*self._layer(peft_model, name, "default"), *pair) for name, pair in self.adapters.items()]

        @torch.no_grad()
        def run() -> Tensor:
            tokens = []
            for member in range(self.shape.members):
                for a_weight, b_weight, a, b in weights:
                    a_weight.copy_(a[member].T)
                    b_weight.copy_(b[member].T)
                tokens.append(
                    peft_model.generate(input_ids=self.ids, attention_mask=self.mask, **self.shape.lengths())
                )
            return torch.stack(tokens)

        return run

    def adapter_names(self) -> Callable[[], Tensor]:
        """One PEFT model that holds all members, each row naming its own."""
        names = [f"member_{member}" for member in range(self.shape.members)]
        peft_model = get_peft_model(self.shape.new_model(), self._config(), adapter_name=names[0])
        for name in names[1:]:
            peft_model.add_adapter(name, self._config())
        for path, (a, b) in self.adapters.items():
            for member, name in enumerate(names):
                a_weight, b_weight = self._layer(peft_model, path, name)
                a_weight.data.copy_(a[member].T)
                b_weight.data.copy_(b[member].T)
        peft_model.eval()
        row_names = [name for name in names for _ in range(self.shape.prompts)]
        return lambda: self._by_member(peft_model.generate(**self.rows, adapter_names=row_names))

    def adapter_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for pair in self.adapters.values() for tensor in pair)

    def _by_member(self, tokens: Tensor) -> Tensor:
        return tokens.view(self.shape.members, self.shape.prompts, -1)

    def _config(self) -> LoraConfig:
        return LoraConfig(r=self.shape.rank, lora_alpha=self.shape.rank, target_modules=list(TARGETS))

    @staticmethod
    def _layer(peft_model: PeftModel, path: str, adapter: str) -> tuple[Tensor, Tensor]:
        layer = peft_model.get_base_model().get_submodule(path)
        return layer.lora_A[adapter].weight, layer.lora_B[adapter].weight


class EndAt(LogitsProcessor):
    """Makes row i end after `lengths[i]` tokens: lengths as a real model has them, on one that knows no end."""

    def __init__(self, lengths: Tensor, prompt_tokens: int):
        self.lengths, self.prompt_tokens = lengths, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ends = self.lengths <= input_ids.shape[1] - self.prompt_tokens + 1
        scores = scores.clone()
        scores[:, END] = torch.where(ends, torch.inf, -torch.inf)
        return scores


# ---- Time ----


def seconds_of_steps(shape: Shape, n_steps: int) -> list[dict[Phase, float]]:
    """Seconds of each phase of the steps of a training run, after one that is not counted."""
    dataset = Dataset.from_dict({"prompt": ["x" * shape.prompt_tokens] * shape.prompts})
    args = ESLoRAConfig(
        "run",
        population_size=shape.members,
        prompts_per_step=shape.prompts,
        max_completion_length=shape.new_tokens,
        perturb="both",
        sigma=0.5,  # so large that members differ, whatever the model
        max_steps=n_steps + 1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = ESLoRATrainer(
        shape.new_model(),
        sum_of_codes,
        args,
        dataset,
        processing_class=byte_tokenizer(),
        peft_config=LoraConfig(r=shape.rank, target_modules=list(TARGETS)),
    )
    looks: list[dict[Phase, float]] = []
    trainer.add_callback(AfterSteps(lambda: looks.append(trainer.stopwatch.seconds())))
    trainer.train()
    if trainer.state.log_history[-1]["frac_no_variance"]:
        raise RuntimeError("members had equal rewards in a step, which then has no update")
    return [{phase: after[phase] - before[phase] for phase in after} for before, after in pairwise(looks)]


def sum_of_codes(completions: list[str], **columns: Any) -> list[int]:
    """A reward in which hardly any two members are equal: without variance there is nothing to update."""
    return [sum(map(ord, completion)) for completion in completions]


class AfterSteps(TrainerCallback):
    """Calls a function after every optimiser step."""

    def __init__(self, look: Callable[[], None]):
        self._look = look

    def on_step_end(self, args, state, control, **kwargs):
        self._look()
