"""MT-Bench (Zheng et al. 2023): 80 questions with a follow-up each, graded by a judge from 1 to 10.

How this differs from FastChat's `llm_judge`:

1. Answers are decoded as the evaluation says, greedy by default. There each category has a temperature of its own.
2. The item is the question, its score the mean of both turns: the turns of one conversation are not independent. The
   mean over items is MT-Bench's score.
3. Any judge serves. For the published prompts give `judge_prompts.jsonl` to the judge as `prompts`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from alignkit.evaluation.judge.protocol import Judge, JudgeError
from alignkit.evaluation.judge.spec import judge_from
from alignkit.evaluation.preference import points
from alignkit.evaluation.results import PROPORTION, ItemScores
from alignkit.evaluation.suites.data import Source, data_file, load_rows, read_rows, take
from alignkit.evaluation.suites.suite import Answer, Subject, SuiteOutcome

QUESTIONS = Source("mt_bench", "question.jsonl")
REFERENCES = Source("mt_bench", "reference_answer_gpt-4.jsonl")
REFERENCED = ("math", "reasoning", "coding")
"""Categories whose judge is shown a reference."""
TURNS = (1, 2)


@dataclass(frozen=True)
class MTBench:
    """Grades of both turns, and with `baseline` the win rate over another model's answers.

    Args:
        judge: a [`Judge`], or the keys of one as [`alignkit.evaluation.judge.spec.judge_from`] takes them.
        data: the folder with `question.jsonl` and `reference_answer_gpt-4.jsonl`; None: `$ALIGNKIT_DATA/mt_bench`.
        limit: that many questions, the same for every model.
        max_new_tokens: of an answer.
        baseline: answers to compare with, each pair in both orders: `answers.jsonl` of an evaluation, or a file of
            FastChat's `model_answer`.
        baseline_run: whose answers of `baseline`, where it holds those of several runs or models.

    Raises:
        ValueError: no judge.
    """

    judge: Judge | Mapping[str, Any] | None = None
    data: Path | None = None
    limit: int | None = None
    max_new_tokens: int = 1024
    baseline: Path | None = None
    baseline_run: str | None = None
    name: ClassVar[str] = "mt_bench"

    def __post_init__(self) -> None:
        object.__setattr__(self, "judge", judge_from(self.judge, "mt_bench.judge"))

    def run(self, subject: Subject) -> SuiteOutcome:
        """Ask both turns of every question, then the judge.

        Metrics: `judge_score`, `judge_score_turn_1` and `judge_score_turn_2` in points from 1 to 10; with a baseline
        `win_rate`, the mean of both turns. What the judge was told to leave out is in no metric.
        """
        rows = take(load_rows(self.data, QUESTIONS, {"question_id": int, "category": str, "turns": list}), self.limit)
        wrong = next((row for row in rows if len(row["turns"]) != len(TURNS)), None)
        if wrong is not None:
            raise ValueError(f"question {wrong['question_id']} has {len(wrong['turns'])} turns; MT-Bench's have two")
        items = [_item(row) for row in rows]
        references = self._references(rows)
        others = None if self.baseline is None else read_baseline(self.baseline, items, self.baseline_run)
        first = [[_user(row["turns"][0])] for row in rows]
        answers = [subject.complete(first, max_new_tokens=self.max_new_tokens)]
        # A completion of two turns goes on from the first question with all that was said since.
        second = [
            [*prompt, _assistant(answer), _user(row["turns"][1])]
            for prompt, answer, row in zip(first, answers[0], rows, strict=True)
        ]
        answers.append(subject.complete(second, max_new_tokens=self.max_new_tokens))
        own = _both_turns(rows, list(zip(*answers, strict=True)))
        notes: list[dict[str, Any]] = [{"category": row["category"]} for row in rows]
        scores = self._grades(first, own, references, notes)
        if others is not None:
            scores |= self._win_rate(first, own, _both_turns(rows, others), references, notes)
        sets = [_item_scores(metric, dict(zip(items, values, strict=True))) for metric, values in scores.items()]
        found = [
            Answer(
                item,
                second[place],
                answers[1][place],
                {one.metric: one.items[item] for one in sets if item in one.items},
                notes[place],
            )
            for place, item in enumerate(items)
        ]
        return SuiteOutcome(sets, found)

    def _references(self, rows: Sequence[Mapping[str, Any]]) -> list[list[str] | None]:
        needed = [_item(row) for row in rows if row["category"] in REFERENCED]
        if not needed:
            return [None] * len(rows)
        path = data_file(self.data, REFERENCES)
        assert path is not None  # it is not on the hub
        known = dict(zip(needed, read_baseline(path, needed), strict=True))
        return [list(known[_item(row)]) if row["category"] in REFERENCED else None for row in rows]

    def _grades(
        self, prompts: list[Any], own: list[list[Any]], references: list[Any], notes: list[dict[str, Any]]
    ) -> dict[str, list[float | None]]:
        assert isinstance(self.judge, Judge)
        scores: dict[str, list[float | None]] = {"judge_score": []}
        for turn in TURNS:
            grades = self.judge.grade(prompts, own[turn - 1], _up_to(turn, references))
            scores[f"judge_score_turn_{turn}"] = [grade.score for grade in grades]
            for note, grade in zip(notes, grades, strict=True):
                note[f"judge_turn_{turn}"] = grade.words
        by_turn = zip(scores["judge_score_turn_1"], scores["judge_score_turn_2"], strict=True)
        scores["judge_score"] = [_mean(pair) for pair in by_turn]
        return scores

    def _win_rate(
        self,
        prompts: list[Any],
        own: list[list[Any]],
        others: list[list[Any]],
        references: list[Any],
        notes: list[dict[str, Any]],
    ) -> dict[str, list[float | None]]:
        assert isinstance(self.judge, Judge)
        by_turn = []
        for turn in TURNS:
            found = self.judge.compare(prompts, own[turn - 1], others[turn - 1], _up_to(turn, references))
            by_turn.append([points(preference) for preference in found])
            for note, preference in zip(notes, found, strict=True):
                note[f"pair_turn_{turn}"] = {"winner": preference.winner, "consistent": preference.consistent}
        return {"win_rate": [_mean(pair) for pair in zip(*by_turn, strict=True)]}


def read_baseline(path: Path, items: Sequence[str], run: str | None = None) -> list[tuple[str, str]]:
    """Both answers to each item, from `answers.jsonl` of an evaluation or a file of FastChat's `model_answer`.

    Raises:
        ValueError: answers of several runs without a name, an item without an answer or with two, or a row of neither
            form.
        OSError: a file that cannot be read.
    """
    by_run: dict[str, dict[str, tuple[str, str]]] = {}
    for number, row in enumerate(read_rows(path, {}), 1):
        try:
            if "question_id" in row:
                name, item = str(row.get("model_id", "")), _item(row)
                first, second = row["choices"][0]["turns"]
            else:
                name, item = row["run"], row["item"]
                if not item.startswith("mt_bench-"):
                    continue
                first, second = row["prompt"][-2]["content"], row["completion"]
            if not all(isinstance(one, str) for one in (name, item, first, second)):
                raise TypeError("names and answers must be texts")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}, row {number} is no answer of an evaluation or of FastChat ({error!r})"
            ) from error
        of_run = by_run.setdefault(name, {})
        if item in of_run and run in (None, name):
            raise ValueError(
                f"{path}, row {number}: {name} answers {item!r} a second time; keep one evaluation of each"
            )
        of_run[item] = first, second
    if run is None and len(by_run) > 1:
        raise ValueError(f"{path} has answers of {', '.join(sorted(by_run))}; name one of them in baseline_run")
    found = by_run.get(next(iter(by_run), "") if run is None else run, {})
    missing = [item for item in items if item not in found]
    if missing:
        raise ValueError(f"{path} has no answer to {len(missing)} items such as {missing[0]!r}; answer them first")
    return [found[item] for item in items]


def _item(row: Mapping[str, Any]) -> str:
    return f"mt_bench-{row['question_id']}"


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _both_turns(rows: Sequence[Mapping[str, Any]], answers: Sequence[tuple[str, str]]) -> list[list[Any]]:
    """Completions of the first question up to the first answer, and up to the second."""
    pairs = list(zip(rows, answers, strict=True))
    return [
        [[_assistant(first)] for _, (first, _) in pairs],
        [[_assistant(first), _user(row["turns"][1]), _assistant(second)] for row, (first, second) in pairs],
    ]


def _up_to(turn: int, references: Sequence[list[str] | None]) -> list[list[str] | None]:
    return [None if reference is None else reference[:turn] for reference in references]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _item_scores(metric: str, scores: Mapping[str, float | None]) -> ItemScores:
    known = {item: score for item, score in scores.items() if score is not None}
    if not known:
        raise JudgeError(f"no item has a {metric}: the judge gave no verdict on any")
    return ItemScores("mt_bench", metric, "task", True, known, PROPORTION if metric == "win_rate" else "points")
