"""The trainer as people use it: adapters, streams, several evaluation sets, best model, model card."""

import re

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model

from alignkit.reward_model import RewardModel, load_reward_model
from alignkit.tasks.toy import STYLES, corpus_membership, preference_pairs, tiny_sequence_classifier

HEADS = ["tidy", "short"]


def test_a_peft_model_is_taken_as_it_is_and_its_head_is_trained(make_trainer):
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear")
    model = get_peft_model(tiny_sequence_classifier(HEADS, seed=1), config)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = make_trainer(HEADS, preference_pairs(8), model=model, max_steps=2)
    trainer.train()
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert any("lora_B" in name for name in moved)
    assert {name for name in moved if "lora" not in name} == {"base_model.model.score.modules_to_save.default.weight"}


def test_a_short_last_evaluation_batch_changes_no_metric(make_trainer):
    data = preference_pairs(10, seed=2)
    trainer = make_trainer(HEADS, preference_pairs(8), eval_dataset=data)
    reports = []
    for batch_size in (1, 3, 8, 10):
        trainer.args.per_device_eval_batch_size = batch_size
        metrics = trainer.evaluate()
        reports.append({name: value for name, value in metrics.items() if "second" not in name and "time" not in name})
    for report in reports[1:]:
        assert report == pytest.approx(reports[0], abs=1e-5)


def test_evaluation_metrics_are_those_of_the_scores_taken_by_hand(make_trainer):
    data = preference_pairs(10, seed=2)
    trainer = make_trainer(HEADS, preference_pairs(8), eval_dataset=data)
    metrics = trainer.evaluate()
    model = RewardModel(trainer.model, trainer.processing_class)
    chosen, rejected = (model.score([row["prompt"] + row[side] for row in data]) for side in ("chosen", "rejected"))
    heads = torch.tensor([HEADS.index(head) for head in data["head"]])
    gap = (chosen - rejected)[torch.arange(10), heads]
    assert metrics["eval_accuracy"] == pytest.approx((gap > 0).float().mean().item())
    assert metrics["eval_margin"] == pytest.approx(gap.mean().item(), abs=1e-5)
    assert metrics["eval_loss"] == pytest.approx(torch.nn.functional.softplus(-gap).mean().item(), abs=1e-5)
    for index, head in enumerate(HEADS):
        own = gap[heads == index]
        assert metrics[f"eval_{head}/accuracy"] == pytest.approx((own > 0).float().mean().item())


def test_several_evaluation_sets_are_reported_under_their_own_names(make_trainer):
    sets = {"first": preference_pairs(4, seed=2), "second": preference_pairs(6, seed=3)}
    metrics = make_trainer(HEADS, preference_pairs(8), eval_dataset=sets).evaluate()
    assert {"eval_first_tidy/accuracy", "eval_second_tidy/accuracy", "eval_first_loss", "eval_second_loss"} <= {
        *metrics
    }


def test_the_best_model_can_be_chosen_by_a_heads_metric(make_trainer):
    trainer = make_trainer(
        HEADS,
        preference_pairs(16),
        eval_dataset=preference_pairs(8, seed=2),
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="best",
        metric_for_best_model="eval_tidy/auroc",
        load_best_model_at_end=True,
    )
    trainer.train()
    logged = [entry["eval_tidy/auroc"] for entry in trainer.state.log_history if "eval_tidy/auroc" in entry]
    assert trainer.state.best_metric == max(logged)


def stream(rows: list[dict]) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


def test_a_stream_of_positives_trains_like_the_same_rows_in_a_dataset(make_trainer):
    rows, negatives, _, _ = corpus_membership(n_per_style=4)
    settings = {
        "negatives": negatives,
        "negatives_per_tier": 4,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "sequential",
    }
    losses = []
    for data in (rows, stream(rows.to_list())):
        trainer = make_trainer(list(STYLES), data, **settings)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
    assert trainer.data_report["train"]["positives"]["fable"] > 0


def test_a_streamed_evaluation_set_is_scored_against_the_negatives(make_trainer):
    train, negatives, evaluation, held_out = corpus_membership(n_per_style=8)
    sets = {"whole": evaluation, "streamed": stream(evaluation.to_list())}
    trainer = make_trainer(list(STYLES), train, eval_dataset=sets, negatives=negatives, eval_negatives=held_out)
    metrics = trainer.evaluate()
    assert metrics["eval_streamed_loss"] == pytest.approx(metrics["eval_whole_loss"], abs=1e-6)
    assert metrics["eval_streamed_accuracy_semi_firm"] == pytest.approx(metrics["eval_whole_accuracy_semi_firm"])


def test_chats_train_and_score_through_the_template(make_trainer):
    from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer

    def turn(role: str, content: str) -> list[dict]:
        return [{"role": role, "content": content}]

    rows = [
        {
            "prompt": turn("user", f"question {i}"),
            "chosen": turn("assistant", "yes, gladly"),
            "rejected": turn("assistant", "no"),
            "head": "tidy",
        }
        for i in range(8)
    ]
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    trainer = make_trainer(["tidy"], Dataset.from_list(rows), processing_class=tokenizer, max_steps=15)
    trainer.train()
    model = RewardModel(trainer.model, tokenizer)
    good, bad = (model.score([turn("user", "question 9") + turn("assistant", text)]) for text in ("yes, gladly", "no"))
    assert good.item() > bad.item()


