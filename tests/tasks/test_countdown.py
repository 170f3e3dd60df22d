"""Countdown: problems that can be solved and never leak between splits, and a reward that no known trick gets."""

import pickle
import random
from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from alignkit.rewards.arithmetic import evaluate_expression, numbers_used
from alignkit.tasks.countdown import (
    CountdownReward,
    answer_score,
    countdown_prompt,
    countdown_trace,
    format_score,
    generate_countdown,
    generate_splits,
)

REWARD = CountdownReward()
ROWS = generate_countdown(300, seed=0)


def reward(completion: object, numbers: tuple[int, ...] = (1, 2), target: int = 3, prompt: object = "") -> float:
    (value,) = REWARD(prompts=[prompt], completions=[completion], numbers=[list(numbers)], target=[target])
    return value


def answered(expression: str) -> str:
    return f"<think>so</think>\n<answer>{expression}</answer>"


def key(row: dict) -> tuple:
    return (row["target"], *sorted(row["numbers"]))


@pytest.mark.parametrize("row", ROWS[:50])
def test_every_problem_is_solved_by_its_solution(row: dict) -> None:
    assert evaluate_expression(row["solution"]) == row["target"]
    assert sorted(numbers_used(row["solution"])) == sorted(row["numbers"])
    assert reward(answered(row["solution"]), row["numbers"], row["target"]) == pytest.approx(1.1)


def test_problems_have_three_or_four_numbers_about_equally_often_and_lie_in_their_ranges() -> None:
    assert 100 < Counter(len(row["numbers"]) for row in ROWS)[3] < 200
    assert all(type(row["target"]) is int and 10 <= row["target"] <= 99 for row in ROWS)
    assert all(1 <= number <= 99 for row in ROWS for number in row["numbers"])
    rows = generate_countdown(40, seed=1, numbers=(2,), number_range=(3, 9), target_range=(5, 30))
    assert all(len(row["numbers"]) == 2 and 5 <= row["target"] <= 30 for row in rows)
    assert all(3 <= number <= 9 for row in rows for number in row["numbers"])


def test_all_four_operators_occur_in_the_solutions() -> None:
    assert set("+-*/") <= set("".join(row["solution"] for row in ROWS))


def test_equal_seeds_give_equal_problems_other_seeds_others_and_more_problems_begin_with_the_same() -> None:
    random.seed(3)
    untouched = random.random()
    random.seed(3)
    assert generate_countdown(30, seed=0) == ROWS[:30]
    assert random.random() == untouched
    assert generate_countdown(30, seed=1) != ROWS[:30]


def test_train_and_test_share_no_problem_up_to_the_order_of_the_numbers() -> None:
    # So small a space that independent draws would surely overlap.
    train, test = generate_splits(150, 60, seed=0, numbers=(2, 3), number_range=(1, 6), target_range=(1, 20))
    assert (len(train), len(test)) == (150, 60)
    keys = [key(row) for row in train + test]
    assert len(set(keys)) == 210


def test_a_space_is_used_up_to_its_last_problem_and_one_more_is_an_error_in_words() -> None:
    # Pairs from 1, 2, 3 make these targets with every value a positive integer:
    # 1,1: 1 2;  1,2: 1 2 3;  1,3: 2 3 4;  2,2: 1 4;  2,3: 1 5 6;  3,3: 1 6 9.
    expected = {(1, 1, 1), (2, 1, 1), (1, 1, 2), (2, 1, 2), (3, 1, 2), (2, 1, 3), (3, 1, 3), (4, 1, 3)}
    expected |= {(1, 2, 2), (4, 2, 2), (1, 2, 3), (5, 2, 3), (6, 2, 3), (1, 3, 3), (6, 3, 3), (9, 3, 3)}
    settings = {"numbers": (2,), "number_range": (1, 3), "target_range": (1, 99)}
    assert {key(row) for row in generate_countdown(16, seed=0, **settings)} == expected
    with pytest.raises(ValueError, match=r"n=17 .* and 16 were found with numbers=\(2,\), .* ask for fewer or widen"):
        generate_countdown(17, seed=0, **settings)


def test_a_count_of_numbers_that_is_used_up_leaves_its_turns_to_the_others() -> None:
    rows = generate_countdown(40, seed=0, numbers=(2, 3), number_range=(1, 3), target_range=(1, 99))
    assert Counter(len(row["numbers"]) for row in rows)[2] == 16


