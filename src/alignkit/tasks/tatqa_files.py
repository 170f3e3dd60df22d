"""TAT-QA's own JSON, from a file or from the hub: read, checked field by field, and handed on as it is.

How this differs from `datasets.load_dataset`: an answer is a number, a text or a list, which no Arrow column holds.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.evaluation.tatqa_rules import ANSWER_TYPES, SCALES

HUB_ID = "next-tat/TAT-QA"
SPLITS = ("train", "dev", "test_gold")

_Kinds = dict[str, type | tuple[type, ...]]
_QUESTION_FIELDS: _Kinds = {
    "uid": str,
    "question": str,
    "answer": (str, int, float, list),
    "answer_type": str,
    "answer_from": str,
    "scale": str,
}
_PARAGRAPH_FIELDS: _Kinds = {"order": int, "text": str}


def load_tatqa(source: str | Path = HUB_ID, *, split: str = "train") -> list[dict[str, Any]]:
    """The contexts: each a table, its paragraphs and the questions about them.

    Args:
        source: a JSON file of the dataset, or the id of a dataset repository on the hub.
        split: `"train"`, `"dev"` or `"test_gold"`; which file to take from the hub. A local file is one split.

    Raises:
        ValueError: a source that is neither, a split that does not exist, a file that is no JSON, or what
            [`check_contexts`] finds.
        OSError: a repository or file that cannot be fetched.
    """
    path = Path(source)
    if not path.is_file():
        path = _fetch(str(source), split)
    try:
        contexts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no JSON ({error}); give TAT-QA's own file, such as tatqa_dataset_dev.json"
        ) from error
    check_contexts(contexts, name=str(path))
    return contexts


def check_contexts(contexts: Any, *, name: str = "contexts") -> None:
    """Check that every field that is read later is there and of its kind, and that no uid comes twice.

    Args:
        contexts: what the file holds.
        name: of the file, for the message.

    Raises:
        ValueError: names the file, the context by number and table, the question by number, and the field.
    """
    if not isinstance(contexts, list) or not contexts:
        raise ValueError(f"{name} must hold a list of at least one context, not {_short(contexts)}")
    seen: dict[str, str] = {}
    for number, context in enumerate(contexts):
        place = f"{name}, context {number}"
        _check_fields(context, {"table": dict, "paragraphs": list, "questions": list}, place)
        place += f" (table {context['table'].get('uid')})"
        _check_table(context["table"], place)
        for index, paragraph in enumerate(context["paragraphs"]):
            _check_fields(paragraph, _PARAGRAPH_FIELDS, f"{place}, paragraph {index}")
        for index, question in enumerate(context["questions"]):
            here = f"{place}, question {index}"
            _check_fields(question, _QUESTION_FIELDS, here)
            _check_answer(question, here)
            if question["uid"] in seen:
                raise ValueError(
                    f"{here} has the uid {question['uid']!r} of {seen[question['uid']]}; remove one of them"
                )
            seen[question["uid"]] = here


def _fetch(source: str, split: str) -> Path:
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; use one of {', '.join(SPLITS)}")
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or source.endswith(".json"):
        raise ValueError(f"{source} is no file; give the path of TAT-QA's JSON or a hub id such as {HUB_ID!r}")
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(source, f"tatqa_dataset_{split}.json", repo_type="dataset"))


def _check_fields(entry: Any, kinds: Mapping[str, type | tuple[type, ...]], place: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{place} must be an object with {', '.join(kinds)}, not {_short(entry)}")
    for field, kind in kinds.items():
        if field not in entry:
            raise ValueError(f"{place} lacks the field {field!r}; take the file as TAT-QA publishes it")
        if not isinstance(entry[field], kind) or isinstance(entry[field], bool):
            raise ValueError(
                f"{place}: the field {field!r} is {_short(entry[field])}, a {type(entry[field]).__name__}"
            )


def _check_table(table: dict[str, Any], place: str) -> None:
    _check_fields(table, {"table": list}, place)
    rows: Sequence[Any] = table["table"]
    if not rows or not all(isinstance(row, list) and row for row in rows):
        raise ValueError(f"{place}: the field 'table' must be a list of rows, each a list of at least one cell")
    if not all(isinstance(cell, str) for row in rows for cell in row):
        raise ValueError(f"{place}: the field 'table' must hold texts")


def _check_answer(question: dict[str, Any], place: str) -> None:
    answer, answer_type = question["answer"], question["answer_type"]
    if answer_type not in ANSWER_TYPES:
        raise ValueError(f"{place}: the field 'answer_type' is {answer_type!r}; it must be {', '.join(ANSWER_TYPES)}")
    if question["scale"] not in SCALES:
        raise ValueError(f"{place}: the field 'scale' is {question['scale']!r}; it must be one of {SCALES}")
    if answer_type in ("span", "multi-span"):
        right = isinstance(answer, list) and all(isinstance(item, str) for item in answer)
    elif answer_type == "count":
        right = not isinstance(answer, list) and str(answer).strip().isdecimal()
    else:
        right = not isinstance(answer, list)
    if not right:
        kind = {"arithmetic": "a number", "count": "a whole number"}.get(answer_type, "a list of texts")
        raise ValueError(f"{place}: the field 'answer' of a {answer_type} must be {kind}, not {_short(answer)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
