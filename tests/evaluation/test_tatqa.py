"""TAT-QA's figures over all questions."""

import json
import time

import pytest

from alignkit.evaluation.statistics import wilson_interval
from alignkit.evaluation.tatqa import score_tatqa
from alignkit.tasks.tatqa import load_tatqa
from tests.tasks.tatqa_context import small_context


@pytest.fixture(scope="module")
def dev(data_dir) -> list[dict]:
    return load_tatqa(data_dir / "tatqa" / "tatqa_dataset_dev.json")


@pytest.fixture(scope="module")
def sample(data_dir) -> dict:
    return json.loads((data_dir / "tatqa" / "sample_prediction.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def official(data_dir) -> dict:
    path = data_dir / "tatqa" / "official_scores_dev_sample_prediction.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_sample_prediction_has_the_official_figures(dev, sample):
    scores = score_tatqa(dev, sample)
    assert (scores["n"], scores["n_unanswered"]) == (1668, 50)
    assert scores["em"] == pytest.approx(45.9233, abs=5e-5)
    assert scores["f1"] == pytest.approx(58.8795, abs=5e-5)
    assert scores["scale"] == pytest.approx(90.9472, abs=5e-5)


def test_every_question_of_the_sample_prediction_has_its_official_score(dev, sample, official):
    per_question = score_tatqa(dev, sample)["per_question"]
    expected = {line["uid"]: (line["em"], line["f1"]) for line in official["per_question"]}
    assert {uid: (score["em"], score["f1"]) for uid, score in per_question.items()} == expected


def test_the_sample_prediction_has_the_official_figures_of_each_type(dev, sample, official):
    by_type = score_tatqa(dev, sample)["by_type"]
    assert list(by_type) == ["span", "multi-span", "arithmetic", "count"]
    for name, expected in official["by_answer_type"].items():
        assert by_type[name]["n"] == expected["n"]
        assert by_type[name]["em"] == pytest.approx(100 * expected["em"], abs=1e-9)
        assert by_type[name]["f1"] == pytest.approx(100 * expected["f1"], abs=1e-9)


def test_gold_as_prediction_misses_only_the_numbers_zero(dev):
    questions = [question for context in dev for question in context["questions"]]
    scores = score_tatqa(dev, {question["uid"]: [question["answer"], question["scale"]] for question in questions})
    assert scores["em"] == pytest.approx(99.7002, abs=5e-5)
    assert scores["f1"] == pytest.approx(99.7002, abs=5e-5)
    wrong = {uid for uid, score in scores["per_question"].items() if not score["em"]}
    assert wrong == {question["uid"] for question in questions if question["answer"] == 0}


def test_the_development_set_is_scored_within_a_second(dev, sample):
    start_s = time.process_time()
    score_tatqa(dev, sample)
    assert time.process_time() - start_s < 1


RIGHT = {
    "q0": [["$1,496.5"], "million"],
    "q1": [["our allowable costs"], ""],
    "q2": [["2018", "2019"], ""],
    "q3": [-12.6, "million"],
    "q4": ["2", ""],
}


def test_right_answers_to_all_questions_score_100():
    scores = score_tatqa([small_context()], RIGHT)
    assert (scores["em"], scores["f1"], scores["scale"], scores["n_unanswered"]) == (100, 100, 100, 0)


def test_a_question_without_a_prediction_counts_as_wrong_in_every_mean():
    predictions = {uid: answer for uid, answer in RIGHT.items() if uid != "q0"}
    scores = score_tatqa([small_context()], predictions)
    assert (scores["em"], scores["f1"], scores["scale"]) == (80, 80, 80)
    assert (scores["n"], scores["n_unanswered"]) == (5, 1)
    assert scores["by_type"]["span"]["em"] == 50
    assert scores["by_source"]["table"]["n"] == 3
    assert scores["by_source"]["table"]["em"] == pytest.approx(200 / 3)
    assert scores["per_question"]["q0"] == {
        "em": 0,
        "f1": 0,
        "scale": 0,
        "answered": False,
        "answer_type": "span",
        "answer_from": "table",
    }


def test_a_right_answer_with_a_wrong_scale_scores_for_neither_number_nor_scale():
    scores = score_tatqa([small_context()], {**RIGHT, "q3": [-12.6, "thousand"]})
    assert scores["per_question"]["q3"]["em"] == scores["per_question"]["q3"]["scale"] == 0
    assert scores["by_type"]["arithmetic"]["scale"] == 0


def test_intervals_are_wilsons_in_percent():
    scores = score_tatqa([small_context()], {uid: RIGHT[uid] for uid in ("q0", "q1")})
    for name in ("em", "f1", "scale"):
        assert scores[f"{name}_interval"] == pytest.approx([100 * bound for bound in wilson_interval(2, 5)])
    low, high = scores["by_type"]["count"]["em_interval"]
    assert low == 0 and 70 < high < 100


def test_predictions_for_unknown_questions_are_an_error_that_counts_them():
    with pytest.raises(ValueError, match="2 of 7 predictions are for no question of the contexts, the first for 'x'"):
        score_tatqa([small_context()], {**RIGHT, "x": ["1", ""], "y": ["1", ""]})


@pytest.mark.parametrize("prediction", ["2", ["2"], ["2", None], None])
def test_a_prediction_that_is_no_pair_of_answer_and_scale_is_named(prediction):
    with pytest.raises(ValueError, match=r"prediction for 'q4' is .* must be \[answer, scale\]"):
        score_tatqa([small_context()], {**RIGHT, "q4": prediction})


def test_duplicate_uids_of_contexts_are_an_error():
    with pytest.raises(ValueError, match="has the uid 'q0' of"):
        score_tatqa([small_context(), small_context()], RIGHT)
