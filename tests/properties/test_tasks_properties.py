"""Tasks made in code and their graders: what is made can be graded, and the grade knows right from wrong."""

import random

import pytest
from hypothesis import strategies as st

from alignkit.evaluation.tatqa import score_tatqa
from alignkit.evaluation.tatqa_rules import SCALES, answer_string, is_number, number_value, score_answer
from alignkit.evaluation.tatqa_text import answer_text, extract_answer, plain_number
from alignkit.rewards.arithmetic import evaluate_expression, numbers_used
from alignkit.tasks.conciseness import ConcisenessReward
from alignkit.tasks.countdown import (
    CountdownReward,
    answer_score,
    countdown_prompt,
    countdown_trace,
    format_score,
    generate_countdown,
)
from alignkit.tasks.requests import CONTENT_FLAWS, MANNER_FLAWS, answer, check_answer, remarks, requests, start_texts
from alignkit.tasks.tables import outside_texts, recall_facts, table_contexts
from alignkit.tasks.tatqa_pairs import tatqa_pairs
from alignkit.tasks.tatqa_prompts import PromptForm, header_rows, markdown_row, tatqa_prompts
from alignkit.tasks.toy import STYLES, byte_tokenizer, generate, noise, shuffle_words
from tests.properties.given import given
from tests.properties.strategies import ORDERS, SEEDS, TEXTS, shuffled

# ---- Countdown ----


@given(SEEDS, st.integers(1, 3), ORDERS)
def test_every_problem_has_a_solution_that_the_grader_accepts_and_only_with_its_own_numbers(seed, n, order):
    for row in generate_countdown(n, seed=seed):
        numbers, target = row["numbers"], row["target"]
        assert evaluate_expression(row["solution"]) == target
        assert sorted(numbers_used(row["solution"])) == sorted(numbers)
        completion = f"<answer>{row['solution']}</answer>"
        assert answer_score(completion, shuffled(numbers, order), target) == 1
        assert answer_score(completion, numbers, target + 1) == 0
        assert answer_score(completion, [*numbers, 1], target) == 0
        assert row["prompt"] == countdown_prompt(numbers, target)


@given(SEEDS, st.integers(0, 3), TEXTS.filter(lambda text: "<" not in text))
def test_a_trace_has_full_reward_and_what_is_written_around_it_costs_the_format_alone(seed, failures, around):
    [row] = generate_countdown(1, seed=seed)
    trace = countdown_trace(row, seed=seed, max_failures=failures)
    columns = {"numbers": [row["numbers"]], "target": [row["target"]]}
    assert CountdownReward()(None, [trace], **columns) == [1.1]
    [reward] = CountdownReward()(None, [trace + around], **columns)
    assert reward == pytest.approx(1.1 if not around.strip() else 1 + 0.1 * 0.6)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "x", " "]), max_size=8))
def test_the_format_is_whole_half_or_nothing_and_blanks_around_it_change_nothing(parts):
    text = "".join(parts)
    score = format_score(text)
    assert score in (0.0, 0.1, 0.5, 0.6, 1.0)
    assert format_score(f" {text}\n") == score
    assert score >= 0.5 or "</answer>" not in text.partition("<answer>")[2]


@given(SEEDS, st.integers(1, 4), st.integers(0, 4))
def test_more_problems_begin_with_the_fewer(seed, n, more):
    assert generate_countdown(n + more, seed=seed)[:n] == generate_countdown(n, seed=seed)


@given(TEXTS, TEXTS, st.integers(1, 30))
def test_conciseness_is_best_at_the_length_of_the_answer_and_never_below_the_worst(text, shortest, worst):
    [plain] = ConcisenessReward()(None, [text], [shortest])
    [bounded] = ConcisenessReward(-worst)(None, [text], [shortest])
    assert plain == -abs(len(text) - len(shortest))
    assert -worst <= bounded <= 0
    assert ConcisenessReward(-worst)(None, [" " * len(shortest)], [shortest]) == [-worst]


# ---- Requests ----


