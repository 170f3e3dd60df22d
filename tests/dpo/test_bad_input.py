"""What is refused, in words that name the value and the fix, before anything is trained."""

import math

import pytest
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from alignkit import ScheduledDPOTrainer
from tests.dpo.conftest import pairs
from tests.tiny_models import lively_lm


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["beta", "eval_beta", "dynamic_beta_alpha", "target_kl"])
def test_a_beta_that_is_not_a_positive_number_is_refused(make_config, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be a finite number above 0"):
        make_config(**{name: value})


@pytest.mark.parametrize("end", [0.0, -0.02])
def test_a_schedule_that_reaches_or_crosses_0_is_refused(make_config, end):
    with pytest.raises(ValueError, match=f"beta_end is {end}"):
        make_config(beta=0.05, beta_schedule="linear", beta_end=end)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta_schedule": "sine"}, "beta_schedule is 'sine'; choose one of"),
        ({"beta_schedule": "linear"}, "say where it ends with beta_end"),
        ({"beta_end": 0.1}, "'constant', which has no end"),
        ({"beta_schedule": "step", "beta_end": 0.1, "beta_steps": 1}, "beta_steps is 1"),
        ({"beta_schedule": "warmup", "beta_end": 0.1, "beta_warmup_ratio": 0.0}, "beta_warmup_ratio is 0.0"),
        ({"target_kl": 0.1, "kl_steps": 5, "beta_schedule": "linear", "beta_end": 0.2}, "leave beta_schedule"),
        ({"target_kl": 0.1, "kl_steps": 5, "dynamic_beta_alpha": 0.2}, "leave beta_schedule and dynamic_beta_alpha"),
        ({"target_kl": 0.1, "kl_steps": 0}, "kl_steps=0 never measures"),
        ({"kl_steps": -1}, "kl_steps is -1"),
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": 64, "max_prompt_length": 64}, "must be below max_length"),
        ({"prompt_truncation": "middle"}, "prompt_truncation is 'middle'"),
        ({"max_packed_tokens": 0}, "max_packed_tokens is 0"),
        ({"ref": "elsewhere/model"}, "pass a loaded model as ref_model"),
        ({"ref": "ema", "precompute_ref_log_probs": True}, "needs a reference that stays as it is"),
        ({"ref": "ema", "sync_ref_model": True}, "choose one of them"),
        ({"ema_decay": 1.0, "ref": "ema"}, "ema_decay is 1.0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_work_together_are_refused(make_config, settings, message):
    with pytest.raises(ValueError, match=message):
        make_config(**settings)


def test_a_config_of_the_parent_is_refused(tmp_path):
    with pytest.raises(TypeError, match="give a ScheduledDPOConfig"):
        ScheduledDPOTrainer(lively_lm(1), args=DPOConfig(str(tmp_path), use_cpu=True, bf16=False))


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
def test_a_column_of_betas_is_refused_where_the_loss_sorts_pairs(make_trainer, rows, loss):
    with pytest.raises(ValueError, match=f"'{loss}' sorts the pairs"):
        make_trainer(train_dataset=rows.add_column("beta", [0.1] * 16), loss_type=loss)


@pytest.mark.parametrize(
    "settings", [{"loss_type": "aot"}, {"target_kl": 0.1, "kl_steps": 1}], ids=["sorts", "target"]
)
def test_a_column_of_betas_that_a_stream_shows_late_is_refused_there(make_trainer, rows, settings):
    data = rows.add_column("beta", [0.1] * 16)
    trainer = make_trainer(train_dataset=IterableDataset.from_generator(lambda: iter(data)), max_steps=1, **settings)
    with pytest.raises(ValueError, match="column `beta`"):
        trainer.train()


def test_a_collator_that_loses_the_column_of_betas_is_refused(make_trainer, rows):
    data = rows.add_column("beta", [0.1] * 16)
    with pytest.raises(ValueError, match="leaves out the column `beta`"):
        make_trainer(train_dataset=data, data_collator=DataCollatorForPreference(pad_token_id=256))


def test_a_column_of_betas_is_refused_beside_a_target(make_trainer, rows):
    with pytest.raises(ValueError, match="one beta for all rows"):
        make_trainer(train_dataset=rows.add_column("beta", [0.1] * 16), target_kl=0.1, kl_steps=1)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_beta_in_the_column_that_is_not_positive_is_refused_with_its_row(make_trainer, rows, value):
    betas = [0.1] * 16
    betas[5] = value
    with pytest.raises(ValueError, match=r"beta in row 5 of the train dataset is"):
        make_trainer(train_dataset=rows.add_column("beta", betas))


def changed_row(number: int, **columns: str) -> Dataset:
    rows = list(pairs(8))
    rows[number] |= columns
    return Dataset.from_list(rows)


def test_an_identical_pair_is_refused_with_its_row(make_trainer):
    with pytest.raises(ValueError, match="row 3 of the train dataset has the same tokens as chosen and as rejected"):
        make_trainer(train_dataset=changed_row(3, chosen="same", rejected="same"))


def test_an_empty_completion_of_a_prepared_row_is_refused_with_its_row(make_trainer, tokenizer):
    talk = [
        [{"role": "user", "content": "Say"}],
        [{"role": "assistant", "content": "yes"}],
        [{"role": "assistant", "content": "left out"}],
    ]
    rows = Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), talk, strict=True))] * 4)
    template = "{% for message in messages %}{{ message['content'].replace('left out', '') }}{% endfor %}"
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="the rejected completion in row 0 of the train dataset has no tokens"):
        make_trainer(train_dataset=rows)


def test_an_adapter_reference_without_an_adapter_is_refused(make_trainer):
    with pytest.raises(ValueError, match="needs a model with a PEFT adapter"):
        make_trainer(ref="adapter")


def test_two_adapters_of_which_one_trains_need_a_word_on_the_reference(make_trainer):
    model = get_peft_model(lively_lm(1), LoraConfig(r=2, target_modules="all-linear"), adapter_name="first")
    model.add_adapter("default", LoraConfig(r=2, target_modules="all-linear"))
    model.base_model.set_adapter(["first", "default"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".default." in name)
    with pytest.raises(ValueError, match='pass ref="previous"'):
        make_trainer(model=model)


def test_both_a_kind_and_a_model_as_reference_are_refused(make_trainer):
    with pytest.raises(ValueError, match="both ref='copy' and ref_model are given"):
        make_trainer(ref="copy", ref_model=lively_lm(2))


def test_a_stream_cannot_be_precomputed(make_trainer, rows):
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(ValueError, match="not a stream"):
        make_trainer(train_dataset=stream, precompute_ref_log_probs=True, max_steps=1)


def test_images_are_for_the_parent(make_trainer, rows):
    with pytest.raises(ValueError, match="vision"):
        make_trainer(train_dataset=rows.add_column("image", [None] * 16))


def test_a_stream_to_evaluate_cannot_be_precomputed_either(make_trainer, rows, tmp_path):
    stream = IterableDataset.from_generator(lambda: iter(rows))
    trainer = make_trainer(eval_dataset=stream, precompute_ref_log_probs=True, ref_cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="needs fixed rows, and the eval set is a stream"):
        trainer.evaluate()


def test_an_identical_pair_in_a_dataset_given_to_evaluate_is_refused(make_trainer):
    with pytest.raises(ValueError, match="row 3 of the eval dataset has the same tokens"):
        make_trainer().evaluate(changed_row(3, chosen="same", rejected="same"))
