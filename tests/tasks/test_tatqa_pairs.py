"""Preference pairs from TAT-QA."""

import copy
import random
from collections import Counter

import pytest
from trl import DPOConfig, DPOTrainer

from alignkit.evaluation.tatqa import score_tatqa
from alignkit.evaluation.tatqa_rules import is_number
from alignkit.evaluation.tatqa_text import extract_answer
from alignkit.tasks.tatqa import CORRUPTIONS, PromptForm, load_tatqa, tatqa_pairs, tatqa_prompts
from alignkit.tasks.tatqa_corruptions import corruptions_of
from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer, tiny_causal_lm
from tests.tasks.tatqa_context import small_context


def exact_matches(contexts: list[dict], answers: dict[str, str]) -> set[float]:
    """Of texts by uid, by the way that a model's answers go."""
    scores = score_tatqa(contexts, {uid: extract_answer(text) for uid, text in answers.items()})
    return {scores["per_question"][uid]["em"] for uid in answers}


def assert_differs_in_one_respect(corruption: str, chosen: str, rejected: str) -> None:
    (items, scale), (wrong, wrong_scale) = extract_answer(chosen), extract_answer(rejected)
    if corruption == "scale":
        assert items == wrong and scale != wrong_scale
        return
    assert scale == wrong_scale
    more, fewer = Counter(wrong) - Counter(items), Counter(items) - Counter(wrong)
    assert (more.total(), fewer.total()) == {"span_missing": (0, 1), "span_added": (1, 0)}.get(corruption, (1, 1))
    assert len(items) > 1 if corruption.startswith("span") else len(items) == 1
    if corruption == "number":
        assert len(items[0]) == len(wrong[0])
        assert sum(a != b for a, b in zip(items[0], wrong[0], strict=True)) == 1
    if corruption == "count":
        assert abs(int(items[0]) - int(wrong[0])) in (1, 2)
    if corruption == "cell":
        assert is_number(items[0]) == is_number(wrong[0])


@pytest.fixture(scope="module")
def dev(data_dir) -> list[dict]:
    return load_tatqa(data_dir / "tatqa" / "tatqa_dataset_dev.json")


@pytest.fixture(scope="module")
def dev_pairs(dev):
    return tatqa_pairs(dev)


def test_all_chosen_answers_have_exact_match_1_and_all_rejected_ones_0(dev, dev_pairs):
    rows = dev_pairs[0].to_list()
    assert exact_matches(dev, {row["uid"]: row["chosen"] for row in rows}) == {1}
    assert exact_matches(dev, {row["uid"]: row["rejected"] for row in rows}) == {0}


def test_the_two_sides_of_every_pair_differ_in_the_stored_respect_alone(dev_pairs):
    for row in dev_pairs[0]:
        assert_differs_in_one_respect(row["corruption"], row["chosen"], row["rejected"])


def test_nearly_every_development_question_has_a_pair_and_the_report_says_why_the_others_have_none(dev_pairs):
    dataset, report = dev_pairs
    assert report.n_questions == {"span": 701, "multi-span": 217, "arithmetic": 718, "count": 32}
    assert sum(report.n_pairs.values()) == sum(report.n_corrupted.values()) == len(dataset) == len(set(dataset["uid"]))
    for name, questions in report.n_questions.items():
        assert questions == report.n_pairs[name] + sum(report.n_dropped.get(name, {}).values())
        assert report.n_pairs[name] >= 0.97 * questions
    assert list(report.n_corrupted) == list(CORRUPTIONS)
    assert min(report.n_corrupted.values()) >= 30
    assert report.n_dropped["span"]["the written gold answer has no exact match"] == 2


def test_length_alone_does_not_tell_the_chosen_answer(dev_pairs, dev):
    _, report = dev_pairs
    assert 0.5 <= report.length_accuracy["characters"] < 0.53
    for name in ("number", "cell", "passage", "scale", "count"):
        assert abs(report.longer_is_chosen[name] - 0.5) < 0.06
    # A list with a span too few is shorter and one with a span too many is longer, so there are as many of both.
    assert (report.longer_is_chosen["span_missing"], report.longer_is_chosen["span_added"]) == (1, 0)
    assert 0.8 < report.n_corrupted["span_missing"] / report.n_corrupted["span_added"] < 1.25


def test_the_length_baseline_is_the_better_of_longer_and_shorter(dev_pairs):
    dataset, report = dev_pairs
    longer = sum(
        (len(row["chosen"]) > len(row["rejected"])) + 0.5 * (len(row["chosen"]) == len(row["rejected"]))
        for row in dataset
    ) / len(dataset)
    assert report.length_accuracy == {"characters": pytest.approx(max(longer, 1 - longer))}