def test_a_target_out_of_reach_is_an_error_in_words() -> None:
    with pytest.raises(ValueError, match="n=1 problems were asked for and 0 were found"):
        generate_countdown(1, seed=0, numbers=(2,), number_range=(1, 2), target_range=(50, 60))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"n": -1}, "n=-1 must be a whole number"),
        ({"n": 2.5}, r"n=2\.5 must be a whole number"),
        ({"numbers": ()}, r"numbers=\(\) must list how many"),
        ({"numbers": (1, 3)}, r"numbers=\(1, 3\) must list how many"),
        ({"numbers": (9,)}, "each from 2 to 8"),
        ({"numbers": 3}, "numbers=3 must list how many"),
        ({"number_range": (0, 9)}, r"number_range=\(0, 9\) must be"),
        ({"number_range": (9, 3)}, r"number_range=\(9, 3\) must be"),
        ({"target_range": (99, 10)}, r"target_range=\(99, 10\) must be"),
    ],
)
def test_settings_that_make_no_problems_are_refused(settings: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        generate_countdown(**{"n": 1, "seed": 0} | settings)


def test_a_negative_split_is_refused() -> None:
    with pytest.raises(ValueError, match="n_train=-1 and n_test=2 must not be negative"):
        generate_splits(-1, 2, seed=0)


def test_no_problems_are_no_rows() -> None:
    assert generate_countdown(0, seed=0) == []


def test_a_prompt_names_the_numbers_and_the_target_and_ends_with_its_line() -> None:
    prompt = countdown_prompt([25, 4, 3], 63)
    assert prompt.startswith("Numbers: 25, 4, 3. Target: 63.\n") and prompt.endswith(".\n")
    assert all(row["prompt"] == countdown_prompt(row["numbers"], row["target"]) for row in ROWS)


def test_rows_survive_a_dataset_unchanged() -> None:
    assert Dataset.from_list(ROWS[:5]).to_list() == ROWS[:5]


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        ("<think>a</think>\n<answer>b</answer>", 1),
        (" \n<think>a\nb</think> \r\n\t <answer>\nb\n</answer>\n\n", 1),
        ("<think>a < b > c </ d</think><answer>1</answer>", 1),
        ("<think>a</think> then <answer>b</answer>", 0.6),
        ("Sure: <think>a</think><answer>b</answer>", 0.6),
        ("<think>a</think><answer>b</answer>!", 0.6),
        ("<think>a</think><answer>b</answer>\0", 0.6),
        ("<answer>b</answer><think>a</think>", 0.6),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.6),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.6),
        ("<think><think>a</think></think><answer>b</answer>", 0.6),
        ("<think>a<answer>b</answer></think>", 0.6),
        ("<think>a</think><answer><answer>b</answer></answer>", 0.6),
        ("<think>a</think><answer>b</answer></answer>", 0.6),
        ("<think></think><answer>b</answer>", 0.6),
        ("<think>\n</think><answer>b</answer>", 0.6),
        ("<think>a</think><answer> </answer>", 0.6),
        ("<answer>b</answer>", 0.5),
        ("a</think><answer>b</answer>", 0.5),
        ("<think>a<answer>b</answer>", 0.5),
        ("<THINK>a</THINK><answer>b</answer>", 0.5),
        ("<think>a</think>b", 0.1),
        ("<think>a</think><answer>b", 0.1),
        ("<think>a</think>b</answer>", 0.1),
        ("<think>a</think></answer>b<answer>", 0.1),
        ("</think><think>", 0),
        ("< think>a</ think><answer >b</answer >", 0),
        ("", 0),
        ("\0", 0),
        ("1+2", 0),
    ],
)
def test_the_format_is_whole_or_a_tenth_for_thinking_and_a_half_for_answering(completion: str, score: float) -> None:
    assert format_score(completion) == pytest.approx(score)
    assert reward(completion) == pytest.approx(0.1 * score)


@pytest.mark.parametrize("expression", ["1+2", "2+1", " 1 + 2 ", "(1)+(2)", "((1+2))"])
def test_a_right_answer_counts_however_it_is_written(expression: str) -> None:
    assert reward(answered(expression)) == pytest.approx(1.1)


