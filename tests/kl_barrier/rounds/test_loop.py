"""The loop of rounds: what a round builds on, when it stops, and what it refuses."""

import dataclasses
import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from alignkit.kl_barrier.rounds import (
    FilterSettings,
    TraitProbe,
    load_adapter,
)
from alignkit.kl_barrier.rounds.settings import describe, first_difference, stage_seed, weights_digest
from alignkit.tasks.toy import byte_tokenizer, tiny_causal_lm
from tests.kl_barrier.rounds.run_loop import (
    FILTERS,
    GLAD,
    PROBES,
    STEERING,
    lines,
    proposer_of,
    results_of,
    run_tiny,
    training,
)

IDS = torch.arange(18).reshape(2, 9)


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


def test_the_search_for_the_dose_is_recorded_and_reported(tmp_path):
    searching = dataclasses.replace(STEERING, target_pass_rate=0.5, probe_steps=1, probe_samples=2)
    impassable = dataclasses.replace(searching, filters=FilterSettings(perplexity_limit=1.0))
    for name, proposer, dose, tried, cell in (
        ("passes", searching, 4.0, [[4.0, 1.0]], "4 (4: 100%)"),
        ("fails", impassable, 0.2, [[4.0, 0.0], [0.2, 0.0]], "0.2, too few passed (4: 0%, 0.2: 0%)"),
    ):
        record = run_tiny(tmp_path / name, proposer=proposer, rounds=1)[1]
        assert record["dose"] == {"strength": dose, "reached": dose == 4.0, "tried": tried}
        assert record["proposals"]["strengths"] == [0.5 * dose, dose]
        assert json.loads((tmp_path / name / "round_1" / "record.json").read_text())["dose"] == record["dose"]
        report = (tmp_path / name / "report.md").read_text()
        assert f"| dose of all strengths (doses tried: share that passed) | – | {cell} |" in report


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


@pytest.mark.parametrize(
    ("probe", "named"),
    [
        (([], [" glad"], [" sad"]), r"prefixes=\[\] must be a list of texts, at least one and none blank"),
        (("I am", [" glad"], [" sad"]), "prefixes='I am' must be a list"),
        ((["I am", " "], [" glad"], [" sad"]), r"prefixes=\['I am', ' '\] must be"),
        ((["I am"], [], [" sad"]), r"positive=\[\] must be a list of texts, at least one"),
        ((["I am"], [" glad"], []), r"negative=\[\] must be a list of texts, at least one"),
        ((["I am"], [" glad"], " sad"), "negative=' sad' must be a list"),
        ((["I am"], [" glad", "\t"], [" sad"]), "positive=.* none blank"),
        ((["I am"], [" glad", " glad"], [" sad"]), r"the positive \[' glad'\] are named twice.*; drop one"),
        (
            (["I am"], [" glad", " low"], [" low"]),
            r"\[' low'\] are named twice, as positive and as negative; leave each",
        ),
    ],
)
def test_a_trait_that_cannot_be_scored_is_refused_in_words(probe, named):
    with pytest.raises(ValueError, match=named):
        TraitProbe(*probe)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_with_an_adapter_is_refused(tmp_path):
    adapted = get_peft_model(tiny_causal_lm(hidden_size=32), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="has an adapter already"):
        run_tiny(tmp_path, model=adapted)


def test_settings_are_told_in_json():
    described = json.loads(json.dumps(describe(FilterSettings(perplexity_limit=math.inf, predicates=(proposer_of,)))))
    assert described["perplexity_limit"] == "inf"
    assert described["predicates"] == [f"{proposer_of.__module__}.proposer_of"]
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