@given(
    SEEDS,
    st.integers(0, 239),
    st.none() | st.sampled_from(CONTENT_FLAWS),
    st.lists(st.sampled_from(MANNER_FLAWS), unique=True),
)
def test_each_flaw_of_an_answer_is_seen_for_what_it_is(seed, place, content, manner):
    request = requests("evaluation")[place]
    checked = check_answer(request, answer(request, random.Random(seed), content=content, manner=manner))
    assert checked.correct == (content is None)
    assert checked.polite == ("insult" not in manner)
    assert checked.formatted == (not manner)
    assert checked.good == (content is None and not manner)


@given(st.integers(0, 2))
def test_requests_that_are_held_out_are_in_no_text_of_the_training(seed):
    train, held_out = requests("train", seed=seed), {one.prompt for one in requests("evaluation", seed=seed)}
    assert not held_out & {one.prompt for one in train}
    assert requests("train", n=9, seed=seed) == train[:9]
    texts = start_texts(60, seed=seed)
    assert len(texts) == 60
    assert not any(text.startswith(tuple(held_out)) for text in texts)


@given(SEEDS, st.integers(1, 40), st.integers(0, 10))
def test_texts_of_the_tasks_are_the_same_for_the_same_seed_and_begin_with_the_fewer(seed, n, more):
    assert remarks(n + more, seed=seed)[:n] == remarks(n, seed=seed)
    for style in STYLES:
        texts = generate(style, n, seed=seed)
        assert len(set(texts)) == n
    assert len(outside_texts(n, seed=seed)) == n
    assert len(noise(n, seed)) == n


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=2, max_size=8), SEEDS)
def test_shuffled_words_are_the_same_words_in_another_order(words, seed):
    if len(set(words)) < 2:
        with pytest.raises(ValueError, match="no other order"):
            shuffle_words(" ".join(words), seed)
        return
    other = shuffle_words(" ".join(words), seed).split()
    assert sorted(other) == sorted(words) and other != words


