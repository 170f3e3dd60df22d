"""The toy task: a lossless tokenizer, seeded models, and datasets whose splits and tiers never leak."""

import random
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignkit.tasks.toy import (
    CHAT_TEMPLATE,
    PREFERENCE_HEADS,
    STYLES,
    byte_tokenizer,
    corpus_membership,
    generate,
    noise,
    preference_pairs,
    shuffle_words,
    tiny_causal_lm,
    tiny_llama_config,
    tiny_sequence_classifier,
)

TOKENIZER = byte_tokenizer()
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def byte_histograms(texts: list[str]) -> torch.Tensor:
    """Relative frequency of every byte, (n, 256)."""
    rows = [torch.bincount(torch.tensor(list(text.encode())), minlength=256) / len(text.encode()) for text in texts]
    return torch.stack(rows)


def texts_of(*datasets: Dataset) -> list[str]:
    return [text for dataset in datasets for text in dataset["text"]]


@given(st.text())
@example("a <eos>b<bos><pad> , 's")
def test_any_unicode_text_comes_back_exactly(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"][1:]) == text


@pytest.mark.parametrize("text", ["", " a  b ", "\r\n\t\0", "naïve 漢字 🦊👩‍👩‍👧", "don't , stop ."])
def test_tokens_are_bos_and_the_bytes_of_the_text(text: str) -> None:
    assert TOKENIZER(text)["input_ids"] == [257, *text.encode()]


def test_pad_bos_and_eos_are_three_different_tokens_after_the_bytes() -> None:
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, len(TOKENIZER)) == (
        256,
        257,
        258,
        259,
    )


def test_padding_goes_to_the_right_and_is_masked() -> None:
    batch = TOKENIZER(["abc", "a"], padding=True)
    assert batch["input_ids"][1] == [257, 97, 256, 256]
    assert batch["attention_mask"][1] == [1, 1, 0, 0]


def test_an_eos_written_into_a_text_is_the_eos_token() -> None:
    assert TOKENIZER("a" + TOKENIZER.eos_token)["input_ids"] == [257, 97, 258]


def test_a_chat_has_one_bos_and_ends_with_eos() -> None:
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    token_ids = tokenizer.apply_chat_template(CHAT)["input_ids"]
    assert token_ids == [257, *b"user: Hi\nassistant: Ho", 258]


def test_the_generation_prompt_is_a_prefix_of_the_whole_chat() -> None:
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    whole = tokenizer.apply_chat_template(CHAT, tokenize=False)
    prompt = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, tokenize=False)
    assert whole == prompt + "Ho<eos>"