def test_pairs_depend_on_uid_and_seed_alone(dev, dev_pairs):
    whole = {row["uid"]: row for row in dev_pairs[0]}
    random_state = random.getstate()
    part, _ = tatqa_pairs(list(reversed(dev[100:110])))
    assert random.getstate() == random_state
    assert all(row == whole[row["uid"]] for row in part)
    other, _ = tatqa_pairs(dev[100:110], seed=1)
    assert sum(row["rejected"] != whole[row["uid"]]["rejected"] for row in other) > len(other) / 2


def test_spans_of_a_list_are_a_line_each(dev_pairs):
    lists = dev_pairs[0].filter(lambda row: row["answer_type"] == "multi-span")
    # Two answers that hold the same span twice, once with a blank one beside it, are lists all the same.
    assert all("\n" in text.strip() for text in lists["chosen"])


def test_a_pair_can_be_read_by_hand():
    dataset, report = tatqa_pairs([small_context()])
    rows = {row["uid"]: row for row in dataset}
    assert rows["q3"]["prompt"] == tatqa_prompts([small_context()])["q3"]
    assert (rows["q3"]["chosen"], rows["q3"]["answer_type"]) == (" -12.6 million", "arithmetic")
    assert rows["q2"]["chosen"] == " 2019\n2018"
    assert rows["q4"]["corruption"] == "count" and rows["q4"]["rejected"] in (" 0", " 1", " 3", " 4")
    assert report.n_pairs == {"span": 2, "multi-span": 1, "arithmetic": 1, "count": 1}
    for row in dataset:
        assert_differs_in_one_respect(row["corruption"], row["chosen"], row["rejected"])


def test_a_gold_answer_that_cannot_be_written_right_has_no_pair():
    context = small_context()
    context["questions"][0]["answer"] = ["$3.0 million"]  # its scale is million too: read as 3,000,000 million
    dataset, report = tatqa_pairs([context])
    assert "q0" not in dataset["uid"]
    assert report.n_dropped == {"span": {"the written gold answer has no exact match": 1}}
    context["questions"] = context["questions"][:1]
    with pytest.raises(ValueError, match=r"none of 1 questions has a pair: \{'the written gold answer"):
        tatqa_pairs([context])


def test_a_question_whose_prompt_does_not_fit_is_counted():
    tokenizer = byte_tokenizer()
    context = small_context()
    context["questions"][0]["question"] *= 20
    dataset, report = tatqa_pairs([context], tokenizer, PromptForm(max_prompt_tokens=600))
    assert report.n_dropped == {"span": {"the prompt does not fit": 1}}
    assert set(report.length_accuracy) == {"characters", "tokens"}
    assert max(len(ids) for ids in tokenizer(list(dataset["prompt"]))["input_ids"]) <= 600


def test_a_wrong_scale_that_the_scorer_takes_for_right_is_not_used():
    context = small_context()
    question = {**context["questions"][3], "answer": 0, "scale": ""}
    # 0 million is 0: only another number is wrong.
    context["questions"] = [copy.deepcopy(question) | {"uid": f"q{number}"} for number in range(30)]
    dataset, _ = tatqa_pairs([context])
    assert set(dataset["corruption"]) <= {"number", "cell"}
    assert exact_matches([context], dict(zip(dataset["uid"], dataset["rejected"], strict=True))) == {0}


def test_a_wrong_year_is_a_year_of_the_table_or_of_the_same_century():
    context = small_context()
    question = {**context["questions"][0], "answer": ["2019"], "scale": ""}
    found = list(corruptions_of(question, (["2019"], ""), context, random.Random(0)))
    assert found[0] == ("cell", (["2018"], ""))
    assert all(items[0].startswith("20") for _, (items, _) in found)


@pytest.mark.parametrize("chat", [False, True])
def test_pairs_train_with_dpo_trainer_whose_completions_are_the_answers(tmp_path, chat):
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE if chat else None)
    form = PromptForm(max_prompt_tokens=600, chat=chat, chat_template_kwargs={"thinking": False} if chat else {})
    dataset, _ = tatqa_pairs([small_context()], tokenizer, form)
    assert ("chat_template_kwargs" in dataset.column_names) is chat
    trainer = DPOTrainer(
        model=tiny_causal_lm(max_positions=1024),
        ref_model=tiny_causal_lm(max_positions=1024),
        args=DPOConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=5,
            max_length=None,
            report_to=[],
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    for row, tokenised in zip(dataset, trainer.train_dataset, strict=True):
        answer = row["chosen"][0]["content"] if chat else row["chosen"]
        assert tokenizer.decode(tokenised["chosen_ids"], skip_special_tokens=True).strip() == answer.strip()
        assert len(tokenised["prompt_ids"]) <= 600
    assert trainer.train().training_loss == pytest.approx(0.6931, abs=1e-3)
