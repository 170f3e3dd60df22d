"""Architectures, adapters and precisions: the trainer's numbers are those of `model(...).logits` by plain formulas."""

import copy
import hashlib
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, TrainerCallback

from alignkit.kl_barrier import aggregate_positions, forward_kl, hinge_barrier, reverse_kl
from alignkit.kl_barrier.sequences import sequences_of
from tests.callbacks import KeepGradients
from tests.kl_barrier.conftest import prompts_and_completions
from tests.tiny_models import lively_lm

SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
# Architecture, and what its logits or its loss have that Llama's do not.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen3": {"tie_word_embeddings": True},
    "Gemma2": {"final_logit_softcapping": 3.0, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "Gemma3Text": {"final_logit_softcapping": 4.0, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 3.0},
    "FalconH1": {"lm_head_multiplier": 0.3, "mamba_chunk_size": 16, **MAMBA},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5},
    "Qwen3Moe": {"moe_intermediate_size": 24, **EXPERTS},
}
PLAIN_KL = {"reverse": reverse_kl, "forward": forward_kl}
WEIGHT, TAU = 2.0, 0.02


def tiny(architecture: str, seed: int) -> PreTrainedModel:
    config_class = getattr(transformers, f"{architecture}Config")
    config = config_class(**{**SIZES, **ARCHITECTURES[architecture]})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", **settings})


@pytest.fixture
def one_step(make_trainer):
    """Log and gradients of one step on four rows of unequal length."""

    def run(model, **settings) -> tuple[Any, dict[str, float], dict[str, torch.Tensor]]:
        keep = KeepGradients()
        trainer = make_trainer(
            model=model,
            train_dataset=prompts_and_completions(4),
            per_device_train_batch_size=4,
            max_steps=1,
            callbacks=[keep],
            **{"barrier_weight": WEIGHT, "tau_nats": TAU, "aggregate": "rmse", **settings},
        )
        trainer.train()
        return trainer, next(entry for entry in trainer.state.log_history if "loss" in entry), keep.last

    return run


def expected_of(policy: Any, ref: Any, batch: dict[str, torch.Tensor], direction: str) -> dict[str, torch.Tensor]:
    """The loss and its parts by the plain formulas, from the logits of unpatched models."""
    mask = batch["labels"][:, 1:] != -100
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    config = policy.config.get_text_config()
    has_experts = getattr(config, "router_aux_loss_coef", None) is not None
    output = policy(**inputs, **({"output_router_logits": True} if has_experts else {}))
    logits = output.logits[:, :-1][mask]
    with torch.no_grad():
        if ref is None:
            with policy.disable_adapter():
                ref_logits = policy(**inputs).logits[:, :-1][mask]
        else:
            ref_logits = ref(**inputs).logits[:, :-1][mask]
    nll = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:][mask])
    kl = PLAIN_KL[direction](logits, ref_logits)
    divergence = aggregate_positions(kl, "rmse", sequences_of(batch).index)
    barrier = WEIGHT * hinge_barrier(divergence, TAU).mean()
    aux_loss = output.aux_loss if has_experts else torch.zeros(())
    loss = nll + barrier + (config.router_aux_loss_coef * aux_loss if has_experts else 0.0)
    return {"loss": loss, "nll": nll, "kl": kl, "barrier": barrier, "aux_loss": aux_loss}


