"""What is known to go wrong when a divergence is added to supervised fine-tuning, and where each is tested.

| trap | test |
|---|---|
| the barrier grows with gradient accumulation | tests/equivalence |
| models without a count of labels are scaled twice, or not at all | test_trainer_invariances |
| a factor of the number of ranks | test_ranks |
| a backward while the adapters are off | test_architectures, against gradients of the model's own logits |
| switching adapters is slow and flips `requires_grad` | test_reference, and here |
| hooks that pile up | test_architectures, over a hundred steps |
| the reference in training mode; the policy's dropout switched off | here |
| an adapter on the output head; trained tokens of tied embeddings | test_bad_input, and here |
| soft-caps and scales of the logits | test_architectures, contract/test_sft_trainer |
| weights that FSDP2 has sharded, or frees after a forward | test_ranks |
| reentrant checkpointing | test_architectures, test_bad_input |
| packed rows: what the reference's forward is given | test_trainer_invariances, test_precompute_ref |
| sequence and context parallelism | test_bad_input |
| tensors of the fused head in offloaded activations | not here: needs a GPU |
| the dtype of models given by name | here |
| no label at all; root mean square at 0; quantiles of bf16 and of many numbers; cancellation | test_bad_input, \
test_aggregation, test_divergences |
| evaluation sets that overwrite each other; metrics that depend on the batch size | test_trainer_use |
| files of the reference that are stale, or made again for no reason | test_precompute_ref |
| an evaluation, or a resume, after the reference was found in advance | here, test_trainer_use |
| a moving reference under adapters | test_architectures, test_resume |

Ties in a preference, truncated pairs, rewards scaled by beta and the like concern preference pairs, of which there are
none here.
"""

import pytest
import torch
from datasets import IterableDataset
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from tests.kl_barrier.conftest import prompts_and_completions
from tests.tiny_models import lively_lm


def noisy_adapter(seed: int = 0):
    torch.manual_seed(seed)
    lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False)
    return get_peft_model(lively_lm(1), lora)


@pytest.mark.parametrize("ref", ["adapter", "ema", "copy"])
def test_the_reference_has_no_dropout_while_the_policy_keeps_its_own(make_trainer, ref):
    trainer = make_trainer(model=noisy_adapter(), ref=ref)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.train()
    first, second = (trainer._states.of_batch(trainer.model, inputs).hidden for _ in range(2))
    assert torch.equal(first, second)
    assert all(module.training for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout))
    noisy, noisier = (trainer.model(**inputs, output_head_input=True).hidden for _ in range(2))
    assert not torch.equal(noisy, noisier)
    trainer.model.eval()
    torch.testing.assert_close(trainer.model(**inputs, output_head_input=True).hidden, first, rtol=0, atol=0)


@pytest.mark.parametrize("ref", ["base", "adapter", "ema"])
def test_what_trains_and_which_adapters_act_is_the_same_before_during_and_after(make_trainer, ref):
    trainer = make_trainer(model=noisy_adapter(), ref=ref, max_steps=3)
    states: list = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            states.append(state_of(model))

    def state_of(model) -> tuple:
        layers = [module for module in model.modules() if hasattr(module, "disable_adapters")]
        trains = [name for name, weight in model.named_parameters() if weight.requires_grad]
        return trains, [(layer.disable_adapters, layer.active_adapters) for layer in layers]

    before = state_of(trainer.model)
    trainer.add_callback(Watch())
    trainer.train()
    assert states == [before] * 3 and state_of(trainer.model) == before
    assert before[0] and not any(".ref." in name for name in before[0])


def test_a_model_given_by_name_is_its_own_reference_in_its_own_dtype(make_trainer, tmp_path):
    lively_lm(1).bfloat16().save_pretrained(tmp_path / "model")
    for dtype in ("float32", "bfloat16"):
        trainer = make_trainer(
            model=str(tmp_path / "model"), model_init_kwargs={"dtype": dtype}, max_steps=2, learning_rate=1e-2
        )
        trainer.train()
        assert trainer.reference.ref_model.dtype == trainer.model.dtype == getattr(torch, dtype)
        first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
        assert first["kl/max"] == 0.0 < second["kl/max"]


def test_a_reference_given_by_name_takes_the_dtype_of_the_policy(make_trainer, tmp_path):
    path = str(tmp_path / "model")
    lively_lm(1).bfloat16().save_pretrained(path)
    trainer = make_trainer(model=path, ref=path, model_init_kwargs={"dtype": "float32"}, max_steps=1)
    trainer.train()
    assert trainer.reference.ref_model.dtype == torch.float32
    assert trainer.state.log_history[0]["kl/max"] == 0.0


@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
def test_other_rows_can_be_evaluated_after_the_reference_was_found_in_advance(make_trainer, with_lora):
    lora = LoraConfig(r=4, target_modules="all-linear") if with_lora else None
    trainer = make_trainer(
        precompute_ref="hidden",
        peft_config=lora,
        max_steps=2,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=prompts_and_completions(3, seed=8),
    )
    trainer.train()
    assert trainer.evaluate()["eval_kl/divergence"] > 0


def test_a_stream_trains_as_the_same_rows_do(make_trainer, rows):
    runs = []
    for data in (rows, IterableDataset.from_generator(rows.__iter__)):
        trainer = make_trainer(
            train_dataset=data,
            ref_model=lively_lm(2),
            tau_nats=2.6,
            max_steps=3,
            per_device_train_batch_size=4,
            train_sampling_strategy="sequential",
        )
        trainer.train()
        runs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    for ours, theirs in zip(*runs, strict=True):
        for name in ("loss", "kl/divergence", "kl/gate_open", "barrier"):
            assert ours[name] == theirs[name]


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_trained_tokens_train_or_are_refused_in_words(make_trainer, is_tied):
    lora = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[65, 66])
    model = lively_lm(1)
    if is_tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
        with pytest.raises(ValueError, match="trainable_token_indices"):
            make_trainer(model=model, peft_config=lora)
        return
    trainer = make_trainer(model=model, peft_config=lora, max_steps=2, learning_rate=1e-2)
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert first["kl/max"] == 0.0 < second["kl/max"]
