"""The loop of rounds: what a round builds on, when it stops, and what it refuses."""

import dataclasses
import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from alignkit.kl_barrier.rounds import AnswerProbe, FilterSettings, Proposal, TooFewCompletionsError, load_adapter
from alignkit.kl_barrier.rounds.settings import describe, first_difference, stage_seed, weights_digest
from alignkit.tasks.toy import byte_tokenizer, tiny_causal_lm
from tests.kl_barrier.rounds.run_loop import FILTERS, PROBES, results_of, run_tiny, training

IDS = torch.arange(18).reshape(2, 9)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def proposer_of(*completions):
    """Any callable proposes: here always the same texts, given by name so that runs of the tests compare."""

    def propose(model, tokenizer, round_index, seed):
        return [Proposal("I am", completion) for completion in completions]

    return propose


GLAD = proposer_of(" glad", " glad and well", " glad to be", " glad, so glad")


def test_a_run_leaves_a_record_with_everything_it_takes_to_redo_it(finished_run):
    base, first, last = lines(finished_run / "results.jsonl")
    assert [base["round"], first["round"], last["round"]] == [0, 1, 2]
    for record in (base, first, last):
        assert {name: len(values) for name, values in record["scores"].items()} == record["n"]
        assert record["n"]["trait_nats"] == 2 and record["n"]["allowed_answer_mass"] == 1
        assert set(record["scores"]) == {
            *("trait_nats", "allowed_answer_mass", "repetition", "perplexity", "held_out_nll_nats")
        }
        assert record["seed"] == 0 and record["versions"]["trl"] and record["device"]
        assert record["settings"]["training"]["learning_rate"] == 1e-2
        assert record["settings"]["proposer"]["positive"] == "Be glad."
    assert base["stop_reason"] is first["stop_reason"] is None
    assert last["stop_reason"] == "all 2 rounds that were asked for are done"
    assert last["proposals"]["proposed"] == 8 and last["proposals"]["kept"] == 6
    assert last["steered"]["strength"] == 1.0


def test_the_cumulative_adapter_of_a_round_is_the_stack_of_its_deltas(finished_run):
    cumulative = PeftModel.from_pretrained(tiny_causal_lm(hidden_size=32), str(finished_run / "round_2" / "adapter"))
    stack = PeftModel.from_pretrained(
        tiny_causal_lm(hidden_size=32), str(finished_run / "round_1" / "delta"), adapter_name="one"
    )
    stack.load_adapter(str(finished_run / "round_2" / "delta"), adapter_name="two")
    stack.base_model.set_adapter(["one", "two"])
    assert (cumulative.eval()(IDS).logits - stack.eval()(IDS).logits).abs().max() < 1e-6
    assert load_adapter(finished_run / "round_2" / "adapter").config.r == 4


