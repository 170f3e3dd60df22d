"""What alignkit relies on in TRL's DPOTrainer: a release that breaks it fails here first."""

import inspect
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from alignkit import ScheduledDPOConfig, ScheduledDPOTrainer
from alignkit.tasks.toy import byte_tokenizer, tiny_causal_lm
from tests.dpo.conftest import QUIET, pairs


def make(trainer_class, folder, **settings) -> Any:
    own = {"model", "peft_config", "eval_dataset", "ref_model"}
    arguments = {name: settings.pop(name) for name in own & set(settings)}
    config = (ScheduledDPOConfig if issubclass(trainer_class, ScheduledDPOTrainer) else DPOConfig)(
        str(folder), **{**QUIET, **settings}
    )
    arguments.setdefault("model", tiny_causal_lm(1, hidden_size=16, layers=1))
    if not issubclass(trainer_class, ScheduledDPOTrainer) and "peft_config" not in arguments:
        arguments.setdefault("ref_model", tiny_causal_lm(1, hidden_size=16, layers=1))
    return trainer_class(args=config, train_dataset=pairs(8), processing_class=byte_tokenizer(), **arguments)


def batch_of(trainer) -> dict[str, torch.Tensor]:
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


class Forwards:
    """Records what a model is called with, in the place where `compute_loss` calls it."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def __call__(self, **inputs):
        self.calls.append(inputs)
        return self.model(**inputs)


def test_with_given_sums_the_parent_runs_no_reference_and_calls_the_model_once(tmp_path):
    trainer = make(DPOTrainer, tmp_path)
    batch = batch_of(trainer) | {"ref_chosen_logps": torch.full((8,), -3.0), "ref_rejected_logps": torch.zeros(8)}
    trainer.ref_model, trainer.precompute_ref_logps = None, True
    model = Forwards(trainer.model.train())
    loss = trainer.compute_loss(model, batch)
    [inputs] = model.calls
    assert inputs["fused_lm_head"] is True and inputs["use_cache"] is False
    expected = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    assert torch.equal(inputs["labels"], expected) and "completion_mask" not in inputs
    chosen, rejected = trainer.model(**inputs).log_probs.sum(1).chunk(2)
    margin = trainer.beta * (chosen + 3.0 - rejected)
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(margin).mean())


def test_the_parent_reads_beta_after_the_model_has_answered(tmp_path):
    """So that a β can depend on the log-probabilities of its batch."""
    trainer, order = make(DPOTrainer, tmp_path), []

    class Watched(DPOTrainer):
        @property
        def beta(self):
            order.append("beta")
            return 0.1

    def model(**inputs):
        order.append("model")
        return trainer.model(**inputs)

    batch = batch_of(trainer) | {"ref_chosen_logps": torch.zeros(8), "ref_rejected_logps": torch.zeros(8)}
    trainer.precompute_ref_logps, trainer.__class__ = True, Watched
    trainer.compute_loss(model, batch)
    assert order[0] == "model" and set(order[1:]) == {"beta"}


def test_a_beta_for_each_pair_goes_through_every_loss_that_does_not_sort(tmp_path):
    losses = "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard apo_zero apo_down discopop sigmoid_norm"
    trainer = make(DPOTrainer, tmp_path, label_smoothing=0.1)
    batch = batch_of(trainer) | {"ref_chosen_logps": torch.full((8,), -40.0), "ref_rejected_logps": torch.zeros(8)}
    trainer.precompute_ref_logps = True
    for loss in losses.split():
        trainer.loss_types = [loss]
        trainer.beta = torch.tensor([0.1, 0.4]).repeat(4)
        mixed = trainer.compute_loss(trainer.model, batch)
        single = []
        for beta in (0.1, 0.4):
            trainer.beta = beta
            rows = torch.arange(0 if beta == 0.1 else 1, 8, 2)
            both = torch.cat([rows, rows + 8])
            part = {key: value[both] if len(value) == 16 else value[rows] for key, value in batch.items()}
            single.append(trainer.compute_loss(trainer.model, part))
        torch.testing.assert_close(mixed, sum(single) / 2, rtol=1e-4, atol=1e-5)


def test_the_parent_reads_its_reference_from_disk_again_for_a_model_that_is_trained_whole(tmp_path):
    """The reason for the copy in memory; when this fails, it is no longer needed."""
    tiny_causal_lm(7, hidden_size=16, layers=1).save_pretrained(tmp_path / "saved")
    model = tiny_causal_lm(1, hidden_size=16, layers=1)
    model.config._name_or_path = str(tmp_path / "saved")
    trainer = make(DPOTrainer, tmp_path, model=model, ref_model=None)
    saved = tiny_causal_lm(7, hidden_size=16, layers=1)
    assert torch.equal(trainer.ref_model.get_input_embeddings().weight, saved.get_input_embeddings().weight)


def test_the_parent_adds_a_reference_adapter_to_a_peft_model(tmp_path):
    lora = LoraConfig(r=2, target_modules="all-linear")
    trainer = make(DPOTrainer, tmp_path, model=get_peft_model(tiny_causal_lm(1), lora), ref_model=None)
    assert set(trainer.model.peft_config) == {"default", "ref"} and trainer.ref_model is None


def test_the_parent_logs_the_metrics_of_a_named_set_without_its_name(tmp_path):
    """The reason for `evaluation_loop`; when this fails, it is no longer needed."""
    trainer = make(DPOTrainer, tmp_path, eval_dataset={"a": pairs(3, seed=1), "b": pairs(3, seed=2)})
    metrics = trainer.evaluate()
    assert {"eval_a_loss", "eval_b_loss", "eval_rewards/margins"} <= set(metrics)
    assert "eval_a_rewards/margins" not in metrics


def test_the_parent_leaves_a_hook_behind_at_every_step_with_checkpointing_and_an_adapter(tmp_path):
    """The reason for the reference manager's switch; when this fails, TRL has mended it."""
    lora = LoraConfig(r=2, target_modules="all-linear")
    trainer = make(DPOTrainer, tmp_path, peft_config=lora, gradient_checkpointing=True, max_steps=4)
    before = len(trainer.model.get_input_embeddings()._forward_hooks)
    trainer.train()
    assert len(trainer.model.get_input_embeddings()._forward_hooks) >= before + 4


def test_the_parents_loss_is_written_down_in_one_place_that_is_not_overridden():
    assert "_compute_loss" not in vars(ScheduledDPOTrainer)
    assert "self._compute_loss(model, inputs, return_outputs)" in inspect.getsource(DPOTrainer.compute_loss)
