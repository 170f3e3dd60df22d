"""Coherence and trait: probabilities of answers by hand, and how each measure reacts to a model that loops."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from alignkit.kl_barrier.rounds.coherence import (
    AnswerProbe,
    CoherenceReport,
    allowed_answer_mass,
    answer_log_prob_margin,
    measure_coherence,
    repetition_rates,
)
from alignkit.kl_barrier.rounds.proposals import Proposal, sample_completions
from alignkit.tasks.toy import byte_tokenizer, tiny_causal_lm


def tiny(seed: int = 0) -> LlamaForCausalLM:
    return tiny_causal_lm(seed=seed).eval()


@torch.no_grad()
def looping(text: str) -> LlamaForCausalLM:
    """A model that writes the bytes of `text` for ever: after each its successor, whatever came before."""
    model = tiny_causal_lm(hidden_size=264, layers=1).eval()
    for parameter in model.parameters():
        parameter.zero_()
    model.model.norm.weight.fill_(1.0)
    model.model.embed_tokens.weight[:, :259] = torch.eye(259)
    cycle = text.encode()
    successor = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    for byte in range(259):
        model.lm_head.weight[successor.get(byte, cycle[0]), byte] = 2.0  # times sqrt(264) after the norm
    return model


@torch.no_grad()
def probability_by_hand(model: torch.nn.Module, prefix: str, answer: str) -> float:
    ids = [257, *prefix.encode()]
    probability = 1.0
    for byte in answer.encode():
        probability *= model(torch.tensor([ids])).logits[0, -1].softmax(-1)[byte].item()
        ids.append(byte)
    return probability


def test_the_mass_is_the_sum_of_the_probabilities_of_whole_answers() -> None:
    model = tiny()
    probe = AnswerProbe(["The sea is", "Wind"], [" calm", " wild", " x"])
    expected = [
        sum(probability_by_hand(model, prefix, answer) for answer in (" calm", " wild", " x"))
        for prefix in probe.prefixes
    ]
    for batch_size in (1, 16):
        found = allowed_answer_mass(model, byte_tokenizer(), probe, batch_size=batch_size)
        assert found == pytest.approx(expected, rel=1e-4)


def test_every_prefix_may_have_answers_of_its_own() -> None:
    model, tokenizer = tiny(), byte_tokenizer()
    probe = AnswerProbe(["The sea is", "Wind"], [[" calm"], [" north", " south"]])
    alone = [AnswerProbe(["The sea is"], [" calm"]), AnswerProbe(["Wind"], [" north", " south"])]
    assert allowed_answer_mass(model, tokenizer, probe) == pytest.approx(
        [allowed_answer_mass(model, tokenizer, single)[0] for single in alone], rel=1e-5
    )


def test_under_a_uniform_model_the_mass_is_the_answers_share_of_the_vocabulary() -> None:
    uniform = tiny()
    uniform.lm_head.weight.data.zero_()
    probe = AnswerProbe(["The sea is"], ["a", "b", "c"])
    assert allowed_answer_mass(uniform, byte_tokenizer(), probe)[0] == pytest.approx(3 / 259, rel=1e-5)


def test_options_are_read_in_every_rotation_and_the_masses_averaged() -> None:
    probe = AnswerProbe(["Is it {options}? It is"], [" red", " green", " blue"])
    orders = ["red, green or blue", "green, blue or red", "blue, red or green"]
    assert probe.orders(0) == [f"Is it {order}? It is" for order in orders]
    model, tokenizer = tiny(), byte_tokenizer()
    masses = [
        allowed_answer_mass(model, tokenizer, AnswerProbe([text], [" red", " green", " blue"]))[0]
        for text in probe.orders(0)
    ]
    assert allowed_answer_mass(model, tokenizer, probe)[0] == pytest.approx(sum(masses) / 3, rel=1e-5)
    assert AnswerProbe(["{options}:"], [" a", " b"], " and ").orders(0) == ["a and b:", "b and a:"]
    assert AnswerProbe(["{options}:"], [" a"]).orders(0) == ["a:"]


def test_the_options_order_does_not_change_the_score() -> None:
    model, tokenizer = tiny(), byte_tokenizer()
    scores = [
        allowed_answer_mass(model, tokenizer, AnswerProbe(["Say {options}:"], answers))[0]
        for answers in ([" yes", " no"], [" no", " yes"])
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


def test_an_answer_that_begins_another_is_refused_because_its_mass_would_count_twice() -> None:
    with pytest.raises(ValueError, match=r"tokens of the answer ' sad' begin those of ' sadly'"):
        allowed_answer_mass(tiny(), byte_tokenizer(), AnswerProbe(["He was"], [" sadly", " sad"]))
    with pytest.raises(ValueError, match=r"' sad' begin those of ' sadly'"):
        answer_log_prob_margin(tiny(), byte_tokenizer(), ["He was"], [" sad"], [" sadly"])


def test_the_margin_is_the_difference_of_the_logs_of_the_two_sums() -> None:
    model, positive, negative = tiny(), [" glad", " merry"], [" sad", " x"]
    found = answer_log_prob_margin(model, byte_tokenizer(), ["He was", "She"], positive, negative)
    for prefix, margin in zip(["He was", "She"], found, strict=True):
        sums = [
            sum(probability_by_hand(model, prefix, answer) for answer in answers) for answers in (positive, negative)
        ]
        assert margin == pytest.approx(math.log(sums[0]) - math.log(sums[1]), abs=1e-4)
    swapped = answer_log_prob_margin(model, byte_tokenizer(), ["He was", "She"], negative, positive)
    assert swapped == pytest.approx([-margin for margin in found], abs=1e-9)


def test_a_margin_is_finite_where_the_probabilities_are_too_small_for_a_float() -> None:
    model = looping("na ")
    (margin,) = answer_log_prob_margin(model, byte_tokenizer(), ["a"], ["z" * 40], ["y" * 20])
    assert margin == pytest.approx(-20 * 2 * math.sqrt(264), rel=0.01)  # 20 more impossible bytes, about 32 nats each


@pytest.mark.parametrize(
    ("prefixes", "answers", "message"),
    [
        ([], [" a"], "prefixes="),
        (["a", ""], [" a"], "prefixes="),
        (["a", " "], [" a"], "prefixes="),
        ("a", [" a"], "prefixes="),
        (["a"], [], "answers="),
        (["a"], " a", "answers="),
        (["a"], [" a", " "], "answers="),
        (["a"], [" a", [" b"]], "answers="),
        (["a", "b"], [[" a"]], "2 prefixes and 1 lists"),
        (["a"], [" a", " b", " a"], r"\[' a'\] are named twice"),
    ],
)
def test_a_probe_that_cannot_be_scored_is_refused_in_words(prefixes: list, answers: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerProbe(prefixes, answers)


def test_an_answer_in_both_sets_is_refused() -> None:
    with pytest.raises(ValueError, match="named twice"):
        answer_log_prob_margin(tiny(), byte_tokenizer(), ["a"], [" b"], [" b"])


def test_a_loop_of_other_words_has_no_answer_mass_and_repeats_itself_though_its_own_perplexity_is_one() -> None:
    loop, tokenizer = looping("na "), byte_tokenizer()
    samples = sample_completions(loop, tokenizer, ["Say yes or no:"], seed=0, max_new_tokens=90)
    assert samples[0].completion == "na " * 30
    probe = AnswerProbe(["Say yes or no:"], [" yes", " no"])
    report = measure_coherence(loop, loop, tokenizer, probe, samples)
    assert report.mean_allowed_answer_mass < 1e-6
    assert report.mean_repetition > 0.9
    assert report.mean_perplexity == pytest.approx(1.0, abs=1e-3)


def test_a_loop_of_answers_passes_the_answer_mass_and_is_caught_by_the_repetition() -> None:
    loop, tokenizer = looping(" no"), byte_tokenizer()
    samples = sample_completions(loop, tokenizer, ["Say yes or no:"], seed=0, max_new_tokens=90)
    report = measure_coherence(loop, tiny(), tokenizer, AnswerProbe(["Say yes or no:"], [" yes", " no"]), samples)
    assert report.mean_allowed_answer_mass > 0.999
    assert report.mean_repetition > 0.9
    assert report.mean_perplexity > 100  # a model that has not learned the loop is surprised by it


def test_noise_passes_the_repetition_and_is_caught_by_the_perplexity_under_the_original() -> None:
    tokenizer = byte_tokenizer()
    samples = sample_completions(tiny(), tokenizer, ["Say yes or no:"], seed=0, max_new_tokens=60)
    report = measure_coherence(tiny(), looping(" no"), tokenizer, AnswerProbe(["Say:"], [" no"]), samples)
    assert report.mean_repetition == 0.0
    assert report.mean_perplexity > 1e6


def test_the_report_keeps_every_item_and_has_no_total() -> None:
    report = CoherenceReport([0.5, 1.0], [0.0, 0.1, 0.2], [1.0, 100.0])
    assert report.mean_allowed_answer_mass == 0.75
    assert report.mean_repetition == pytest.approx(0.1)
    assert report.mean_perplexity == pytest.approx(10.0)  # geometric
    public = {name for name in dir(report) if not name.startswith("_")}
    parts = {"allowed_answer_masses", "repetitions", "perplexities"}
    assert public == parts | {"mean_allowed_answer_mass", "mean_repetition", "mean_perplexity"}


def test_repetition_is_given_for_each_text() -> None:
    first, second = repetition_rates(["One day a fox ran.", "no " * 30])
    assert first == 0.0
    assert second > 0.9


def test_nothing_to_measure_is_an_error() -> None:
    probe = AnswerProbe(["a"], [" b"])
    for samples in ([], [Proposal("a", "")]):
        with pytest.raises(ValueError, match=f"none of {len(samples)} completions"):
            measure_coherence(tiny(), tiny(), byte_tokenizer(), probe, samples)


def test_an_empty_completion_has_no_perplexity_and_does_not_move_the_mean() -> None:
    samples = [Proposal("a", " calm sea"), Proposal("a", "")]
    report = measure_coherence(tiny(), tiny(), byte_tokenizer(), AnswerProbe(["a"], [" b"]), samples)
    assert report.perplexities[1] is None
    assert report.mean_perplexity == pytest.approx(report.perplexities[0])


def test_the_story_model_puts_its_mass_on_answers_that_fit_the_story(data_dir: Path) -> None:
    path = data_dir / "models" / "stories260K"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    prefixes = ["Once upon a time, there was a little", '{options} were friends. "Let\'s play!" said']
    fitting = AnswerProbe(prefixes, [[" girl", " boy"], [" Lily", " Tom"]], " and ")
    odd = AnswerProbe(prefixes, [[" because", " under"], [" went", " of"]], " and ")
    masses = allowed_answer_mass(model, tokenizer, fitting)
    assert min(masses) > 0.7
    assert max(allowed_answer_mass(model, tokenizer, odd)) < 0.01
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            parameter.add_(0.5 * parameter.std() * noise)
    assert all(a < b - 0.2 for a, b in zip(allowed_answer_mass(model, tokenizer, fitting), masses, strict=True))
