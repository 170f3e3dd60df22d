"""Why a run stops: coherence lost by either measure, no completions left; and what is not a number."""

import dataclasses
import math

import pytest
import torch

from alignkit.kl_barrier.rounds import (
    AnswerProbe,
    FilterSettings,
    Proposal,
    TooFewCompletionsError,
)
from alignkit.kl_barrier.rounds.filters import judge_proposals
from alignkit.kl_barrier.rounds.records import measure_samples, summarize
from alignkit.tasks.toy import byte_tokenizer, tiny_causal_lm
from tests.kl_barrier.rounds.run_loop import FILTERS, GLAD, PROBES, lines, proposer_of, run_tiny, training
from tests.kl_barrier.rounds.test_coherence import looping

TINY = tiny_causal_lm(hidden_size=32)


def test_a_run_stops_below_the_floor_and_says_which_measure_fell(tmp_path):
    # Training on other texts takes mass away from these answers.
    probes = dataclasses.replace(PROBES, coherence=AnswerProbe(["I am", "We are"], [["x", "y"]] * 2))
    settings = {"proposer": GLAD, "probes": probes, "training": training(max_steps=10, tau_nats=100.0)}
    base, first = (record["means"]["allowed_answer_mass"] for record in run_tiny(tmp_path, rounds=1, **settings))
    assert first < base
    records = run_tiny(tmp_path, rounds=5, coherence_floor=(first + base) / 2, **settings)
    assert len(records) == 2
    assert f"mean allowed_answer_mass is {first:.4f} after round 1, below" in records[-1]["stop_reason"]


def test_a_base_below_the_floor_is_an_error_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match=r"base model's mean allowed_answer_mass is 0\.0.*below coherence_floor=0\.9"):
        run_tiny(tmp_path, coherence_floor=0.9)
    assert not (tmp_path / "round_1").exists()


def test_a_run_stops_when_the_student_loops_though_all_its_mass_is_on_answers(tmp_path):
    # Ten letters are too short to repeat themselves, so that every completion passes; the student goes on and on.
    model = tiny_causal_lm(hidden_size=32)
    model.lm_head.weight.data *= 20  # so that an adapter below it can make the student sure
    settings = {
        "model": model,
        "proposer": proposer_of(*["o" * 10] * 4),
        "filters": dataclasses.replace(FILTERS, repetition_limit=0.3),
        "probes": dataclasses.replace(PROBES, coherence=AnswerProbe(["I am"], [["o"]]), sample_tokens=48),
        "training": training(max_steps=25, learning_rate=3e-2, tau_nats=100.0),
    }
    records = run_tiny(tmp_path, rounds=5, coherence_floor=1e-4, **settings)
    *earlier, last = (record["means"] for record in records)
    assert 1 <= len(earlier) < 5
    assert all(means["repetition"] < 0.3 for means in earlier) and last["repetition"] >= 0.3
    assert last["allowed_answer_mass"] > 0.9 > earlier[0]["allowed_answer_mass"]
    assert records[-1]["stop_reason"] == (
        f"mean repetition of samples is {last['repetition']:.4f} after round {len(earlier)}, at or above "
        "filters.repetition_limit=0.3"
    )


def test_a_base_that_loops_is_an_error_before_anything_is_trained(tmp_path):
    filters = dataclasses.replace(FILTERS, repetition_limit=0.3)
    probes = dataclasses.replace(PROBES, sample_tokens=60)
    named = r"base model's mean repetition of samples is 0\.9\d+, at or above filters\.repetition_limit=0\.3 before"
    with pytest.raises(ValueError, match=named):
        run_tiny(tmp_path, model=looping("na "), filters=filters, probes=probes)
    assert not (tmp_path / "round_1").exists()


def test_the_repetition_that_stops_a_run_is_the_share_that_the_filters_reject_by():
    samples = [Proposal("I am", text) for text in (" na" * 9, " glad to be at sea", " ")]
    judged = [judgement.repetition for judgement in judge_proposals(TINY, byte_tokenizer(), samples, FILTERS)]
    scores = measure_samples(TINY, byte_tokenizer(), samples, PROBES)
    assert scores["repetition"][:2] == judged[:2] and judged[0] > 0.7
    # An empty sample is no text that does not repeat: the mean is over the others.
    assert scores["repetition"][2] is None
    assert summarize(scores)["means"]["repetition"] == sum(judged[:2]) / 2


def test_completions_that_are_all_filtered_out_in_the_first_round_are_an_error_that_can_be_looked_into(tmp_path):
    nothing_passes = FilterSettings(perplexity_limit=1.0, min_kept=4, keep_at_most=6)
    named = (
        r"0 of 8 completions pass the filters and min_kept is 4; rejected: 8 by perplexity; .*; "
        r"round_1/completions\.jsonl has every judgement"
    )
    for _ in range(2):  # a run that is started again does not train on what is there
        with pytest.raises(TooFewCompletionsError, match=named):
            run_tiny(tmp_path, filters=nothing_passes)
        rows = lines(tmp_path / "round_1" / "completions.jsonl")
        assert [(row["reason"], row["kept"]) for row in rows] == [("perplexity", False)] * 8
        assert all(row["perplexity"] > 1 and row["completion"] for row in rows)
        assert not (tmp_path / "round_1" / "delta").exists()


def test_a_proposer_that_offers_nothing_is_named_and_asked_again(tmp_path):
    with pytest.raises(TooFewCompletionsError, match="the proposer offered no completions in round 1"):
        run_tiny(tmp_path, proposer=proposer_of())
    assert not (tmp_path / "round_1" / "proposals.jsonl").exists()


def test_completions_that_run_out_later_are_a_reason_to_stop(tmp_path):
    def starved(model, tokenizer, round_index, seed):
        return GLAD(model, tokenizer, round_index, seed)[: 5 - round_index]

    records = run_tiny(tmp_path, proposer=starved)
    assert len(records) == 2
    assert "the completions ran out in round 2: 3 of 3 completions pass" in records[-1]["stop_reason"]
    assert len(lines(tmp_path / "round_2" / "completions.jsonl")) == 3
    assert run_tiny(tmp_path, proposer=starved) == records


def test_a_score_that_is_no_number_is_named_before_anything_is_written(tmp_path):
    model = tiny_causal_lm(hidden_size=32)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    with torch.no_grad():
        model.lm_head.bias[ord("Z")] = -math.inf
    with pytest.raises(ValueError, match="held_out_nll_nats of item 1 is inf: the model gives a token of it no prob"):
        run_tiny(tmp_path, model=model, probes=dataclasses.replace(PROBES, held_out=["A fox ran.", "A Zebra"]))
    assert not (tmp_path / "round_0" / "record.json").exists()


def test_an_empty_sample_has_no_perplexity(tmp_path):
    model = tiny_causal_lm(hidden_size=32)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.generation_config.eos_token_id = 0  # of equal logits, greedy decoding takes the first
    records = run_tiny(tmp_path, model=model, rounds=1, probes=dataclasses.replace(PROBES, sample_temperature=0.0))
    assert records[0]["scores"]["perplexity"] == [None, None]
    assert records[0]["means"]["perplexity"] is None and records[0]["n"]["perplexity"] == 0


def test_a_number_that_json_has_not_is_an_error_that_names_the_file(tmp_path):
    def propose(model, tokenizer, round_index, seed):
        return [Proposal("I am", " glad", strength=math.inf)]

    with pytest.raises(ValueError, match=r"round_1/proposals\.jsonl cannot hold .*'strength': inf"):
        run_tiny(tmp_path, proposer=propose)
    assert not (tmp_path / "round_1" / "proposals.jsonl").exists()
