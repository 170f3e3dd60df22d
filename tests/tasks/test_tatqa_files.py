"""Reading TAT-QA's JSON."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.tasks.tatqa import check_contexts, load_tatqa
from tests.tasks.tatqa_context import small_context


def written(path: Path, contexts: Any) -> Path:
    path.write_text(json.dumps(contexts), encoding="utf-8")
    return path


def test_a_file_comes_back_as_it_is(tmp_path):
    contexts = [small_context("a"), small_context("b")]
    assert load_tatqa(written(tmp_path / "dev.json", contexts)) == contexts


@pytest.mark.parametrize("field", ["uid", "question", "answer", "answer_type", "answer_from", "scale"])
def test_a_missing_field_is_named_with_file_context_and_question(tmp_path, field):
    broken = small_context("b")
    del broken["questions"][3][field]
    path = written(tmp_path / "dev.json", [small_context("a"), broken])
    with pytest.raises(
        ValueError, match=rf"dev\.json, context 1 \(table b-table\), question 3 lacks the field '{field}'"
    ):
        load_tatqa(path)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda c: c.pop("table"), "context 0 lacks the field 'table'"),
        (lambda c: c["table"].pop("table"), "lacks the field 'table'"),
        (lambda c: c["table"]["table"].append([]), "list of rows"),
        (lambda c: c["table"]["table"][1].append(3), "must hold texts"),
        (lambda c: c["paragraphs"][1].pop("text"), "paragraph 1 lacks the field 'text'"),
        (lambda c: c["questions"][0].update(answer="$1,496.5"), "'answer' of a span must be a list of texts"),
        (lambda c: c["questions"][3].update(answer=["-12.6"]), "'answer' of a arithmetic must be a number"),
        (lambda c: c["questions"][4].update(answer="two"), "'answer' of a count must be a whole number, not 'two'"),
        (lambda c: c["questions"][4].update(answer=True), "'answer' is True"),
        (lambda c: c["questions"][4].update(answer_type="counting"), "'counting'; it must be span"),
        (lambda c: c["questions"][0].update(scale="millions"), "'scale' is 'millions'"),
        (lambda c: c["questions"][4].update(uid="q0"), r"question 4 has the uid 'q0' of .*question 0"),
    ],
)
def test_a_wrong_field_is_named(damage, complaint):
    context = copy.deepcopy(small_context())
    damage(context)
    with pytest.raises(ValueError, match=complaint):
        check_contexts([context])


def test_a_uid_of_another_context_is_a_duplicate():
    with pytest.raises(ValueError, match=r"context 1 .*question 0 has the uid 'q0' of contexts, context 0"):
        check_contexts([small_context(), small_context()])


@pytest.mark.parametrize("contexts", [[], {"table": {}}, None])
def test_no_contexts_are_an_error(contexts):
    with pytest.raises(ValueError, match="list of at least one context"):
        check_contexts(contexts)


def test_a_source_that_is_neither_file_nor_hub_id_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.json is no file"):
        load_tatqa(tmp_path / "missing.json")
    with pytest.raises(ValueError, match="split='validation' is unknown"):
        load_tatqa(split="validation")


def test_a_file_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "cut.json"
    path.write_text('[{"table": ', encoding="utf-8")
    with pytest.raises(ValueError, match=r"cut\.json is no JSON"):
        load_tatqa(path)


def test_the_hub_file_of_the_split_is_read_from_the_cache_of_the_hub(tmp_path, monkeypatch):
    repository = tmp_path / "datasets--next-tat--TAT-QA"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    written(snapshot / "tatqa_dataset_dev.json", [small_context()])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_tatqa("next-tat/TAT-QA", split="dev") == [small_context()]


def test_the_real_development_set_has_its_questions(data_dir):
    contexts = load_tatqa(data_dir / "tatqa" / "tatqa_dataset_dev.json")
    assert len(contexts) == 278
    assert sum(len(context["questions"]) for context in contexts) == 1668
