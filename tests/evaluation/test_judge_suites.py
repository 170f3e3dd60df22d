"""The suites that a judge scores: two turns of MT-Bench, and PandaLM's pairs."""

import json
from types import SimpleNamespace

import pytest

from alignkit.evaluation.judge import Grade, JudgeError, Preference, RewardModelJudge
from alignkit.evaluation.suites.mt_bench import MTBench, read_baseline
from alignkit.evaluation.suites.pandalm import PandaLM, agreement_of
from alignkit.evaluation.suites.recording import EvaluationFolder
from alignkit.evaluation.suites.running import run_suites
from alignkit.evaluation.suites.suite import Suite

QUESTIONS = [
    {"question_id": 1, "category": "writing", "turns": ["Write.", "Shorter."]},
    {"question_id": 2, "category": "math", "turns": ["1 + 1?", "Twice that?"]},
]


class Model:
    """A subject that answers with what `say` makes of the messages."""

    def __init__(self, say=lambda messages: f"answer {len(messages)}"):
        self.say = say

    def complete(self, prompts, *, max_new_tokens, stop_strings=()):
        return [self.say(messages) for messages in prompts]


class LongestJudge:
    """Grades by the length of the last answer, prefers the longer one, and remembers what it was shown."""

    settings = {"judge": "longest"}

    def __init__(self, without=()):
        self.without = without
        self.asked = []

    def grade(self, prompts, completions, references=None):
        self.asked += zip(prompts, completions, references, strict=True)
        last = [completion[-1]["content"] for completion in completions]
        return [Grade(None, "no", "refused") if one in self.without else Grade(float(len(one)), "why") for one in last]

    def compare(self, prompts, first, second, references=None):
        lengths = [[len(completion[-1]["content"]) for completion in side] for side in (first, second)]
        winners = ["tie" if a == b else "first" if a > b else "second" for a, b in zip(*lengths, strict=True)]
        return [Preference(winner, winner) for winner in winners]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    reference = {"question_id": 2, "choices": [{"turns": ["2", "4"]}]}
    (tmp_path / "reference_answer_gpt-4.jsonl").write_text(json.dumps(reference) + "\n")
    return tmp_path


def test_the_second_turn_goes_on_from_the_first_answer_and_each_turn_is_judged(folder):
    judge = LongestJudge()
    suite = MTBench(judge=judge, data=folder)
    assert isinstance(suite, Suite)
    outcome = suite.run(Model(lambda messages: "1234" if len(messages) == 1 else "12345678"))
    scores = {one.metric: one.items for one in outcome.scores}
    assert scores == {
        "judge_score": {"mt_bench-1": 6.0, "mt_bench-2": 6.0},
        "judge_score_turn_1": {"mt_bench-1": 4.0, "mt_bench-2": 4.0},
        "judge_score_turn_2": {"mt_bench-1": 8.0, "mt_bench-2": 8.0},
    }
    assert {one.unit for one in outcome.scores} == {"points"}
    assert [message["content"] for message in outcome.answers[1].prompt] == ["1 + 1?", "1234", "Twice that?"]
    assert [reference for *_, reference in judge.asked] == [None, ["2"], None, ["2", "4"]]
    assert [len(completion) for _, completion, _ in judge.asked] == [1, 1, 3, 3]


def test_a_question_that_the_judge_left_out_is_in_no_mean(folder):
    outcome = MTBench(judge=LongestJudge(without=["x"]), data=folder).run(
        Model(lambda messages: "x" if messages[0]["content"] == "Write." else "1234")
    )
    assert all(list(one.items) == ["mt_bench-2"] for one in outcome.scores)
    assert outcome.answers[0].scores == {} and outcome.answers[0].notes["judge_turn_1"] == "no"
    with pytest.raises(JudgeError, match="no item has a judge_score"):
        MTBench(judge=LongestJudge(without=["x"]), data=folder).run(Model(lambda messages: "x"))


def test_the_win_rate_is_over_a_models_answers_that_an_evaluation_recorded(folder, tmp_path):
    recorded = tmp_path / "runs"
    what = {"config": {}, "decoding": {"do_sample": False}}
    suite = MTBench(judge=LongestJudge(), data=folder)
    for run, text in (("short", "12"), ("long", "123456")):
        run_suites(
            lambda text=text: Model(lambda messages: text), [suite], EvaluationFolder(recorded), run=run, **what
        )
    against = MTBench(judge=LongestJudge(), data=folder, baseline=recorded / "answers.jsonl", baseline_run="long")
    outcome = against.run(Model(lambda messages: "123456" if len(messages) == 1 else "1234567"))
    rates = next(one for one in outcome.scores if one.metric == "win_rate")
    assert rates.items == {"mt_bench-1": 0.75, "mt_bench-2": 0.75} and rates.unit == "proportion"
    with pytest.raises(ValueError, match="answers of long, short; name one of them in baseline_run"):
        read_baseline(recorded / "answers.jsonl", ["mt_bench-1"])


def test_a_baseline_that_answered_twice_is_refused(folder):
    rows = [{"question_id": 1, "model_id": model, "choices": [{"turns": [model, "b"]}]} for model in "xyx"]
    path = folder / "model_answer.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_baseline(path, ["mt_bench-1"], "y") == [("y", "b")]
    with pytest.raises(ValueError, match="row 3: x answers 'mt_bench-1' a second time"):
        read_baseline(path, ["mt_bench-1"], "x")


