"""What a model may write, as input of everything that reads it: a number in range, no crash, nothing else touched."""

import csv
import io
import json
import math
import re
import subprocess
import sys
import time
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import pytest

from alignkit.es_lora.history import History, read_history
from alignkit.evaluation.document import Bullets, Heading, Table, Text, to_markdown
from alignkit.evaluation.human_sheet_html import sheet_html
from alignkit.evaluation.human_sheets import sheet_csv
from alignkit.evaluation.judge.cache import VerdictCache
from alignkit.evaluation.report_html import to_html
from alignkit.evaluation.results import append_result, failed_result, read_results
from alignkit.kl_barrier.rounds.report import _quote
from alignkit.reward_model.export import RewardModel
from alignkit.rewards.heuristics import FormatReward
from alignkit.rewards.hybrid import HybridReward
from alignkit.rewards.model import ModelReward
from alignkit.storage import read_json, read_lines, write_json, write_lines
from alignkit.tasks.toy import byte_tokenizer, tiny_sequence_classifier
from tests.evaluation.records import ORIGIN
from tests.faults.hostile_texts import HOSTILE, LONG_TEXTS
from tests.faults.text_readers import PROPORTIONS, READERS

TEXTS = [*HOSTILE.values()]

# ---- Graders, rewards, metrics and parsers ----


@pytest.mark.parametrize("name", PROPORTIONS)
def test_the_value_of_any_text_is_from_0_to_1(name):
    for which, text in HOSTILE.items():
        value = PROPORTIONS[name](text)
        assert isinstance(value, float) and 0.0 <= value <= 1.0, which


@pytest.mark.parametrize("name", READERS)
def test_any_text_is_read_without_an_error(name):
    for which, text in HOSTILE.items():
        value = READERS[name](text)
        if isinstance(value, Decimal):
            assert value.is_finite(), which
        elif isinstance(value, int | float | Fraction):
            assert math.isfinite(value), which


@pytest.mark.parametrize("name", ["countdown_answer", "tatqa_em", "request", "exact_match"])
def test_garbage_is_worth_nothing(name):
    assert {PROPORTIONS[name](text) for text in TEXTS} == {0.0}


@pytest.mark.parametrize("name", ["grade_in_brackets", "grade_in_json", "winner_in_brackets", "winner_in_json"])
def test_a_judge_that_writes_garbage_has_given_no_verdict(name):
    assert {READERS[name](text) for text in TEXTS} == {None}


def test_an_unsolved_countdown_is_worth_a_tenth_at_most():
    rewards = {which: READERS["countdown"](text) for which, text in HOSTILE.items()}
    assert max(rewards.values()) <= 0.1 and rewards["empty"] == 0.0
    assert READERS["countdown"]("<think>.</think><answer>(25 - 4) * 3</answer>") == pytest.approx(1.1)


def test_a_number_beyond_what_python_reads_is_no_number_to_tatqa():
    right = ["12.5 million", "12.5 million"]
    assert [PROPORTIONS["tatqa_em"](text) for text in right] == [1.0, 1.0]
    for text in (
        "9" * 5000,
        "9" * 300 + " billion",
        "-" + "1" * 400 + ".5",
        "9" * 5000 + ". a\n" + "9" * 5000 + ". b",
    ):
        assert PROPORTIONS["tatqa_em"](text) == PROPORTIONS["tatqa_raw"](text) == 0.0


def test_a_reward_model_scores_any_text_with_a_finite_number():
    model = RewardModel(tiny_sequence_classifier(["kind"]), byte_tokenizer())
    reward = HybridReward(FormatReward("(?s).*"), ModelReward(model), clip=5.0)
    chats = [[{"role": "assistant", "content": text}] for text in TEXTS]
    assert all(map(math.isfinite, reward(prompts=["p"] * len(TEXTS), completions=TEXTS)))
    assert ModelReward(model)(["p"], ["a\ud800b"]) == ModelReward(model)(["p"], ["a\ufffdb"])
    assert FormatReward("(?s).*")(completions=chats) == [1.0] * len(TEXTS)


def test_nothing_is_run_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for read in (PROPORTIONS | READERS).values():
        for which in ("python", "shell", "format_strings", "latex", "sql", "tower"):
            read(HOSTILE[which])
    assert list(tmp_path.iterdir()) == []


# ---- Files and caches ----


def test_any_text_comes_back_from_a_file_as_it_was(tmp_path):
    rows = [{"completion": text} for text in TEXTS]
    write_lines(tmp_path / "lines.jsonl", rows)
    assert read_lines(tmp_path / "lines.jsonl") == rows
    write_json(tmp_path / "one.json", HOSTILE)
    assert read_json(tmp_path / "one.json") == HOSTILE
    history = History(tmp_path / "results.jsonl")
    for step, text in enumerate(TEXTS, 1):
        history.append({"step": step, "completion": text})
    history.cut(len(TEXTS) - 1)
    assert [record["completion"] for record in read_history(tmp_path / "results.jsonl")] == TEXTS[:-1]
    for path in tmp_path.iterdir():
        path.read_bytes().decode()