@pytest.mark.parametrize(
    ("direction", "with_lora"),
    [
        pytest.param("reverse", False, id="reverse-full"),
        pytest.param("forward", True, id="forward-lora"),
        pytest.param("reverse", True, id="reverse-lora", marks=pytest.mark.slow),
        pytest.param("forward", False, id="forward-full", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_divergences_and_gradients_are_those_of_the_models_own_logits(
    one_step, architecture, direction, with_lora
):
    torch.manual_seed(0)
    model, ref = tiny(architecture, 1), None if with_lora else tiny(architecture, 2)
    if with_lora:
        targets = ["q_proj", "v_proj"]
        model = get_peft_model(model, lora(init_lora_weights=False, target_modules=targets, lora_alpha=64))
    policy, plain_ref = copy.deepcopy(model), copy.deepcopy(ref)
    settings = {"ref": "base"} if with_lora else {"ref_model": ref}
    trainer, log, gradients = one_step(model, kl_direction=direction, learning_rate=0.0, **settings)
    batch = next(iter(trainer.get_train_dataloader()))
    expected = expected_of(policy.train(), plain_ref, batch, direction)
    assert log["kl/divergence"] > 0.05 and log["kl/gate_open"] > 0
    assert log["nll"] == pytest.approx(expected["nll"].item(), rel=1e-5)
    assert log["kl/mean"] == pytest.approx(expected["kl"].mean().item(), rel=1e-5)
    assert log["kl/max"] == pytest.approx(expected["kl"].max().item(), rel=1e-5)
    assert log["barrier"] == pytest.approx(expected["barrier"].item(), rel=1e-5)
    assert log["loss"] == pytest.approx(expected["loss"].item(), rel=1e-5)
    if expected["aux_loss"] != 0:
        assert log["aux_loss"] == pytest.approx(expected["aux_loss"].item(), rel=1e-5)
    expected["loss"].backward()
    for name, weight in policy.named_parameters():
        if weight.grad is not None:
            bound = 1e-5 * max(1.0, weight.grad.abs().max().item())
            torch.testing.assert_close(gradients[name], weight.grad, rtol=0, atol=bound)


# ---- Checkpointing ----


# Reentrant checkpointing says so of a forward without gradient in training mode, such as the look ahead of `step`.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize(("with_lora", "use_reentrant"), [(True, False), (False, True)])
@pytest.mark.parametrize("scope", ["sequence", "step"])
def test_activation_checkpointing_has_the_same_gradients(one_step, scope, with_lora, use_reentrant):
    found = []
    checkpointing = {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": use_reentrant},
    }
    for settings in ({}, checkpointing):
        torch.manual_seed(0)
        model, ref = lively_lm(1), {"ref_model": lively_lm(2)}
        if with_lora:
            model, ref = get_peft_model(model, lora(init_lora_weights=False, lora_dropout=0.1)), {"ref": "base"}
        torch.manual_seed(0)
        _, log, gradients = one_step(model, aggregate_scope=scope, tau_nats=0.01, **ref, **settings)
        assert log["kl/gate_open"] == 1
        found.append(gradients)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6)


# ---- Every reference is the policy before the first step ----


def two_rounds() -> PeftModel:
    """A model with the adapter of an earlier round, frozen, and one that is to be trained."""
    model = get_peft_model(lively_lm(1), lora(init_lora_weights=False), adapter_name="round_1")
    model.add_adapter("round_2", lora())
    model.base_model.set_adapter(["round_1", "round_2"])
    for name, weight in model.named_parameters():
        weight.requires_grad_("round_2" in name)
    return model


def trained_adapter(**settings: Any) -> PeftModel:
    return get_peft_model(lively_lm(1), lora(init_lora_weights=False, **settings))


REFERENCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "base": (lambda: lively_lm(1), {"ref": "base", "peft_config": lora(lora_dropout=0.2)}),
    "default": (lambda: lively_lm(1), {"peft_config": lora(lora_dropout=0.2)}),
    "adapter": (trained_adapter, {"ref": "adapter"}),
    "ema of an adapter": (trained_adapter, {"ref": "ema"}),
    "copy of an adapter": (trained_adapter, {"ref": "copy"}),
    "previous": (two_rounds, {"ref": "previous"}),
    "copy": (lambda: lively_lm(1), {"ref": "copy"}),
    "default of a full model": (lambda: lively_lm(1), {}),
    "ema": (lambda: lively_lm(1), {"ref": "ema"}),
    "an equal model": (lambda: lively_lm(1), {"ref_model": lively_lm(1)}),
    "dora": (lambda: lively_lm(1), {"peft_config": lora(use_dora=True)}),
    "rslora": (lambda: lively_lm(1), {"peft_config": lora(use_rslora=True)}),
    "pissa": (lambda: lively_lm(1), {"peft_config": lora(init_lora_weights="pissa")}),
    "olora": (lambda: lively_lm(1), {"peft_config": lora(init_lora_weights="olora")}),
    "saved lm_head": (
        lambda: lively_lm(1),
        {"peft_config": lora(target_modules=["q_proj"], modules_to_save=["lm_head"])},
    ),
    "bf16": (lambda: lively_lm(1).bfloat16(), {}),
    "bf16 under an adapter": (lambda: lively_lm(1).bfloat16(), {"peft_config": lora()}),
    "tied": (lambda: tiny("Qwen3", 1), {}),
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_the_divergence_is_exactly_0_before_the_first_step_and_above_it_after(make_trainer, kind):
    make_model, settings = REFERENCES[kind]
    options = {
        "max_steps": 2,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "ema_decay": 0.5,
        "tau_nats": 0.0,
    }
    trainer = make_trainer(model=make_model(), **options, **copy.deepcopy(settings))
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert first["kl/max"] == first["kl/mean"] == first["barrier"] == 0.0
    assert second["kl/mean"] > 0 and second["barrier"] > 0


def test_a_4bit_base_trains_and_starts_at_a_divergence_of_exactly_0(make_trainer, tmp_path):
    lively_lm(1, hidden_size=64).save_pretrained(tmp_path / "base")
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=nf4)
    trainer = make_trainer(
        model=model,
        peft_config=lora(),
        max_steps=6,
        learning_rate=1e-2,
        tau_nats=0.0,
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset=prompts_and_completions(4, seed=3),
    )
    before = frozen_digest(trainer.model)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[0]["kl/max"] == 0.0
    assert logs[-1]["kl/mean"] > 1e-4 and logs[-1]["nll"] < logs[0]["nll"]
    assert frozen_digest(trainer.model) == before


# ---- What must not change ----


def frozen_digest(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            digest.update(name.encode() + weight.detach().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def count_hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("ref", ["base", "adapter"])
def test_a_hundred_steps_leave_the_number_of_hooks_and_the_base_weights_as_they_were(make_trainer, ref):
    trainer = make_trainer(
        model=lively_lm(1, layers=1),
        peft_config=lora(target_modules=["q_proj"]),
        ref=ref,
        max_steps=100,
        per_device_train_batch_size=1,
        activation_checkpointing=True,
        train_dataset=prompts_and_completions(4),
        logging_steps=50,
    )
    hooks: list[int] = []

    class CountHooks(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            hooks.append(count_hooks(model))

    trainer.add_callback(CountHooks())
    before = frozen_digest(trainer.model)
    trainer.train()
    assert len(hooks) == 100 and len(set(hooks)) == 1
    assert frozen_digest(trainer.model) == before
