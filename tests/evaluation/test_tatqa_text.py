"""From text to [answer, scale] and back."""

import pytest

from alignkit.evaluation.tatqa import score_tatqa
from alignkit.evaluation.tatqa_text import answer_text, extract_answer, plain_number
from alignkit.tasks.tatqa import load_tatqa


@pytest.mark.parametrize(
    ("text", "answer", "scale"),
    [
        (" -12.6 million", ["-12.6"], "million"),
        ("1.5 Millions.", ["1.5"], "million"),
        ("$1,496.5 million", ["$1,496.5"], "million"),
        ("$1,496.5million", ["$1,496.5"], "million"),
        ("22.12 percent", ["22.12"], "percent"),
        ("12%", ["12%"], ""),
        ("(134) thousand", ["(134)"], "thousand"),
        ("(1,234)", ["(1,234)"], ""),
        ("2019", ["2019"], ""),
        ("2019.", ["2019"], ""),
        ("Answer: 3", ["3"], ""),
        ("The answer is -12.6 million.", ["-12.6"], "million"),
        ("**3.5 billion**", ["3.5"], "billion"),
        ('"net sales"', ["net sales"], ""),
        ("the end.", ["the end."], ""),
        ("unrealized losses of $6.4 million", ["unrealized losses of $6.4 million"], ""),
        ("a million", ["a million"], ""),
    ],
)
def test_one_line_is_one_item(text, answer, scale):
    assert extract_answer(text) == [answer, scale]


@pytest.mark.parametrize(
    ("text", "answer", "scale"),
    [
        ("Aerospace, defense, oil, and gas\nSensors", ["Aerospace, defense, oil, and gas", "Sensors"], ""),
        ("5 million\n7 million", ["5", "7"], "million"),
        ("5 million\n7 thousand", ["5 million", "7 thousand"], ""),
        ("5 million\nsales", ["5 million", "sales"], ""),
        ("- 5\n- 7", ["5", "7"], ""),
        ("1. China\n2. Singapore", ["China", "Singapore"], ""),
        ("1. China\n3. Singapore", ["1. China", "3. Singapore"], ""),
        ("a\n  b  ", ["a", "b"], ""),
    ],
)
def test_several_lines_are_several_items(text, answer, scale):
    assert extract_answer(text) == [answer, scale]


def test_a_single_dash_before_a_number_is_not_a_bullet():
    assert extract_answer("- 5") == [["- 5"], ""]


@pytest.mark.parametrize(
    "text",
    ["3\n\nQuestion: How many?", "3\nExplanation: three rows", "3\n  \nso 4", "Answer:\n3\nQuestion: x\nAnswer: 4"],
)
def test_what_follows_the_first_block_is_no_answer(text):
    assert extract_answer(text) == [["3"], ""]


@pytest.mark.parametrize("text", ["", "  \n\n ", "Answer:"])
def test_a_blank_text_is_no_answer(text):
    assert extract_answer(text) == [[], ""]


def test_a_number_inside_a_sentence_is_not_picked():
    answer, _ = extract_answer("The sales were 44.1 in 2019 and 56.7 in 2018")
    assert answer == ["The sales were 44.1 in 2019 and 56.7 in 2018"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (12.0, "12"),
        (-12.6, "-12.6"),
        (1e-05, "0.00001"),
        (12350, "12350"),
        (1e16, "10000000000000000"),
        ("1,2", "1,2"),
    ],
)
def test_a_number_is_written_without_exponent_and_zero_fraction(number, text):
    assert plain_number(number) == text


@pytest.mark.parametrize(
    ("answer", "scale", "text"),
    [
        (-12.6, "million", "-12.6 million"),
        (["$1,452.4", "$1,146.2"], "thousand", "$1,452.4 thousand\n$1,146.2 thousand"),
        (["3.0 million"], "million", "3.0 million"),
        (["12%"], "percent", "12%"),
        ([" a  b "], "", "a b"),
    ],
)
def test_an_answer_is_written_an_item_a_line_with_its_scale(answer, scale, text):
    assert answer_text(answer, scale) == text


def test_gold_answers_survive_writing_and_extraction_but_for_two(data_dir):
    contexts = load_tatqa(data_dir / "tatqa" / "tatqa_dataset_dev.json")
    questions = {question["uid"]: question for context in contexts for question in context["questions"]}
    scores = score_tatqa(
        contexts, {uid: extract_answer(answer_text(q["answer"], q["scale"])) for uid, q in questions.items()}
    )
    # One names its scale twice, and of the other the scorer reads no scale word behind a bracket.
    wrong = [questions[uid]["answer"] for uid, score in scores["per_question"].items() if not score["em"]]
    assert wrong == [["$(9.8) million"], ["$3.0 million"]]
    # Spans such as "$85.1 million" are stored without a scale, which the number's own word cannot tell.
    assert scores["by_type"]["arithmetic"]["scale"] == scores["by_type"]["count"]["scale"] == 100
    assert scores["scale"] == pytest.approx(95.44, abs=0.005)