@given(TEXTS.filter(lambda text: "<" not in text))
def test_bytes_give_any_text_back(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert ids[1:] == list(text.encode())
    assert tokenizer.decode(ids[1:]) == text


# ---- TAT-QA ----

PLAIN_NUMBERS = st.decimals(-(10**7), 10**7, places=2).map(plain_number)
NUMBERS = PLAIN_NUMBERS | st.integers(-(10**6), 10**6).map(lambda n: f"{n:,}") | st.integers(1, 999).map("${}".format)


@given(st.lists(NUMBERS, min_size=1, max_size=3), st.sampled_from(SCALES))
def test_numbers_with_their_scale_are_read_back_as_they_were_written(items, scale):
    assert extract_answer(answer_text(items, scale)) == [items, scale]
    assert extract_answer(f"Answer: {answer_text(items, scale)}\n\nQuestion: x") == [items, scale]
    bulleted = "\n".join(f"- {line}" for line in answer_text([*items, items[0]], scale).split("\n"))
    assert extract_answer(bulleted) == [[*items, items[0]], scale]


@given(st.lists(NUMBERS, min_size=1, max_size=3, unique=True), st.sampled_from(SCALES), ORDERS)
def test_an_answer_is_right_against_itself_in_any_order_and_one_more_item_is_wrong(items, scale, order):
    kind = "multi-span" if len(items) > 1 else "arithmetic"
    assert score_answer(shuffled(items, order), scale, items, scale, kind) == (1.0, 1.0)
    found = score_answer([*items, "other"], scale, items, scale, "multi-span")
    assert found.em == 0 and 0 <= found.f1 < 1
    assert score_answer([], scale, items, scale, kind) == (0.0, 0.0)


@given(TEXTS, TEXTS, st.sampled_from(SCALES), st.sampled_from(["span", "multi-span", "arithmetic", "count"]))
def test_scores_of_any_two_texts_are_shares_and_exact_match_has_f1_of_one(given_text, wanted, scale, kind):
    em, f1 = score_answer([given_text], scale, [wanted], scale, kind)
    assert 0 <= em <= 1 and 0 <= f1 <= 1
    assert f1 >= em
    assert score_answer([wanted], scale, [wanted], scale, "span") == (1.0, 1.0) or wanted == ""


@given(st.decimals(-(10**9), 10**9, places=3, allow_nan=False))
def test_the_value_of_a_number_does_not_depend_on_how_it_is_written(number):
    text = plain_number(number)
    value = number_value(text)
    assert is_number(text)
    assert value == pytest.approx(float(number), abs=1e-4)
    assert number_value(f"${text}") == number_value(f" {text}".strip()) == value
    assert number_value(f"{text} million") == pytest.approx(1e6 * float(number), rel=1e-9, abs=1e-3)
    assert number_value(f"{text}%") == pytest.approx(float(number) / 100, abs=1e-4)


@given(st.lists(st.text(alphabet="ab1 .", max_size=6), min_size=1, max_size=4), ORDERS)
def test_the_order_of_items_does_not_show_in_the_string_that_is_compared(items, order):
    assert answer_string(shuffled(items, order), "million") == answer_string(items, "million")


@given(SEEDS, st.integers(1, 2), st.integers(1, 4))
def test_made_tables_can_be_asked_answered_and_paired(seed, n, n_questions):
    contexts = table_contexts(n, seed=seed, n_questions=n_questions)
    questions = [question for context in contexts for question in context["questions"]]
    gold = {
        question["uid"]: extract_answer(answer_text(question["answer"], question["scale"])) for question in questions
    }
    scores = score_tatqa(contexts, gold)
    assert (scores["em"], scores["f1"], scores["scale"]) == (100.0, 100.0, 100.0)
    assert score_tatqa(contexts, {})["n_unanswered"] == len(questions)
    prompts = tatqa_prompts(contexts)
    assert prompts.keys() == gold.keys()
    for question in questions:
        assert prompts[question["uid"]].endswith(f"Question: {question['question']}\nAnswer:")
    pairs, report = tatqa_pairs(contexts, seed=seed)
    assert sum(report.n_pairs.values()) == len(pairs)
    wrong = {row["uid"]: extract_answer(row["rejected"]) for row in pairs}
    right = {row["uid"]: extract_answer(row["chosen"]) for row in pairs}
    per_question = score_tatqa(contexts, wrong)["per_question"]
    assert all(per_question[uid]["em"] == 0 for uid in wrong)
    assert all(score_tatqa(contexts, right)["per_question"][uid]["em"] == 1 for uid in right)


CELLS = st.lists(st.lists(st.text(alphabet="ab|1 ", max_size=5), min_size=2, max_size=5), min_size=1, max_size=6)


@given(CELLS, st.integers(1, 3), st.integers(2, 3), TEXTS)
def test_a_prompt_keeps_header_and_question_within_its_limits(cells, max_rows, max_columns, question):
    context = {
        "table": {"uid": "t", "table": cells},
        "paragraphs": [{"order": 1, "text": "some words about a and b " * 9}],
        "questions": [
            {"uid": "q", "question": question, "answer": ["a"], "answer_type": "span", "answer_from": "t", "scale": ""}
        ],
    }
    form = PromptForm(max_rows=max_rows, max_columns=max_columns, max_passage_characters=100)
    prompt = tatqa_prompts([context], form=form)["q"]
    table = prompt.partition("Table:\n")[2].partition("\n\n")[0].split("\n")
    assert len(table) <= 1 + header_rows(cells) + max_rows
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert table[0].replace("\\|", "").count("|") <= 1 + max_columns
    passages = prompt.partition("Passages:\n")[2].partition("\n\n")[0]
    assert len(passages) <= 100
    assert prompt.endswith(f"Question: {' '.join(question.split())}\nAnswer:")


@given(st.lists(st.text(max_size=8), min_size=1, max_size=4))
def test_a_row_of_markdown_has_a_cell_for_each_text(cells):
    row = markdown_row(cells)
    assert "\n" not in row and "\r" not in row
    assert row.replace("\\|", "").count("|") == len(cells) + 1


@given(SEEDS, st.integers(1, 5), st.integers(1, 6))
def test_each_fact_that_is_asked_for_stands_in_the_list_once(seed, n, n_facts):
    for listed in recall_facts(n, seed=seed, n_facts=n_facts):
        assert len(listed["questions"]) == n_facts
        for name, number in listed["questions"]:
            assert listed["facts"].count(f"{name} {number}") == 1 or f"{name} {number}" in listed["facts"]
            assert listed["facts"].count(f"{name} ") == 1