def test_an_exact_fraction_on_the_way_is_right_and_a_near_miss_is_not() -> None:
    assert reward(answered("8/(3-8/3)"), (8, 3, 8, 3), 24) == pytest.approx(1.1)
    assert reward(answered("1/3*3000001"), (1, 3, 3000001), 1000000) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("expression", "numbers", "target"),
    [
        ("2**3", (2, 3), 8),
        ("7//2", (7, 2), 3),
        ("0x10", (16,), 16),
        ("0x10", (0, 10), 16),
        ("1_0", (10,), 10),
        ("1_0+2", (1, 0, 2), 12),
        ("95**98**99", (95, 98, 99), 1),
        ("9**9**9**9", (9, 9, 9, 9), 9),
        ("-1+4", (1, 4), 3),
        ("4+-1", (1, 4), 3),
        ("2-(-1)", (1, 2), 3),
        ("12", (1, 2), 12),
        ("1 2", (1, 2), 12),
        ("01+02", (1, 2), 3),
        ("1+2+1-1", (1, 2), 3),
        ("2+2-1", (1, 2), 3),
        ("1+1+1", (1,), 3),
        ("3", (1, 2), 3),
        ("3*1", (1, 2, 3), 3),
        ("1+2*1", (1, 2), 3),
        ("1+2\n", (1, 2), 3),
        ("\n1+2", (1, 2), 3),
        ("1+\t2", (1, 2), 3),
        ("1+2=3", (1, 2), 3),
        ("1+2.0", (1, 2), 3),
        ("1e0+2", (1, 2), 3),
        ("１+２", (1, 2), 3),
        ("١+٢", (1, 2), 3),
        ("1+2²", (1, 2), 3),
        ("6÷2", (6, 2), 3),
        ("1+2\0", (1, 2), 3),
        ("\0", (1, 2), 3),
        ("", (), 0),
        ("", (1, 2), 3),
        (" ", (1, 2), 3),
        ("2/(1-1)", (1, 1, 2), 0),
        ("1+2#", (1, 2), 3),
        ("int('3')*1", (1, 3), 3),
        ("__import__('os').getpid()*0+1+2", (1, 2), 3),
        ("1+2", (1, 2), 4),
        ("1+2", (1, 2, 2), 3),
        ("1+2", (1, 1), 3),
    ],
)
def test_an_answer_that_is_wrong_or_a_trick_earns_the_format_at_most(expression, numbers, target) -> None:
    assert answer_score(answered(expression), numbers, target) == 0
    assert reward(answered(expression), numbers, target) <= 0.1


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("<answer>2+1</answer> or <answer>1*2</answer>", 0),
        ("<answer>1*2</answer> no, <answer>1+2</answer>", 1),
        ("<answer>1+2</answer> and <answer>", 1),
        ("<answer>1+2</answer></answer>", 1),
        ("<think>it goes into <answer>, I know</think><answer>1+2</answer>", 1),
        ("<answer>1*2<answer>1+2</answer></answer>", 1),
        ("<answer>1+2<answer></answer></answer>", 0),
        ("<answer>1+2</think>", 0),
        ("</answer>1+2<answer>", 0),
        ("1+2", 0),
        ("", 0),
    ],
)
def test_the_last_answer_block_is_the_answer(completion: str, score: float) -> None:
    assert answer_score(completion, [1, 2], 3) == score