def test_a_model_given_as_an_object_is_returned_as_it_was(tmp_path):
    model = tiny_causal_lm(hidden_size=32).train()
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    before, config = weights_digest(model), model.generation_config.to_dict()
    run_tiny(tmp_path, model=model, rounds=1)
    assert weights_digest(model) == before and model.training
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == attributes
    assert model.generation_config.to_dict() == config
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_model_given_by_name_is_loaded(tmp_path):
    tiny_causal_lm(hidden_size=32).save_pretrained(tmp_path / "model")
    records = run_tiny(tmp_path / "run", model=str(tmp_path / "model"), rounds=1)
    config = json.loads((tmp_path / "run" / "round_1" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "model")
    assert records[0]["settings"]["model"]["name"] == str(tmp_path / "model")


def test_the_trait_rises_in_every_round_when_the_completions_show_it(tmp_path):
    settings = training(max_steps=20, tau_nats=100.0, learning_rate=3e-2)
    records = run_tiny(tmp_path, proposer=GLAD, training=settings)
    base, first, second = (record["means"]["trait_nats"] for record in records)
    assert base + 0.3 < first and first + 0.3 < second
    assert all("steered" not in record or record["steered"] is None for record in records)


@pytest.mark.parametrize(("ref", "starts_at_zero"), [("previous", True), ("base", False)])
def test_the_reference_is_the_model_before_the_round_or_the_original(tmp_path, ref, starts_at_zero):
    run_tiny(tmp_path, proposer=GLAD, training=training(ref=ref, tau_nats=100.0, max_steps=4))
    divergences = [
        [entry["kl/divergence"] for entry in lines(tmp_path / f"round_{n}" / "training_log.jsonl") if "loss" in entry]
        for n in (1, 2)
    ]
    assert divergences[0][0] == 0.0 and divergences[0][-1] > 0
    assert (divergences[1][0] == 0.0) is starts_at_zero


def test_the_model_trains_on_the_completion_and_no_end_is_appended(tmp_path):
    run_tiny(tmp_path, proposer=proposer_of(" ab", " cd", " ef", " gh"), rounds=1, training=training(max_steps=1))
    (entry, _) = lines(tmp_path / "round_1" / "training_log.jsonl")
    # Three rows of <bos>, "I am" and three bytes; the sum of NLL is over the bytes alone.
    assert entry["num_tokens"] == 3 * (1 + 4 + 3)


def test_a_round_neither_pushes_nor_evaluates_before_it_trains(tmp_path):
    records = run_tiny(tmp_path, rounds=1, training=training(push_to_hub=True, eval_on_start=True))
    assert records[-1]["round"] == 1


def test_rounds_that_are_added_equal_a_run_that_had_them_from_the_start(finished_run, tmp_path):
    run_tiny(tmp_path, rounds=1)
    run_tiny(tmp_path, rounds=2)
    assert results_of(tmp_path) == results_of(finished_run)


def test_another_seed_draws_other_completions(finished_run, tmp_path):
    run_tiny(tmp_path, rounds=1, seed=1)
    name = "round_1/proposals.jsonl"
    assert (tmp_path / name).read_text() != (finished_run / name).read_text()


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


def test_completions_that_are_all_filtered_out_in_the_first_round_are_an_error(tmp_path):
    nothing_passes = FilterSettings(perplexity_limit=1.0, min_kept=4, keep_at_most=6)
    with pytest.raises(TooFewCompletionsError, match="0 of 8 completions pass the filters and min_kept is 4"):
        run_tiny(tmp_path, filters=nothing_passes)


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
    assert run_tiny(tmp_path, proposer=starved) == records


def test_an_empty_sample_has_no_perplexity(tmp_path):
    model = tiny_causal_lm(hidden_size=32)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.generation_config.eos_token_id = 0  # of equal logits, greedy decoding takes the first
    records = run_tiny(tmp_path, model=model, rounds=1, probes=dataclasses.replace(PROBES, sample_temperature=0.0))
    assert records[0]["scores"]["perplexity"] == [None, None]
    assert records[0]["means"]["perplexity"] is None and records[0]["n"]["perplexity"] == 0


def test_a_run_that_diverges_is_an_error_and_leaves_no_adapter(tmp_path):
    with pytest.raises((ValueError, FloatingPointError)):
        run_tiny(tmp_path, training=training(learning_rate=1e38, max_grad_norm=0.0, max_steps=3, barrier_weight=0.0))
    assert not (tmp_path / "round_1" / "delta").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training": training(learning_rate=2e-2)}, "training.learning_rate was 0.01 and is now 0.02"),
        ({"training": training(tau_nats=0.25)}, "training.tau_nats was 0.5 and is now 0.25"),
        ({"seed": 3}, "seed was 0 and is now 3"),
        ({"peft_config": LoraConfig(r=3, target_modules=["q_proj", "v_proj"])}, "peft_config.r was 2 and is now 3"),
        ({"proposer": GLAD}, "proposer was"),
        ({"model": tiny_causal_lm(seed=5, hidden_size=32)}, "model.weights_sha256 was"),
    ],
)
def test_settings_that_changed_between_runs_are_named(finished_run, changes, named):
    with pytest.raises(ValueError, match=named.replace("[", r"\[")):
        run_tiny(finished_run, **changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training": training(ref=None)}, r"training.ref is None; rounds need one of \['base', 'previous'\]"),
        ({"training": training(ref="copy")}, "training.ref is 'copy'"),
        ({"training": training(ref_cache_dir="x")}, "ref_cache_dir is 'x'"),
        ({"rounds": 0}, "rounds is 0"),
        ({"coherence_floor": 1.5}, "coherence_floor is 1.5"),
        ({"peft_config": LoraConfig(use_dora=True)}, "use_dora=True"),
    ],
)
def test_settings_that_rounds_cannot_have_are_refused(tmp_path, changes, named):
    with pytest.raises(ValueError, match=named):
        run_tiny(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_with_an_adapter_is_refused(tmp_path):
    adapted = get_peft_model(tiny_causal_lm(hidden_size=32), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="has an adapter already"):
        run_tiny(tmp_path, model=adapted)


def test_settings_are_told_in_json():
    described = json.loads(json.dumps(describe(FilterSettings(perplexity_limit=math.inf, predicates=(proposer_of,)))))
    assert described["perplexity_limit"] == "inf"
    assert described["predicates"] == [f"{__name__}.proposer_of"]
    many = describe([str(number) for number in range(50)])
    assert many["texts"] == 50 and many != describe([str(number) for number in range(1, 51)])
    assert describe(PROBES)["trait"]["positive"] == [" glad"]


def test_where_a_run_writes_and_reports_is_no_setting_of_it():
    assert describe(training(logging_steps=5, save_steps=7)) == describe(training())
    assert first_difference(describe(FILTERS), describe(FILTERS)) is None


def test_every_stage_has_a_seed_of_its_own():
    seeds = {stage_seed(seed, n, stage) for seed in (0, 1) for n in (1, 2) for stage in ("propose", "filter", "heal")}
    assert len(seeds) == 12 and all(0 <= seed < 2**32 for seed in seeds)


def test_the_tokenizer_is_left_as_it_was_though_training_needs_a_pad_token(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    run_tiny(tmp_path, rounds=1, tokenizer=tokenizer)
    assert tokenizer.pad_token is None