def test_any_text_comes_back_from_a_judges_cache_as_it_was(tmp_path):
    for number, text in enumerate(TEXTS):
        VerdictCache(tmp_path / "c.jsonl").put(str(number), model="judge", text=text, refused=False)
    cache = VerdictCache(tmp_path / "c.jsonl")
    assert [cache.get(str(number))["text"] for number in range(len(TEXTS))] == TEXTS


def test_an_error_that_quotes_a_model_comes_back_from_the_results(tmp_path):
    texts = [text for text in TEXTS if text.strip()]
    for number, text in enumerate(texts):
        failed = failed_result(run=f"r{number}", error=text, config={}, seed=0, wall_time_s=1.0, **ORIGIN)
        append_result(tmp_path / "r.jsonl", failed)
    assert [result.error for result in read_results(tmp_path / "r.jsonl")] == texts


# ---- Reports ----


class Page(HTMLParser):
    """Counts the tags of a page, and keeps the text of its cells."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.cells: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


UNSEEN = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def test_no_text_adds_a_tag_to_a_report_or_breaks_its_tables():
    rows = [[text, "0.5"] for text in TEXTS]
    blocks = [Heading(1, TEXTS[24]), Table(["text", "score"], rows), Bullets([(text, text) for text in TEXTS])]
    page = to_html([*blocks, *map(Text, TEXTS)])
    seen = Page(page)
    assert seen.tags["td"] == 2 * len(TEXTS) and seen.tags["li"] == len(TEXTS) and seen.tags["p"] == len(TEXTS)
    assert not {"script", "img", "a", "iframe", "input"} & set(seen.tags)
    assert seen.cells[2 * [*HOSTILE].index("html")] == HOSTILE["html"]
    assert not UNSEEN.search(page) and page.encode()


def test_no_text_breaks_a_table_of_markdown_or_becomes_a_link_a_picture_or_html():
    text = to_markdown([Table(["text", "score"], [[text, "0.5"] for text in TEXTS])], "")
    lines = text.rstrip("\n").split("\n")
    assert len(lines) == len(TEXTS) + 2
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines} == {3}
    assert not re.search(r"(?<!\\)(?:\\\\)*(\]\(|[<>`*])", text)
    assert not UNSEEN.search(text)


def test_what_a_model_wrote_stands_in_a_report_of_rounds_as_text_alone():
    for which, text in HOSTILE.items():
        quoted = _quote(text)
        assert all(line.startswith("    ") for line in quoted.split("\n")), which
        assert not UNSEEN.search(quoted)


def test_no_text_adds_a_tag_or_a_row_to_a_rating_sheet():
    rows = [(f"r{number}", text, text) for number, text in enumerate(TEXTS)]
    page = Page(sheet_html(rows, [("quality", 1, 5)], "ann"))
    assert page.tags["article"] == len(TEXTS) and page.tags["script"] == 1 and not page.tags["img"]
    table = sheet_csv(rows, [])
    assert len([*csv.reader(io.StringIO(table, newline=""))]) == len(TEXTS) + 1
    assert not UNSEEN.search(table)


# ---- Cost ----

PER_TEXT_S = 0.5  # ten times what a text may cost: other processes share the machine's caches
PER_MILLION_S = 30.0
BY_PACKAGES = {"bleu", "code_bleu", "rouge_l"}
"""Whose time is that of sacrebleu and rouge-score, in proportion to the text."""


def cpu_s(read, text: str, repetitions: int = 1) -> float:
    def once() -> float:
        start = time.process_time()
        read(text)
        return time.process_time() - start

    return min(once() for _ in range(repetitions))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PROPORTIONS, *READERS])
def test_no_hostile_text_takes_long(name):
    read = (PROPORTIONS | READERS)[name]
    read("warm")
    assert max(cpu_s(read, text) for text in TEXTS) < PER_TEXT_S


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 22 texts, on a machine with other work
@pytest.mark.parametrize("name", [name for name in [*PROPORTIONS, *READERS] if name not in BY_PACKAGES])
def test_a_million_characters_take_seconds(name):
    read = (PROPORTIONS | READERS)[name]
    for which, text in LONG_TEXTS.items():
        assert cpu_s(read, text) < PER_MILLION_S, which


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in [*PROPORTIONS, *READERS] if name not in BY_PACKAGES])
def test_twice_the_text_takes_at_most_three_times_as_long(name):
    read = (PROPORTIONS | READERS)[name]
    for which, text in LONG_TEXTS.items():
        half, whole = text[:50_000], text[:100_000]
        seconds = cpu_s(read, whole, 3)
        if seconds > 0.02:  # shorter ones are measured too badly
            assert seconds < 3 * cpu_s(read, half, 3), which


@pytest.mark.slow
def test_no_process_no_connection_no_file_and_100_mb_for_all_of_them():
    script = Path(__file__).with_name("read_hostile.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["events"] == [] and found["grown_mib"] < 100
