"""Conciseness: a length in characters of the completion alone, and an empty answer that can be made the worst."""

import math
import pickle

import pytest

from alignkit.tasks.conciseness import ConcisenessReward, conciseness_splits

REWARD = ConcisenessReward()


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("24", "24", 0),
        ("42", "24", 0),
        (" 24", "24", -1),
        ("The answer is 24.", "24", -15),
        ("", "24", -2),
        ("", "Atlantic", -8),
        ("A", "Atlantic", -7),
        ("naïve", "12345", 0),
        ("漢字🦊", "No", -1),
    ],
)
def test_the_reward_is_minus_the_difference_in_characters(completion: str, answer: str, expected: float) -> None:
    assert REWARD(prompts=["How long is this prompt?"], completions=[completion], answer=[answer]) == [expected]


def test_the_prompt_does_not_count() -> None:
    for prompt in ("", "x" * 1000, [{"role": "user", "content": "x" * 1000}]):
        assert REWARD([prompt], ["Honey"], ["Honey"]) == [0]


def test_conversations_count_the_content_of_their_last_message_and_other_columns_are_ignored() -> None:
    completions = [[{"role": "assistant", "content": "Dry!"}], [{"role": "assistant", "content": None}]]
    assert REWARD(prompts=[[], []], completions=completions, answer=["Dry", "Dry"], completion_ids=[[1], []]) == [
        -1,
        -3,
    ]


def test_an_empty_answer_is_close_to_the_best_without_the_option_and_the_worst_of_all_with_it() -> None:
    completions = ["L", "", " \n", "It is L", "x" * 500]
    answers = ["L"] * 5
    assert REWARD([""] * 5, completions, answers) == [0, -1, -1, -6, -499]
    assert ConcisenessReward(worst_reward=-100)([""] * 5, completions, answers) == [0, -100, -100, -6, -100]


def test_two_training_and_eight_test_questions_have_short_answers_and_no_prompt_in_common() -> None:
    train, test = conciseness_splits()
    assert (len(train), len(test)) == (2, 8)
    rows = train + test
    assert len({row["prompt"] for row in rows}) == len({row["answer"] for row in rows}) == 10
    assert all(set(row) == {"prompt", "answer"} and 1 <= len(row["answer"]) <= 8 for row in rows)
    assert all(row["prompt"].endswith("?\nAnswer:") and row["answer"] not in row["prompt"].split() for row in rows)


@pytest.mark.parametrize("worst_reward", [0, 1, math.nan, -math.inf])
def test_a_worst_reward_that_is_none_is_refused(worst_reward: float) -> None:
    with pytest.raises(ValueError, match=f"worst_reward={worst_reward} must be a finite number below 0"):
        ConcisenessReward(worst_reward)


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"completions": "2"}, TypeError, "completions is the string '2'; wrap it in a list"),
        ({"completions": [2]}, TypeError, "a completion is 2; give a string"),
        ({"answer": [2]}, TypeError, "answer holds 2, a int; give the answer as a string"),
        ({"answer": ["2", "3"]}, ValueError, "answer has 2 values for 1 completions"),
    ],
)
def test_columns_that_hold_something_else_are_refused_in_words(changes: dict, error: type, complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        REWARD(**{"prompts": [""], "completions": ["2"], "answer": ["2"]} | changes)


def test_the_reward_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(ConcisenessReward(-50)))([""], [""], ["2"]) == [-50]
