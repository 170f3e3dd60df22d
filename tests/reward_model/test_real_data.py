"""A real trained Llama and real preference data, where ALIGNKIT_DATA has them."""

import gzip
import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from alignkit.reward_model import RewardModel, load_reward_model
from alignkit.reward_model.data import encode_text


@pytest.fixture
def stories(data_dir) -> str:
    return str(data_dir / "models" / "stories260K")


def dialogues(data_dir, n: int) -> list[dict]:
    rows = []
    for head, name in (("helpful", "helpful-base_test"), ("harmless", "harmless-base_test")):
        with gzip.open(data_dir / "hh_rlhf" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows += [{**json.loads(line), "head": head} for line, _ in zip(lines, range(n), strict=False)]
    return rows


def test_a_real_tokenizers_texts_have_one_bos_and_one_eos(stories):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    for text in ("Once upon a time", "<s>Once upon a time", "Once upon a time</s>", "<s>Once upon a time</s>"):
        ids = encode_text(tokenizer, text)
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1


def test_hh_pairs_train_two_heads_of_a_real_llama_that_score_the_same_after_loading(
    make_trainer, data_dir, stories, tmp_path
):
    rows = dialogues(data_dir, 40)
    trainer = make_trainer(
        ["helpful", "harmless"],
        Dataset.from_list(rows),
        model=stories,
        processing_class=None,
        overflow="drop",
        max_length=300,
        max_steps=8,
        per_device_train_batch_size=8,
    )
    dropped = trainer.data_report["train"]["dropped"]
    assert sum(dropped.values()) + len(trainer.train_dataset) == len(rows)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    texts = [row["chosen"][:300] for row in rows[:5]]
    before = RewardModel(trainer.model, trainer.processing_class).score(texts)
    assert torch.equal(load_reward_model(tmp_path / "saved").score(texts), before)
    assert not torch.equal(before[:, 0], before[:, 1])


def test_ratings_of_six_attributes_become_all_pairs_of_each(make_trainer, data_dir, stories):
    with open(data_dir / "unieval_multi_attr" / "topical_chat.json") as file:
        responses = json.load(file)
    heads = sorted(responses[0]["scores"])
    contexts: dict[str, list[dict]] = {}
    for response in responses:
        contexts.setdefault(response["source"], []).append(response)
    rows = [
        {
            "completions": [response["system_output"] for response in group],
            "ratings": {head: [response["scores"][head] for response in group] for head in heads},
        }
        for group in list(contexts.values())[:10]
    ]
    distinct = [row for row in rows if len({*row["completions"]}) == len(row["completions"])]
    trainer = make_trainer(heads, Dataset.from_list(distinct), model=stories, processing_class=None)
    pairs_of_six = 15
    assert trainer.data_report["train"]["comparisons"] == dict.fromkeys(heads, pairs_of_six * len(distinct))
