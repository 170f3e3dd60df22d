"""What a judge behind an endpoint remembers: its key, its costs, its copies and its cache."""

import copy
import json
import logging
import pickle
import subprocess
import sys

import pytest

from alignkit.evaluation.judge import EndpointJudge, JudgeError
from alignkit.evaluation.judge.cache import VerdictCache
from tests.evaluation.judge_server import ANSWERS, PROMPTS, Answer, judge, serving

# ---- Keys, costs, copies ----


def test_the_key_is_sent_and_is_in_no_error_no_log_and_no_cache(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    caplog.set_level(logging.DEBUG)
    wrong = Answer(body=b'{"error": "the key sk-secret is wrong"}', status=401)
    with serving(lambda body, number: Answer("[[5]]") if number == 0 else wrong) as (seen, url):
        asker = judge(url, api_key_variable="JUDGE_KEY", cache=tmp_path / "cache.jsonl")
        asker.grade(["q"], ["a"])
        with pytest.raises(JudgeError) as error:
            asker.grade(["q"], ["b"])
    assert seen.headers[0]["Authorization"] == "Bearer sk-secret"
    for text in (str(error.value), caplog.text, repr(asker), (tmp_path / "cache.jsonl").read_text()):
        assert "sk-secret" not in text
    assert b"sk-secret" not in pickle.dumps(asker)


def test_no_key_is_taken_from_a_netrc_file(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving("[[5]]") as (seen, url):
        judge(url).grade(["q"], ["a"])
    assert "Authorization" not in seen.headers[0]


def test_tokens_and_cost_are_what_the_server_counted_at_the_given_prices():
    with serving("[[5]]") as (_, url):
        prices = {"price_per_million_prompt_tokens": 2.0, "price_per_million_completion_tokens": 10.0}
        asker = judge(url, **prices)
        asker.grade(PROMPTS, ANSWERS)
        unpriced = judge(url)
        unpriced.grade(["q"], ["a"])
    # 2 · (100 · 2 + 10 · 10) / 10⁶
    assert (asker.usage.prompt_tokens, asker.usage.completion_tokens) == (200, 20)
    assert asker.usage.cost == pytest.approx(0.0006) and unpriced.usage.cost is None


def test_a_cost_that_a_server_does_not_tell_is_unknown_and_not_zero():
    with serving(lambda body, number: Answer("[[5]]", usage=None if number else {"prompt_tokens": 1})) as (_, url):
        prices = {"price_per_million_prompt_tokens": 2.0, "price_per_million_completion_tokens": 10.0}
        asker = judge(url, concurrency=1, **prices)
        asker.grade(PROMPTS, ANSWERS)
    assert (asker.usage.prompt_tokens, asker.usage.completion_tokens, asker.usage.cost) == (None, None, None)


def test_copies_of_a_judge_judge_and_count_for_themselves():
    with serving("[[5]]") as (_, url):
        asker = judge(url)
        asker.grade(["q"], ["a"])
        for other in (copy.deepcopy(asker), pickle.loads(pickle.dumps(asker))):
            assert other == asker and other.usage.requests == 0
            assert other.grade(["q"], ["a"])[0].score == 5


# ---- The cache ----


def test_what_is_in_the_cache_costs_nothing(tmp_path):
    with serving("Fine. [[5]]") as (seen, url):
        cache = tmp_path / "cache.jsonl"
        first = judge(url, cache=cache).grade(PROMPTS, ANSWERS)
        asker = judge(url, cache=cache)
        assert asker.grade(PROMPTS, ANSWERS) == first
        assert (asker.usage.requests, asker.usage.cached, asker.usage.prompt_tokens) == (0, 2, 0)
        assert len(seen.bodies) == 2
        judge(url, cache=cache, temperature=0.5).grade(PROMPTS, ANSWERS)
        EndpointJudge(url, "other", cache=cache).grade(PROMPTS, ANSWERS)
        asker.grade(PROMPTS, ["4", "Rome"])
    assert len(seen.bodies) == 2 + 2 + 2 + 1


def test_verdicts_before_a_failure_are_kept_so_that_the_next_call_goes_on_from_there(tmp_path):
    with (
        serving(lambda body, number: Answer("[[5]]", status=200 if number < 2 else 500)) as (seen, url),
        pytest.raises(JudgeError, match="answers 500"),
    ):
        judge(url, cache=tmp_path / "cache.jsonl", concurrency=1).grade(["q"] * 4, list("abcd"))
    with serving("[[5]]") as (seen, url):
        judge(url, cache=tmp_path / "cache.jsonl").grade(["q"] * 4, list("abcd"))
    assert len(seen.bodies) == 2


def test_a_verdict_that_took_a_reminder_is_cached_and_a_malformed_one_is_not(tmp_path):
    with serving(lambda body, number: Answer("[[5]]" if number == 1 else "hm")) as (seen, url):
        asker = judge(url, cache=tmp_path / "cache.jsonl", on_failure="exclude", attempts=2)
        assert [asker.grade(["q"], ["a"])[0].score for _ in range(2)] == [5, 5]
        assert [asker.grade(["q"], ["b"])[0].score for _ in range(2)] == [None, None]
    assert len(seen.bodies) == 2 + 4


def test_of_two_verdicts_to_one_request_the_first_counts_for_every_reader(tmp_path):
    path = tmp_path / "cache.jsonl"
    beside = [VerdictCache(path), VerdictCache(path)]  # two processes, neither of which knows what the other asked
    for cache, text in zip(beside, ("[[3]]", "[[8]]"), strict=True):
        cache.put("the same", model="m", text=text, refused=False)
    assert len(path.read_text().splitlines()) == 2
    assert VerdictCache(path).get("the same")["text"] == "[[3]]"


def test_a_line_that_a_killed_writer_left_is_left_out_and_a_foreign_file_refused(tmp_path):
    cache = tmp_path / "cache.jsonl"
    with serving("[[5]]") as (seen, url):
        judge(url, cache=cache).grade(PROMPTS, ANSWERS)
        whole = cache.read_bytes()
        cache.write_bytes(whole[:-30])
        judge(url, cache=cache).grade(PROMPTS, ANSWERS)
        assert len(seen.bodies) == 3 and len(cache.read_bytes().splitlines()) == 2
        cache.write_text('{"request": {}, "model": "m", "text": "t", "refused": false}\n')
        with pytest.raises(ValueError, match=r"cache\.jsonl, line 1 is none of a judge's cache"):
            VerdictCache(cache)
        cache.write_text('{"loss": 1}\n')
        with pytest.raises(ValueError, match=r"cache\.jsonl, line 1 is none of a judge's cache"):
            judge(url, cache=cache).grade(PROMPTS, ANSWERS)


def test_processes_share_a_cache_without_mixing_their_lines(tmp_path):
    cache = tmp_path / "cache.jsonl"
    script = (
        "import sys; from alignkit.evaluation.judge import EndpointJudge; "
        "EndpointJudge(sys.argv[1], 'referee', cache=sys.argv[2]).grade(['q'] * 20, [sys.argv[3] + str(i) for i in "
        "range(20)])"
    )
    with serving("x" * 5_000 + "[[5]]") as (_, url):
        commands = [[sys.executable, "-c", script, url, str(cache), name] for name in ("a", "b")]
        processes = [subprocess.Popen(command) for command in commands]
        assert [process.wait(60) for process in processes] == [0, 0]
    rows = [json.loads(line) for line in cache.read_text().splitlines()]
    assert len({row["request"] for row in rows}) == 40
