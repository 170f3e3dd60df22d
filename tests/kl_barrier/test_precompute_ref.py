"""The reference's hidden states from files: the same training, and no forward of the reference after the first run."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from alignkit.fused_head.modeling import causal_lm_of
from alignkit.row_cache import StaleCacheError
from alignkit.tasks.toy import byte_tokenizer, generate
from tests.kl_barrier.conftest import masked_rows, prompts_and_completions
from tests.tiny_models import lively_lm

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'user: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'bot: ' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
)


def chats() -> Dataset:
    texts = generate("recipe", 8, seed=2)
    turns = [
        [
            {"role": "user", "content": text[:8]},
            {"role": "assistant", "content": text[8:20]},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": text[20 : 26 + 2 * number]},
        ]
        for number, text in enumerate(texts)
    ]
    return Dataset.from_dict({"messages": turns})


def texts() -> Dataset:
    return Dataset.from_dict({"text": [text[: 20 + 3 * i] for i, text in enumerate(generate("fable", 8, seed=2))]})


def pairs() -> Dataset:
    return prompts_and_completions(8)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (texts, {}),
    "completion_only": (pairs, {}),
    "whole_pairs": (pairs, {"completion_only_loss": False}),
    "assistant_only": (chats, {"assistant_only_loss": True}),
    "packed": (texts, {"packing": True, "max_length": 64}),
    "wrapped": (texts, {"packing": True, "packing_strategy": "wrapped", "max_length": 48}),
    "padding_free": (pairs, {"padding_free": True, "max_length": None}),
    "padding_free_assistant": (chats, {"padding_free": True, "max_length": None, "assistant_only_loss": True}),
}


QUICK = [("plain", True), ("completion_only", False), ("packed", True), ("padding_free_assistant", True)]


class CountReferenceForwards:
    """Counts the forwards of backbones that run without gradient in eval mode."""

    def __init__(self, *models: torch.nn.Module):
        self.count = 0
        for model in models:
            model.register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, args: Any) -> None:
        self.count += not torch.is_grad_enabled() and not module.training


@pytest.fixture
def train(make_trainer, tmp_path):
    """A trained trainer and the number of forwards of its reference."""

    def run(rows: Dataset, with_lora: bool, model_seed: int = 1, **settings):
        torch.manual_seed(0)
        options = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "learning_rate": 1e-2, "tau_nats": 0.001}
        trainer = make_trainer(
            model=lively_lm(model_seed),
            train_dataset=rows,
            processing_class=byte_tokenizer(chat_template=TEMPLATE),
            peft_config=LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1) if with_lora else None,
            ref_cache_dir=str(tmp_path / "states"),
            per_device_eval_batch_size=3,
            **{**options, **settings},
        )
        backbones = [causal_lm_of(model).model for model in (trainer.model, trainer.reference.ref_model) if model]
        counter = CountReferenceForwards(*backbones)
        trainer.train()
        return trainer, counter.count

    return run


@pytest.mark.filterwarnings("ignore:.*(flash|Packing|packing|attention).*")
@pytest.mark.parametrize(
    ("case", "with_lora"),
    [
        pytest.param(case, with_lora, marks=[] if (case, with_lora) in QUICK else [pytest.mark.slow])
        for case in CASES
        for with_lora in (False, True)
    ],
)
def test_kept_hidden_states_train_to_the_same_losses_and_weights(train, case, with_lora):
    make_rows, settings = CASES[case]
    plain, n_plain = train(make_rows(), with_lora, **settings)
    kept, n_first = train(make_rows(), with_lora, precompute_ref="hidden", **settings)
    again, n_again = train(make_rows(), with_lora, precompute_ref="hidden", **settings)
    assert n_plain == plain.state.max_steps
    assert n_first == 1 + -(-len(plain.train_dataset) // 3)  # one pass over the training set, and the one below
    assert n_again == 1  # to know the width of what the files should hold
    for trainer in (kept, again):
        for ours, theirs in zip(log(trainer), log(plain), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
        for weight, other in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(weight, other, rtol=0, atol=2e-5)
    assert log(plain)[-1]["kl/gate_open"] > 0


def log(trainer) -> list[dict[str, float]]:
    return [
        {name: entry[name] for name in ("loss", "nll", "kl/divergence", "kl/max", "barrier")}
        | {"kl/gate_open": entry["kl/gate_open"]}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def test_files_of_other_weights_are_an_error(train):
    train(pairs(), False, precompute_ref="hidden", max_steps=1)
    with pytest.raises(StaleCacheError, match=r"weights is '\w+' in the cache and '\w+' now"):
        train(pairs(), False, model_seed=2, precompute_ref="hidden", max_steps=1)


def test_files_of_other_tokens_are_an_error_in_words(train):
    train(pairs(), False, precompute_ref="hidden", max_steps=1)
    with pytest.raises(KeyError, match="made of other rows"):
        train(prompts_and_completions(8, seed=9), False, precompute_ref="hidden", max_steps=1)


def test_the_same_tokens_with_other_labels_are_other_rows(train):
    train(pairs(), False, precompute_ref="hidden", max_steps=1)
    with pytest.raises(KeyError, match="made of other rows"):
        train(pairs(), False, precompute_ref="hidden", max_steps=1, completion_only_loss=False)


def test_settings_that_change_no_hidden_state_reuse_the_files(train):
    train(pairs(), True, precompute_ref="hidden", max_steps=1)
    changed = {
        "barrier_weight": 3.0,
        "aggregate": "cvar95",
        "kl_direction": "forward",
        "learning_rate": 1e-4,
        "seed": 7,
    }
    for settings in (changed, {"per_device_train_batch_size": 4}, {"padding_free": True, "max_length": None}):
        _, n_forwards = train(pairs(), True, precompute_ref="hidden", max_steps=2, **settings)
        assert n_forwards == 1


def test_a_micro_batch_without_a_label_runs_no_reference_that_other_ranks_would_have_to_join(train):
    settings = {"dataset_kwargs": {"skip_prepare_dataset": True}, "train_sampling_strategy": "sequential"}
    rows = masked_rows([True, True, False, False, True, True])
    _, n_forwards = train(rows, True, precompute_ref="hidden", **settings)
    assert n_forwards == 1 + 2  # to know the width, and two batches of three; none in the two epochs


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_evaluation_is_of_its_own_rows_also_with_workers_that_stay(train):
    trainer, _ = train(
        pairs(),
        True,
        precompute_ref="hidden",
        max_steps=1,
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
        eval_dataset=prompts_and_completions(3, seed=8),
    )
    trainer.evaluate()
    assert trainer.evaluation_report.n_sequences == 3