def test_published_answers_serve_as_a_baseline_and_a_missing_one_is_named(folder):
    path = folder / "reference_answer_gpt-4.jsonl"
    assert read_baseline(path, ["mt_bench-2"]) == [("2", "4")]
    with pytest.raises(ValueError, match="no answer to 1 items such as 'mt_bench-1'"):
        read_baseline(path, ["mt_bench-1", "mt_bench-2"])


def test_a_suite_without_a_judge_or_without_a_reference_says_so(folder):
    with pytest.raises(ValueError, match=r"mt_bench\.judge is None; give \{url"):
        MTBench()
    (folder / "reference_answer_gpt-4.jsonl").write_text('{"question_id": 9, "choices": [{"turns": ["a", "b"]}]}\n')
    with pytest.raises(ValueError, match="no answer to 1 items such as 'mt_bench-2'"):
        MTBench(judge=LongestJudge(), data=folder).run(Model())
    (folder / "question.jsonl").write_text('{"question_id": 9, "category": "math", "turns": ["a"]}\n')
    with pytest.raises(ValueError, match="question 9 has 1 turns"):
        MTBench(judge=LongestJudge(), data=folder).run(Model())


def test_a_row_that_is_no_answer_is_named(folder):
    for row in (
        '{"question_id": 2, "choices": [{"turns": ["a"]}]}',
        '{"question_id": 2, "choices": [{"turns": ["a", 5]}]}',
        '{"run": [], "item": "mt_bench-2", "prompt": [{"content": "q"}, {"content": "q"}], "completion": "c"}',
    ):
        (folder / "answers.jsonl").write_text(row + "\n")
        with pytest.raises(ValueError, match=r"answers\.jsonl, row 1 is no answer of an evaluation or of FastChat"):
            read_baseline(folder / "answers.jsonl", ["mt_bench-2"])


def test_all_questions_and_references_of_mt_bench_are_found(data_dir):
    judge = LongestJudge()
    outcome = MTBench(judge=judge, data=data_dir / "mt_bench").run(Model())
    assert len(outcome.answers) == 80 and sum(reference is not None for *_, reference in judge.asked) == 60


def pairs():
    texts = {"instruction": "Say it.", "input": "it", "response1": "long answer", "response2": "short"}
    votes = [(1, 1, 2), (2, 2, 2), (0, 0, 1), (1, 2, 0)]
    return [
        {"idx": place, **texts, "annotator1": a, "annotator2": b, "annotator3": c}
        for place, (a, b, c) in enumerate(votes)
    ]


@pytest.fixture
def pandalm(tmp_path):
    path = tmp_path / "testset-v1.json"
    path.write_text(json.dumps(pairs()))
    return path


def by_length(prompts, completions):
    return [float(len(completion)) for completion in completions]


def test_a_judge_agrees_with_the_majority_and_with_each_annotator(pandalm):
    outcome = PandaLM(judge=RewardModelJudge(by_length), data=pandalm).run(SimpleNamespace())
    majority, annotators = (list(one.items.values()) for one in outcome.scores)
    assert majority == [1, 0, 0, 0]
    assert annotators == pytest.approx([2 / 3, 0, 1 / 3, 1 / 3])
    assert outcome.answers[0].prompt == "Say it.\n\nit"
    found = agreement_of(outcome)
    assert (found.accuracy, found.n) == (0.25, 4)


def test_the_model_itself_is_the_judge_where_none_is_given_and_no_verdict_agrees_with_nobody(pandalm):
    def say(messages):
        return (
            "[[A]]"
            if messages[-1]["content"].index("long answer") < messages[-1]["content"].index("short")
            else "[[B]]"
        )

    outcome = PandaLM(data=pandalm).run(Model(say))
    assert list(outcome.scores[0].items.values()) == [1, 0, 0, 0]
    silent = PandaLM(data=pandalm).run(Model(lambda messages: "Both are fine."))
    assert set(silent.scores[0].items.values()) == {0.0} and silent.answers[0].notes["failure"] == "malformed"
    always_first = PandaLM(data=pandalm).run(Model(lambda messages: "[[A]]"))
    assert [answer.notes["verdict"] for answer in always_first.answers] == [0] * 4
    assert list(always_first.scores[0].items.values()) == [0, 0, 1, 1]


def test_an_answer_that_is_json_is_its_text_and_a_missing_one_is_named(pandalm):
    rows = pairs()
    pandalm.write_text(json.dumps([{**rows[0], "response1": True}, *rows[1:]]))
    outcome = PandaLM(judge=RewardModelJudge(by_length), data=pandalm).run(SimpleNamespace())
    assert outcome.answers[0].notes["verdict"] == 2  # "True" is shorter than "short"
    del rows[0]["response2"]
    pandalm.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="pair 0 has None as response2"):
        PandaLM(judge=RewardModelJudge(by_length), data=pandalm).run(SimpleNamespace())


def test_the_longer_answer_is_the_better_one_in_610_of_all_pairs(data_dir):
    outcome = PandaLM(judge=RewardModelJudge(by_length), data=data_dir / "pandalm_testset").run(SimpleNamespace())
    found = agreement_of(outcome)
    assert (found.n, sum(outcome.scores[0].items.values())) == (999, 610)
    assert found.accuracy == pytest.approx(610 / 999)
