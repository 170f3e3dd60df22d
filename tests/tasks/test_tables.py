"""Generated tables in the form of TAT-QA: right answers, pairs and lessons, and a model that starts near look-up."""

import re

import pytest
import torch

from alignkit.evaluation.tatqa import score_tatqa
from alignkit.evaluation.tatqa_text import answer_text, extract_answer
from alignkit.tasks.tables import outside_texts, recall_facts, table_contexts
from alignkit.tasks.tables_lessons import LESSONS, lesson_rows
from alignkit.tasks.tables_model import tables_model, tables_tokenizer
from alignkit.tasks.tatqa import tatqa_pairs, tatqa_prompts


@pytest.fixture(scope="module")
def contexts():
    return table_contexts(60, seed=3)


@pytest.fixture(scope="module")
def tokenizer():
    return tables_tokenizer()


def test_equal_seeds_give_equal_tables_and_no_table_comes_twice(contexts):
    assert table_contexts(60, seed=3) == contexts != table_contexts(60, seed=4)
    assert len({str(context["table"]["table"]) for context in contexts}) == 60


def test_the_answer_of_every_kind_of_question_follows_from_its_table(contexts):
    kinds = set()
    for context in contexts:
        [_, *years], *rows = context["table"]["table"]
        cells = {row[0]: dict(zip(years, map(int, row[1:]), strict=True)) for row in rows}
        for question in context["questions"]:
            text, answer = question["question"], question["answer"]
            item = next(name for name in cells if re.search(rf"\b{name}\b", text))
            asked = re.findall(r"\b20\d\d\b", text)
            values = [cells[item][year] for year in asked]
            if "change" in text:
                assert answer == values[1] - values[0]
            elif "sum" in text:
                assert answer == sum(values)
            elif "at least" in text:
                least = int(re.findall(r"at least (\d+)", text)[0])
                assert answer == sum(value >= least for value in cells[item].values())
            elif "best" in text:
                assert answer == [max(cells[item], key=cells[item].__getitem__)]
            else:
                assert answer == [str(value) for value in values]
            kinds.add(question["answer_type"])
    assert kinds == {"span", "multi-span", "arithmetic", "count"}


def test_the_gold_answers_score_full_marks_by_the_official_rules(contexts):
    gold = {
        question["uid"]: extract_answer(answer_text(question["answer"], question["scale"]))
        for context in contexts
        for question in context["questions"]
    }
    assert score_tatqa(contexts, gold)["em"] == 100


def test_pairs_come_from_the_code_for_the_real_dataset(contexts, tokenizer):
    pairs, report = tatqa_pairs(contexts, tokenizer)
    assert len(pairs) > 200 and set(report.n_pairs) == {"span", "multi-span", "arithmetic", "count"}


def test_decoding_gives_any_text_back(contexts, tokenizer):
    texts = [*tatqa_prompts(contexts).values(), *outside_texts(20), "Grüße, 3.14 — \n\t tabs"]
    for text in texts:
        ids = tokenizer(str(text))["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids[1:]) == str(text)


def test_lessons_have_labels_on_answers_alone_and_come_in_their_order(tokenizer):
    rows = lesson_rows(tokenizer, lessons={"recall": 1, "cells": 1}, batch_size=2)
    assert len(rows) == 4 and all(len(row["input_ids"]) == len(row["labels"]) for row in rows)
    learned = [[token for token in row["labels"] if token != -100] for row in rows]
    facts, cells = tokenizer.decode(learned[0]), tokenizer.decode(learned[2])
    assert re.fullmatch(r"( \d+<eos>)+", facts) and re.fullmatch(r"( \d+ (thousand|million|billion)<eos>)+", cells)


@pytest.mark.parametrize(
    ("lessons", "message"),
    [({"sums": 1}, "lessons names 'sums'"), ({"cells": -1}, "must not be negative"), ({"cells": 0}, "at least one")],
)
def test_lessons_that_are_none_are_refused(tokenizer, lessons, message):
    with pytest.raises(ValueError, match=message):
        lesson_rows(tokenizer, lessons=lessons)


def test_the_model_is_the_same_for_a_seed_and_leaves_the_random_state_alone(tokenizer):
    state = torch.random.get_rng_state()
    first, again, other = tables_model(tokenizer, 0), tables_model(tokenizer, 0), tables_model(tokenizer, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [dict(model.named_parameters()) for model in (first, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["lm_head.weight"], weights[2]["lm_head.weight"])


def test_facts_are_asked_for_once_each():
    [listed] = recall_facts(1, seed=5)
    assert sorted(f"{name} {number}" for name, number in listed["questions"]) == sorted(
        listed["facts"].removeprefix("Facts: ").removesuffix(".").split(", ")
    )
    assert list(LESSONS) == ["repeat", "recall", "one_year", "cells", "questions"]


@pytest.mark.parametrize("arguments", [{"n": 0}, {"n": 1, "n_questions": 13}])
def test_numbers_outside_their_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must"):
        table_contexts(**arguments)