def test_the_model_cards_quick_start_prints_the_raw_scores(make_trainer, capsys):
    trainer = make_trainer(HEADS, preference_pairs(8), eval_dataset=preference_pairs(4, seed=2), max_steps=1)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card(model_name="my model")
    with open(f"{trainer.args.output_dir}/README.md") as file:
        card = file.read()
    capsys.readouterr()
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})
    scores = load_reward_model(trainer.args.output_dir).score(["The capital of France is Paris."])
    assert capsys.readouterr().out == f"{HEADS}\n{scores}\n"
    accuracy = f"{trainer.evaluation_report.heads['tidy']['accuracy']:.3f}"
    assert re.search(rf"\| eval \| tidy \| {re.escape(accuracy)} \|", card)
    assert "| train | tidy | 4" in card and "None](" not in card


def test_weights_count_in_the_loss_and_not_in_the_accuracy(make_trainer):
    rows = [{"chosen": f"a {i}", "rejected": f"b {i}", "head": "tidy", "weight": 9.0 if i else 1.0} for i in range(6)]
    trainer = make_trainer(["tidy"], Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows))
    metrics = trainer.evaluate()
    model = RewardModel(trainer.model, trainer.processing_class)
    gap = (model.score([row["chosen"] for row in rows]) - model.score([row["rejected"] for row in rows]))[:, 0]
    weight = torch.tensor([row["weight"] for row in rows])
    loss = (weight * torch.nn.functional.softplus(-gap)).sum() / weight.sum()
    assert metrics["eval_loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert metrics["eval_accuracy"] == pytest.approx((gap > 0).float().mean().item())


def test_the_last_log_of_a_run_has_the_last_steps_metrics_also_after_an_evaluation(make_trainer):
    trainer = make_trainer(
        HEADS,
        preference_pairs(8),
        eval_dataset=preference_pairs(4, seed=2),
        max_steps=3,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=3,
    )
    trainer.train()
    last = next(entry for entry in reversed(trainer.state.log_history) if "train_runtime" in entry)
    assert {"accuracy", "margin", "num_tokens"} <= {*last}


def test_another_evaluation_keeps_the_report_of_the_trainers_own_set(make_trainer):
    trainer = make_trainer(HEADS, preference_pairs(8), eval_dataset=preference_pairs(6, seed=2))
    trainer.evaluate(preference_pairs(2, seed=3))
    assert trainer.data_report["eval"]["rows"] == 6
    assert trainer.data_report["eval_again"]["rows"] == 2


def test_a_cut_evaluation_set_whose_negatives_were_lost_is_an_error(make_trainer):
    train, negatives, evaluation, held_out = corpus_membership(n_per_style=8)
    trainer = make_trainer(list(STYLES), train, eval_dataset=evaluation, negatives=negatives, eval_negatives=held_out)
    with pytest.raises(ValueError, match="texts of the evaluation were not scored"):
        trainer.evaluate(trainer.eval_dataset.select(range(4)))


def test_a_stream_takes_no_dataloader_workers(make_trainer):
    with pytest.raises(ValueError, match=r"dataloader_num_workers=2.*set it to 0"):
        make_trainer(HEADS, stream(preference_pairs(4).to_list()), max_steps=1, dataloader_num_workers=2)


def test_grouping_by_length_reads_the_length_of_the_longest_text(make_trainer):
    trainer = make_trainer(HEADS, preference_pairs(8), train_sampling_strategy="group_by_length", max_steps=1)
    trainer.train()
    assert trainer.train_dataset["length"] == [max(map(len, row)) for row in trainer.train_dataset["input_ids"]]


def test_the_card_keeps_every_evaluation_set_apart_and_tells_the_soft_cap(make_trainer):
    sets = {"first": preference_pairs(4, seed=2), "second": preference_pairs(6, seed=3)}
    trainer = make_trainer(HEADS, preference_pairs(8), eval_dataset=sets, score_softcap=3.0)
    trainer.evaluate()
    trainer.create_model_card()
    with open(f"{trainer.args.output_dir}/README.md") as file:
        card = file.read()
    assert "| eval_first | tidy |" in card and "| eval_second | short |" in card
    assert "3.0·tanh(score / 3.0)" in card


@pytest.mark.parametrize("reduction", ["comparisons", "active_heads"])
def test_active_heads_depends_on_the_split_and_comparisons_does_not(make_trainer, reduction):
    rows = [{"chosen": f"a {i}", "rejected": f"b {i}", "head": "tidy"} for i in range(3)]
    rows.append({"chosen": "c", "rejected": "d", "head": "short"})
    losses = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        trainer = make_trainer(
            HEADS,
            Dataset.from_list(rows),
            reduction=reduction,
            max_steps=1,
            max_grad_norm=0.0,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert (losses[0] == pytest.approx(losses[1], abs=1e-6)) == (reduction == "comparisons")


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_ends_in_the_weights_of_one_that_went_through(make_trainer, lora):
    def trained(resume: bool):
        adapter = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", lora_dropout=0.2) if lora else None
        trainer = make_trainer(
            HEADS, preference_pairs(16), peft_config=adapter, max_steps=4, save_strategy="steps", save_steps=2
        )
        trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2" if resume else None)
        return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}

    whole, resumed = trained(resume=False), trained(resume=True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_a_run_is_a_reward_model(make_trainer):
    adapter = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear")
    trainer = make_trainer(
        HEADS, preference_pairs(8), peft_config=adapter, max_steps=2, save_strategy="steps", save_steps=2
    )
    trainer.train()
    texts = ["one text", "another"]
    checkpoint = load_reward_model(f"{trainer.args.output_dir}/checkpoint-2")
    assert torch.equal(checkpoint.score(texts), RewardModel(trainer.model, trainer.processing_class).score(texts))