@pytest.mark.parametrize(
    "unit", ["<think>", "<answer>", "</answer>", "<think></think>", "<answer></answer>", "<answer>1+1", "<", " ", "\0"]
)
@pytest.mark.timeout(20)
def test_a_megabyte_of_tags_earns_no_answer_and_ends_at_once(unit: str) -> None:
    text = unit * (10**6 // len(unit))
    assert reward(text) <= 0.06
    assert reward(f"<think>a</think><answer>{text}</answer>") <= 0.1


def test_a_right_answer_behind_a_megabyte_of_thought_is_right() -> None:
    assert reward(f"<think>{'hm ' * 300_000}</think><answer>1+2</answer>") == pytest.approx(1.1)


@given(st.text(alphabet="<>/thinkaswer12+ \n", max_size=60), st.booleans())
def test_any_text_earns_between_0_and_1_and_a_tenth(text: str, wrapped: bool) -> None:
    assert 0 <= reward(answered(text) if wrapped else text) <= 1.1


def test_a_prompt_with_all_tags_and_the_solution_in_it_earns_nothing() -> None:
    prompt = countdown_prompt([1, 2], 3) + answered("1+2")
    assert reward("", prompt=prompt) == reward("no idea", prompt=prompt) == 0
    assert reward("</think><answer>1+2</answer>", prompt=prompt + "<think>") == pytest.approx(1.05)


def test_conversations_are_judged_by_the_content_of_their_last_message() -> None:
    message = {"role": "assistant", "content": answered("1+2")}
    user = {"role": "user", "content": countdown_prompt([1, 2], 3)}
    assert reward([message], prompt=[user]) == pytest.approx(1.1)
    assert reward([message, {"role": "assistant", "content": "thanks"}]) == 0
    assert reward([{"role": "assistant", "content": None}]) == 0


def test_rewards_come_in_the_order_of_the_completions_and_ignore_other_columns() -> None:
    completions = [answered("1+2"), "", answered("2*3")]
    columns = {"completion_ids": [[1], [], [2]], "trainer_state": None, "solution": ["", "", ""]}
    rewards = REWARD(
        prompts=["", "", ""], completions=completions, numbers=[[2, 1], [1], [2, 3]], target=[3, 1, 6], **columns
    )
    assert rewards == pytest.approx([1.1, 0, 1.1])
    assert REWARD([], [], [], []) == []
    assert pickle.loads(pickle.dumps(REWARD))(["p"], [""], [[1]], [1]) == [0]


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"completions": "a"}, TypeError, "completions is the string 'a'; wrap it in a list"),
        ({"completions": [None]}, TypeError, "a completion is None; give a string"),
        ({"completions": [[]]}, TypeError, r"a completion is \[\]; give a string"),
        ({"completions": [[{"role": "assistant"}]]}, TypeError, "'role' and 'content'"),
        ({"completions": [[{"role": "assistant", "content": [1]}]]}, TypeError, "'role' and 'content'"),
        ({"numbers": [[1], [2]]}, ValueError, "numbers has 2 values for 1 completions"),
        ({"target": []}, ValueError, "target has 0 values for 1 completions"),
        ({"target": ["3"]}, TypeError, "target='3' must hold integers"),
        ({"target": [27.4]}, TypeError, r"target=27\.4 must hold integers"),
        ({"target": [None]}, TypeError, "target=None must hold integers"),
        ({"numbers": [["1", 2]]}, TypeError, r"numbers=\['1', 2\]"),
        ({"numbers": [None]}, TypeError, "numbers=None"),
    ],
)
def test_columns_that_hold_something_else_are_refused_in_words(changes: dict, error: type, complaint: str) -> None:
    arguments = {"prompts": [""], "completions": [""], "numbers": [[1, 2]], "target": [3]}
    with pytest.raises(error, match=complaint):
        REWARD(**arguments | changes)


def test_every_trace_earns_the_full_reward_and_shows_steps_that_are_true() -> None:
    for seed in range(3):
        for row in ROWS:
            trace = countdown_trace(row, seed=seed)
            assert reward(trace, row["numbers"], row["target"]) == pytest.approx(1.1)
            assert f" = {row['target']}." in trace.split("</think>")[0]


def test_the_trace_of_a_problem_shows_its_steps_in_order() -> None:
    row = {"numbers": [25, 4, 3], "target": 63, "solution": "(25 - 4) * 3"}
    traces = {countdown_trace(row, seed=seed, max_failures=0) for seed in range(200)}
    assert "<think>25 - 4 = 21. 21 * 3 = 63.</think>\n<answer>(25 - 4) * 3</answer>" in traces
    assert all("25 - 4 = 21. 21 * 3 = 63." in trace for trace in traces)


def test_traces_vary_with_seed_and_row_and_show_failures_that_miss_the_target() -> None:
    assert countdown_trace(ROWS[0], seed=0) == countdown_trace(ROWS[0], seed=0)
    assert len({countdown_trace(ROWS[0], seed=seed) for seed in range(40)}) > 20
    traces = [countdown_trace(row, seed=0) for row in ROWS]
    assert len(set(traces)) == len(ROWS)
    assert 50 < sum(", not " in trace or "so no" in trace or "I get" in trace for trace in traces) < 290


def test_an_attempt_that_happens_to_succeed_is_never_told_as_a_failure() -> None:
    row = {"numbers": [2, 1], "target": 2, "solution": "2 / 1"}
    traces = "".join(countdown_trace(row, seed=seed) for seed in range(300))
    assert "is 3, so no" in traces and "= 3, not 2" in traces and "I get 3." in traces
    assert "is 2, so no" not in traces and "2, not 2" not in traces and "I get 2." not in traces


@pytest.mark.parametrize("solution", ["25 - 4 + 3", "(25 - 4) * 3 + 0", "63", ""])
def test_a_trace_of_a_solution_that_solves_nothing_is_refused(solution: str) -> None:
    with pytest.raises(ValueError, match="does not make 63"):
        countdown_trace({"numbers": [25, 4, 3], "target": 63, "solution": solution}, seed=0)


def test_a_negative_number_of_failures_is_refused() -> None:
    with pytest.raises(ValueError, match="max_failures=-1 must not be negative"):
        countdown_trace(ROWS[0], seed=0, max_failures=-1)
