"""TAT-QA scored by the official rules: exact match, F1 and scale, with n and 95 % intervals by type and by source.

How this differs from the official scorer, whose figures come out exactly (see [`alignkit.evaluation.tatqa_rules`]):

1. Means come with n and Wilson's 95 % interval (1927), which for F1, no share of questions, is a little too wide.
2. Questions without an answer are counted; a prediction for a question that does not exist is an error.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from typing import Any

from alignkit.evaluation.statistics import wilson_interval
from alignkit.evaluation.tatqa_rules import ANSWER_TYPES, gold_items, score_answer
from alignkit.tasks.tatqa_files import check_contexts

SOURCES = ("table", "text", "table-text")


def score_tatqa(contexts: Sequence[Mapping[str, Any]], predictions: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Score answers to all questions of the contexts; a question without a prediction scores 0 and counts.

    Args:
        contexts: in TAT-QA's form, see [`alignkit.tasks.tatqa.load_tatqa`].
        predictions: `{uid: [answer, scale]}`; the answer is a list of texts or numbers, a text or a number.

    Returns:
        `em`, `f1`, `scale`: means over questions, in percent; `em_interval`, `f1_interval`, `scale_interval`: 95 %,
        `[low, high]` in percent; `n`, `n_unanswered`; `by_type`, `by_source`:
        the same for each answer type and source; `per_question`: for each uid `em`, `f1`, `scale` in 0..1, `answered`,
        `answer_type` and `answer_from`.

    Raises:
        ValueError: contexts with a missing or wrong field or a uid twice, predictions for unknown uids, or one that is
            no pair of answer and scale.
    """
    check_contexts(contexts)
    questions = [question for context in contexts for question in context["questions"]]
    _check_predictions(predictions, {question["uid"] for question in questions})
    scores = {question["uid"]: _score_question(question, predictions.get(question["uid"])) for question in questions}
    return {
        **_summary(scores.values()),
        "by_type": _by("answer_type", ANSWER_TYPES, scores),
        "by_source": _by("answer_from", SOURCES, scores),
        "per_question": scores,
    }


def _check_predictions(predictions: Mapping[str, Sequence[Any]], uids: set[str]) -> None:
    unknown = [uid for uid in predictions if uid not in uids]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(predictions)} predictions are for no question of the contexts, the first for "
            f"{unknown[0]!r}; give predictions and contexts of the same split"
        )
    for uid, prediction in predictions.items():
        if not isinstance(prediction, (list, tuple)) or len(prediction) != 2 or not isinstance(prediction[1], str):
            raise ValueError(f"the prediction for {uid!r} is {prediction!r}; it must be [answer, scale], scale a text")


def _score_question(question: Mapping[str, Any], prediction: Sequence[Any] | None) -> dict[str, Any]:
    answer, scale = prediction or (None, "")
    gold = gold_items(question["answer"], question["answer_type"])
    em, f1 = score_answer(answer, scale, gold, question["scale"], question["answer_type"])
    return {
        "em": em,
        "f1": f1,
        "scale": float(bool(answer) and bool(gold) and scale == question["scale"]),
        "answered": bool(answer),
        "answer_type": question["answer_type"],
        "answer_from": question["answer_from"],
    }


def _by(field: str, names: Iterable[str], scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Summary of each group, the known names first; no entry for a group without questions."""
    found = {score[field] for score in scores.values()}
    ordered = [name for name in names if name in found] + sorted(found.difference(names))
    return {name: _summary([score for score in scores.values() if score[field] == name]) for name in ordered}


def _summary(scores: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    scores = list(scores)
    summary: dict[str, Any] = {"n": len(scores), "n_unanswered": sum(not score["answered"] for score in scores)}
    for name in ("em", "f1", "scale"):
        total = fsum(score[name] for score in scores)
        summary[name] = 100 * total / len(scores)
        summary[f"{name}_interval"] = [100 * bound for bound in wilson_interval(total, len(scores))]
    return summary
