"""What alignkit relies on in TRL's SFTTrainer and in transformers: a release that breaks it fails here first."""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, PreTrainedConfig, Trainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from alignkit import KLBarrierConfig, KLBarrierTrainer
from alignkit.fused_head.modeling import add_reference_head, head_settings
from alignkit.tasks.toy import byte_tokenizer, generate, tiny_causal_lm

QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False}


def rows(n: int, seed: int = 0) -> Dataset:
    return Dataset.from_dict(
        {"text": [text[: 10 + 7 * i % 40] for i, text in enumerate(generate("ledger", n, seed=seed))]}
    )


def make(trainer_class, folder, **settings) -> Any:
    own = {"model", "callbacks", "peft_config", "eval_dataset"}
    arguments = {name: settings.pop(name) for name in own & set(settings)}
    config = (KLBarrierConfig if issubclass(trainer_class, KLBarrierTrainer) else SFTConfig)(
        str(folder), **{**QUIET, "max_length": 64, "logging_steps": 1, "save_strategy": "no", **settings}
    )
    arguments.setdefault("model", tiny_causal_lm(1, hidden_size=16, layers=1))
    return trainer_class(args=config, train_dataset=rows(8), processing_class=byte_tokenizer(), **arguments)


# ---- compute_loss ----


class Forwards:
    """Records what a model is called with, in the place where `compute_loss` calls it."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def __call__(self, **inputs):
        self.calls.append(inputs)
        return self.model(**inputs)


def batch_of(trainer) -> dict[str, torch.Tensor]:
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


@pytest.mark.parametrize("num_items", [None, 40])
def test_the_parent_calls_the_model_once_for_fused_statistics_and_divides_their_sum(tmp_path, num_items):
    trainer = make(SFTTrainer, tmp_path)
    model, batch = Forwards(trainer.model.train()), batch_of(trainer)
    loss = trainer.compute_loss(model, batch, num_items_in_batch=num_items)
    [inputs] = model.calls
    assert inputs["fused_lm_head"] is True and inputs["use_cache"] is False
    assert torch.equal(inputs["labels"], batch["labels"])
    output = trainer.model(**inputs)
    n_labels = (batch["labels"][:, 1:] != -100).sum()
    assert output.label_mask.sum() == n_labels and output.log_probs.shape == output.label_mask.shape
    torch.testing.assert_close(loss, -output.log_probs.sum() / (num_items or n_labels))


def test_the_parent_reads_no_more_of_the_statistics_than_ours_have(tmp_path):
    trainer = make(SFTTrainer, tmp_path)
    batch, n = batch_of(trainer), 3

    def model(**inputs):  # compact vectors, as alignkit's head gives them
        mask = torch.zeros_like(inputs["labels"][:, 1:], dtype=torch.bool)
        mask[0, :n] = True
        return SimpleNamespace(
            log_probs=torch.tensor([-1.0, -2.0, -3.0], requires_grad=True),
            entropy=torch.ones(n),
            is_top1=torch.tensor([True, False, False]),
            label_mask=mask,
        )

    trainer.model.train()
    assert trainer.compute_loss(model, batch, num_items_in_batch=None).item() == 2.0
    assert trainer._metrics["train"]["mean_token_accuracy"] == [pytest.approx(1 / 3)]
    assert trainer._metrics["train"]["entropy"] == [1.0]


def test_the_load_balancing_loss_is_asked_for_and_added_per_micro_batch(tmp_path):
    config = AutoConfig.for_model(
        "mixtral", vocab_size=259, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, pad_token_id=256, router_aux_loss_coef=0.5,
    )  # fmt: skip
    trainer = make(SFTTrainer, tmp_path, model=transformers.AutoModelForCausalLM.from_config(config))
    model = Forwards(trainer.model.train())
    assert trainer.router_aux_loss_coef == 0.5 and trainer.aux_loss_enabled
    trainer.current_gradient_accumulation_steps = 4
    batch = batch_of(trainer)
    with_count = trainer.compute_loss(model, dict(batch), num_items_in_batch=10)
    assert model.calls[0]["output_router_logits"] is True
    output = trainer.model(**model.calls[0])
    torch.testing.assert_close(with_count, -output.log_probs.sum() / 10 + 0.5 * output.aux_loss / 4)


# ---- The optimiser step ----


def test_the_batches_of_a_step_are_drawn_before_its_losses_with_the_number_of_their_labels(tmp_path):
    drawn: list[tuple[int, int]] = []
    order: list[str] = []

    class Spy(SFTTrainer):
        def get_batch_samples(self, *args):
            batches, num_items = super().get_batch_samples(*args)
            labels = sum((batch["labels"][:, 1:] != -100).sum().item() for batch in batches)
            assert num_items == labels
            drawn.append((len(batches), labels))
            order.append("draw")
            return batches, num_items

        def compute_loss(self, *args, **kwargs):
            assert kwargs["num_items_in_batch"] == drawn[-1][1]
            assert self.current_gradient_accumulation_steps == drawn[-1][0]
            order.append("loss")
            return super().compute_loss(*args, **kwargs)

    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "num_train_epochs": 1}
    make(Spy, tmp_path, **settings).train()
    # Four batches of two rows: a step of three, and the rest.
    assert [n for n, _ in drawn] == [3, 1]
    assert order == ["draw", "loss", "loss", "loss", "draw", "loss"]


@pytest.mark.parametrize("accepts", [True, False])
def test_the_trainer_divides_by_the_micro_batches_only_without_a_count_of_labels(tmp_path, accepts):
    class Spy(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            assert (num_items_in_batch is None) == (not accepts)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch) * 0 + 1.0

    trainer = make(Spy, tmp_path, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert trainer.loss_is_scaled_for_ga is None and trainer.model_accepts_loss_kwargs
    trainer.model_accepts_loss_kwargs = accepts
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == (4.0 if accepts else 1.0)


def test_the_parent_keeps_the_attributes_that_our_overrides_use(tmp_path):
    trainer = make(SFTTrainer, tmp_path)
    assert set(trainer._metrics) == {"train", "eval"}
    assert trainer.get_tp_size() == 1
    assert trainer.is_fsdp_enabled is False and trainer.is_deepspeed_enabled is False
    assert trainer.model_wrapped is trainer.model
    assert inspect.signature(Trainer._load_from_checkpoint).parameters["model"].default is None


# ---- The fused head ----

SCALED = [
    ("llama", {}),
    ("gemma2", {"final_logit_softcapping": 30.0}),
    ("gemma3_text", {"final_logit_softcapping": 20.0}),
    ("cohere", {"logit_scale": 0.0625}),
    ("granite", {"logits_scaling": 8.0}),
    ("falcon_h1", {"lm_head_multiplier": 0.25}),
]


@pytest.mark.parametrize(("model_type", "fields"), SCALED)
def test_our_softcap_and_scale_are_those_that_the_parents_head_finds(model_type, fields):
    config = AutoConfig.for_model(model_type, **fields)

    class Bare(torch.nn.Module):
        """As much of a model as the parent's patch reads."""

        def __init__(self, config: PreTrainedConfig):
            super().__init__()
            self.config = config

        def forward(self):
            raise AssertionError("only patched")

    bare = Bare(config)
    add_fused_lm_head(bare)
    found = inspect.getclosurevars(bare.forward.__func__).nonlocals
    ours = head_settings(config)
    assert (found["final_logit_softcapping"], found["logit_scale"]) == (ours.softcap, ours.scale)


def test_a_second_patch_keeps_the_first_and_the_signature_that_generate_checks():
    model = tiny_causal_lm(1, hidden_size=16, layers=1)
    signature = inspect.signature(type(model).forward)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    add_reference_head(model)
    assert inspect.signature(model.forward).parameters.keys() - {"self"} == signature.parameters.keys() - {"self"}
    ids = torch.arange(6)[None]
    assert model(input_ids=ids).logits.shape == (1, 6, 259)
    assert model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs.shape == (1, 5)
    assert model(input_ids=ids, labels=ids, output_head_input=True).hidden.shape == (5, 16)
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 8)


# ---- Checkpoints ----


def test_loading_a_checkpoint_leaves_one_adapter_active(tmp_path):
    """The reason for `active_adapters_kept`; when this fails, it is no longer needed."""
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    model = get_peft_model(tiny_causal_lm(1, hidden_size=16, layers=1), lora, adapter_name="one")
    model.add_adapter("two", lora)
    model.base_model.set_adapter(["one", "two"])
    model.save_pretrained(tmp_path / "checkpoint-1")
    trainer = make(SFTTrainer, tmp_path, model=model)
    assert model.active_adapters == ["one", "two"]
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert model.active_adapters == ["one"]
