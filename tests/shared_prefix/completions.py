"""Tiny models of many architectures, rows with common beginnings, and log-probabilities with and without sharing."""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from alignkit.shared_prefix import PackedRows, pack_rows, row_cost, share_prefix

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
BOTH = ["sliding_attention", "full_attention"]
# Shorter than the rows, so that a window by packed instead of real positions would be seen.
SHORT = {"sliding_window": 5}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "layer_types": BOTH, **SHORT}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2": ("Qwen2", {}),
    "Qwen2 with sliding layers": ("Qwen2", {"use_sliding_window": True, "layer_types": BOTH, **SHORT}),
    "Qwen3": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "Llama": ("Llama", {}),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Mistral with a short window": ("Mistral", SHORT),
    "Gemma2": ("Gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, **GEMMA}),
    "Gemma3": ("Gemma3Text", GEMMA),
    "Phi3": ("Phi3", {"sliding_window": None}),
    "Phi3 with a short window": ("Phi3", SHORT),
    "Olmo2": ("Olmo2", {}),
    "Olmo3": ("Olmo3", {"layer_types": BOTH, **SHORT}),
    "Granite": ("Granite", {"logits_scaling": 3.0}),
    "Mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "GPT2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0, "attn_pdrop": 0, "embd_pdrop": 0}),
}


class Rows(NamedTuple):
    """Token ids of each row, and how many of them are its prompt."""

    rows: list[list[int]]
    n_prompt: list[int]

    @property
    def starts(self) -> list[int]:
        return [n - 1 for n in self.n_prompt]

    @property
    def width(self) -> int:
        return 1 + max(len(row) - n for row, n in zip(*self, strict=True))


def tiny(architecture: str, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A model whose weights are large enough for every token to matter."""
    name, settings = ARCHITECTURES[architecture]
    sizes = {} if name == "GPT2" else SIZES
    config = getattr(transformers, f"{name}Config")(**{**sizes, "vocab_size": 61, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * torch.randn_like(weight)
    add_fused_lm_head(model)
    return model


def tokens(n: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(3, 61) for _ in range(n)]


def ragged_pairs() -> Rows:
    """Two pairs of one prompt and one of another, of unequal length: first the chosen, then the rejected rows."""
    long, short = tokens(17, 1), tokens(9, 2)
    rows = [long + tokens(6, 3), long + tokens(2, 4), short + tokens(3, 5)]
    rows += [long + tokens(14, 6), long + tokens(5, 7), short + tokens(12, 8)]
    return Rows(rows, [17, 17, 9] * 2)


def pack(model: torch.nn.Module, rows: Rows, **settings: Any) -> PackedRows:
    packed = pack_rows(rows.rows, rows.starts, width=rows.width, **{"cost": row_cost(model), **settings})
    assert packed is not None
    return packed


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])


def whole_inputs(rows: Rows) -> dict[str, Tensor]:
    """What a model takes without sharing; prompts have no labels."""
    labels = [[-100] * n + row[n:] for row, n in zip(*rows, strict=True)]
    mask = pad([[1] * len(row) for row in rows.rows], 0)
    return {"input_ids": pad(rows.rows, 0), "attention_mask": mask, "labels": pad(labels, -100)}


def cut_inputs(rows: Rows) -> dict[str, Tensor]:
    """What a model takes beside packed rows: the last token of each prompt and its completion."""
    cut = Rows([row[n - 1 :] for row, n in zip(*rows, strict=True)], [1] * len(rows.rows))
    return whole_inputs(cut)


def logps(model: torch.nn.Module, rows: Rows, packed: PackedRows | None = None) -> Tensor:
    """Log-probabilities of the completions' tokens, row after row, `(N,)`."""
    inputs = whole_inputs(rows) if packed is None else {**cut_inputs(rows), "packed": packed}
    log_probs = model(**inputs, fused_lm_head=True).log_probs
    return log_probs[inputs["labels"][:, 1:] != -100]


def loss_and_gradients(model: torch.nn.Module, log_probs: Tensor, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO's loss against references of 0, and every gradient."""
    lengths = [len(row) - n for row, n in zip(*rows, strict=True)]
    sums = torch.stack([part.sum() for part in log_probs.split(lengths)])
    chosen, rejected = sums.chunk(2)
    loss = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean() + 0.01 * sums.square().mean()
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_sharing_changes_nothing(model: torch.nn.Module, rows: Rows, **settings: Any) -> None:
    """Log-probabilities, loss and gradients to 1e-5, relative to the largest entry of each where that is above 1."""
    expected = logps(model, rows)
    expected_loss, expected_gradients = loss_and_gradients(model, expected, rows)
    share_prefix(model)
    found = logps(model, rows, pack(model, rows, **settings))
    found_loss, found_gradients = loss_and_gradients(model, found, rows)
    assert_close(found, expected)
    assert_close(found_loss, expected_loss)
    assert found_gradients.keys() == expected_gradients.keys() != set()
    for name, gradient in expected_gradients.items():
        assert_close(found_gradients[name], gradient)


def assert_close(found: Tensor, expected: Tensor) -> None:
    bound = 1e-5 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)