def test_a_chat_role_that_the_template_does_not_know_is_an_error() -> None:
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    with pytest.raises(TemplateError, match="got tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "42"}])


def test_the_tokenizer_survives_saving_beside_its_model(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    tokenizer.save_pretrained(tmp_path)
    tiny_sequence_classifier(["a"]).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["a , b 's 🦊  ", "x<eos>"]
    assert dict(loaded(texts, padding=True)) == dict(tokenizer(texts, padding=True))
    assert loaded.decode(loaded(texts[0])["input_ids"][1:]) == texts[0]
    assert loaded.apply_chat_template(CHAT)["input_ids"] == tokenizer.apply_chat_template(CHAT)["input_ids"]


def test_a_reloaded_classifier_gives_the_same_scores_under_the_same_head_names(tmp_path: Path) -> None:
    model = tiny_sequence_classifier(["calm", "kind", "terse"])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    batch = TOKENIZER(["first text", "second"], padding=True, return_tensors="pt")
    with torch.no_grad():
        scores, reloaded_scores = model(**batch).logits, loaded(**batch).logits
    assert scores.shape == (2, 3)
    assert torch.equal(scores, reloaded_scores)
    assert loaded.config.id2label == {0: "calm", 1: "kind", 2: "terse"}
    assert loaded.config.problem_type == "regression"
    assert loaded.score.weight.dtype == torch.float32


def test_equal_seeds_give_equal_models_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    untouched = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = (tiny_causal_lm(seed, layers=1).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.rand(2), untouched)


def test_the_language_model_has_a_logit_for_every_token_of_the_tokenizer() -> None:
    batch = TOKENIZER("abc", return_tensors="pt")
    assert tiny_causal_lm(layers=1)(**batch).logits.shape == (1, 4, len(TOKENIZER))


@pytest.mark.parametrize("head_names", [[], ["a", "a"], "ab"])
def test_head_names_that_do_not_name_each_head_once_are_refused(head_names: list[str]) -> None:
    with pytest.raises(ValueError, match="head_names"):
        tiny_sequence_classifier(head_names)


def test_a_vocabulary_without_room_for_the_special_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=256"):
        tiny_llama_config(vocab_size=256)


@pytest.mark.parametrize("style", STYLES)
def test_the_texts_of_a_style_are_distinct_single_lines_of_60_to_160_bytes(style: str) -> None:
    texts = generate(style, 3000, seed=0)
    assert len(set(texts)) == 3000
    assert all(60 <= len(text.encode()) <= 160 and text == " ".join(text.split()) for text in texts)


def test_equal_seeds_give_equal_texts_and_other_seeds_other_texts() -> None:
    assert generate("fable", 20, seed=1) == generate("fable", 20, seed=1)
    assert generate("fable", 20, seed=1) != generate("fable", 20, seed=2)
    assert noise(5, 1) == noise(5, 1) != noise(5, 2)


def test_the_global_random_state_is_not_used() -> None:
    random.seed(5)
    state = random.getstate()
    corpus_membership(n_per_style=2)
    assert random.getstate() == state


def test_styles_share_words() -> None:
    words = [set(" ".join(generate(style, 500, seed=0)).replace(",", "").replace(";", "").split()) for style in STYLES]
    assert {"salt", "honey", "flour"} <= set.intersection(*words)


def test_an_unknown_style_or_too_many_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="style='poem' is unknown; use one of recipe"):
        generate("poem", 1, seed=0)
    with pytest.raises(ValueError, match="n=10000000 must lie between 0 and"):
        generate("fable", 10_000_000, seed=0)


@given(st.integers())
def test_shuffling_keeps_the_words_and_always_changes_their_order(seed: int) -> None:
    shuffled = shuffle_words("one two two", seed)
    assert shuffled != "one two two"
    assert sorted(shuffled.split()) == ["one", "two", "two"]


def test_a_text_with_a_single_order_of_words_cannot_be_shuffled() -> None:
    with pytest.raises(ValueError, match="'two two'"):
        shuffle_words("two two", 0)


def test_no_text_occurs_twice_anywhere_in_the_four_membership_datasets() -> None:
    texts = texts_of(*corpus_membership(n_per_style=40))
    assert len(texts) == len(set(texts)) == 4 * 4 * (40 + 10)


def test_no_negative_of_a_head_is_a_text_of_its_style() -> None:
    _, negatives, _, evaluation_negatives = corpus_membership(n_per_style=40)
    universe = {style: set(generate(style, 2 * (40 + 10), seed=0)) for style in STYLES}
    for row in [*negatives, *evaluation_negatives]:
        assert not any(row["text"] in universe[head] for head in row["heads"] or STYLES)


def test_soft_negatives_name_every_style_but_their_own_and_the_other_tiers_no_heads() -> None:
    _, negatives, _, _ = corpus_membership(n_per_style=4)
    own_style = {text: style for style in STYLES for text in generate(style, 10, seed=0)}
    for row in negatives:
        if row["tier"] == "soft":
            assert row["heads"] == [style for style in STYLES if style != own_style[row["text"]]]
        else:
            assert row["heads"] is None


def test_every_tier_has_as_many_rows_as_there_are_positives() -> None:
    train, negatives, evaluation, evaluation_negatives = corpus_membership(n_per_style=8)
    for positives, tiers in ((train, negatives["tier"]), (evaluation, evaluation_negatives["tier"])):
        assert {tier: list(tiers).count(tier) for tier in ("soft", "semi_firm", "furthest")} == dict.fromkeys(
            ("soft", "semi_firm", "furthest"), len(positives)
        )


def test_semi_firm_negatives_have_the_words_of_the_positives() -> None:
    train, negatives, _, _ = corpus_membership(n_per_style=4)
    semi_firm = [row["text"] for row in negatives if row["tier"] == "semi_firm"]
    assert sorted(sorted(text.split()) for text in semi_firm) == sorted(sorted(text.split()) for text in train["text"])


def test_equal_seeds_give_equal_membership_datasets() -> None:
    first, second, other = (corpus_membership(n_per_style=3, seed=seed) for seed in (0, 0, 1))
    assert [dataset.to_list() for dataset in first] == [dataset.to_list() for dataset in second]
    assert first[0].to_list() != other[0].to_list()


def test_less_than_one_text_per_style_is_refused() -> None:
    with pytest.raises(ValueError, match="n_per_style=0"):
        corpus_membership(n_per_style=0)


def test_the_nearest_byte_histogram_tells_the_styles_of_unseen_texts() -> None:
    train, _, evaluation, _ = corpus_membership(n_per_style=100)
    features, heads = byte_histograms(train["text"]), [STYLES.index(head) for head in train["head"]]
    centroids = torch.stack([features[torch.tensor(heads) == index].mean(dim=0) for index in range(len(STYLES))])
    nearest = torch.cdist(byte_histograms(evaluation["text"]), centroids).argmin(dim=1)
    expected = torch.tensor([STYLES.index(head) for head in evaluation["head"]])
    assert (nearest == expected).float().mean() > 0.95


def test_fifty_steps_of_the_tiny_model_teach_it_the_styles_of_unseen_texts() -> None:
    train, _, evaluation, _ = corpus_membership(n_per_style=100)
    model = tiny_sequence_classifier(STYLES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in train.iter(batch_size=8):
        scores = model(**TOKENIZER(batch["text"], padding=True, return_tensors="pt")).logits
        heads = torch.tensor([STYLES.index(head) for head in batch["head"]])
        torch.nn.functional.cross_entropy(scores, heads).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        scores = model(**TOKENIZER(evaluation["text"][:], padding=True, return_tensors="pt")).logits
    heads = torch.tensor([STYLES.index(head) for head in evaluation["head"]])
    assert (scores.argmax(dim=1) == heads).float().mean() > 0.9


def test_a_tidy_pair_has_the_same_words_and_length_in_another_order() -> None:
    for row in preference_pairs(16).filter(lambda row: row["head"] == "tidy"):
        assert row["chosen"] != row["rejected"]
        assert sorted(row["chosen"].split()) == sorted(row["rejected"].split())


def test_a_short_pair_has_two_texts_against_a_shorter_one() -> None:
    style_texts = {text for style in STYLES for text in generate(style, 8, seed=0)}
    for row in preference_pairs(16).filter(lambda row: row["head"] == "short"):
        assert len(row["chosen"]) < len(row["rejected"])
        assert row["chosen"] in style_texts
        assert any(row["rejected"] == f"{first} {second}" for first in style_texts for second in style_texts)


def test_heads_and_styles_take_turns_and_no_chosen_text_is_used_twice() -> None:
    pairs = preference_pairs(24)
    assert list(pairs["head"]) == list(PREFERENCE_HEADS) * 12
    assert len(set(pairs["prompt"])) == len(STYLES)
    assert len(set(pairs["chosen"])) == 24


def test_equal_seeds_give_equal_pairs_and_a_negative_number_is_refused() -> None:
    assert preference_pairs(9, seed=4).to_list() == preference_pairs(9, seed=4).to_list()
    assert preference_pairs(9, seed=4).to_list() != preference_pairs(9, seed=5).to_list()
    with pytest.raises(ValueError, match="n=-1"):
        preference_pairs(-1)


def test_no_rows_still_have_the_columns() -> None:
    assert preference_pairs(0).column_names == ["prompt", "chosen", "rejected", "head"]
