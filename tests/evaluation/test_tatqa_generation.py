"""A model asked all questions of TAT-QA contexts."""

import pytest
import torch

from alignkit.evaluation.generation import generate_completions
from alignkit.evaluation.tatqa_generation import evaluate_tatqa
from alignkit.evaluation.tatqa_text import extract_answer
from alignkit.tasks.tatqa import PromptForm, PromptTooLongError, tatqa_pairs, tatqa_prompts
from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer, tiny_causal_lm
from tests.tasks.tatqa_context import small_context

FORM = PromptForm(max_prompt_tokens=400)


def test_a_model_that_has_learned_the_answers_by_heart_scores_100():
    tokenizer, model = byte_tokenizer(), tiny_causal_lm()
    context = small_context()
    rows = []
    for row in tatqa_pairs([context], tokenizer, FORM)[0]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = tokenizer(row["chosen"], add_special_tokens=False)["input_ids"]
        rows.append((prompt, [*answer, tokenizer.eos_token_id]))
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    loss = torch.tensor(1.0)
    for _ in range(200):
        loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        if loss < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02
    model.train()
    scores = evaluate_tatqa(model, tokenizer, [context], FORM, batch_size=3)
    assert (scores["em"], scores["f1"], scores["n"]) == (100, 100, 5)
    assert scores["per_question"]["q3"]["text"] == " -12.6 million"
    assert scores["per_question"]["q3"]["answer"] == ["-12.6"]
    assert scores["per_question"]["q3"]["predicted_scale"] == "million"
    assert model.training


@pytest.mark.parametrize("decoding", [{}, {"do_sample": True, "temperature": 0.5, "seed": 3}])
def test_texts_are_those_of_the_prompts_that_fit(decoding):
    tokenizer, model, contexts = byte_tokenizer(), tiny_causal_lm(), [small_context("a"), small_context("b")]
    scores = evaluate_tatqa(model, tokenizer, contexts, FORM, max_new_tokens=8, stop_strings=(), **decoding)
    prompts = tatqa_prompts(contexts, tokenizer, FORM)
    texts = generate_completions(model, tokenizer, list(prompts.values()), max_new_tokens=8, **decoding)
    assert {uid: score["text"] for uid, score in scores["per_question"].items()} == dict(
        zip(prompts, texts, strict=True)
    )
    for score in scores["per_question"].values():
        assert [score["answer"], score["predicted_scale"]] == extract_answer(score["text"])


def test_a_chat_model_is_asked_in_messages():
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    form = PromptForm(max_prompt_tokens=420, chat=True)
    scores = evaluate_tatqa(tiny_causal_lm(), tokenizer, [small_context()], form, max_new_tokens=4)
    assert scores["n"] == 5


def test_a_question_that_does_not_fit_is_an_error_and_not_left_out():
    with pytest.raises(PromptTooLongError, match=r"question q0: .* more than max_prompt_tokens=100"):
        evaluate_tatqa(tiny_causal_lm(), byte_tokenizer(), [small_context()], PromptForm(max_prompt_tokens=100))
