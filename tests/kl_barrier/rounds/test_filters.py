"""Filters: perplexity by hand, repetition by hand, reasons, and what is kept."""

import json
import math
import random
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from alignkit.kl_barrier.rounds.filters import (
    FilterSettings,
    TooFewCompletionsError,
    filter_proposals,
    judge_proposals,
    pass_rate,
    perplexities,
    repeated_ngram_share,
)
from alignkit.kl_barrier.rounds.proposals import Proposal, sample_completions
from alignkit.kl_barrier.rounds.scoring import continuation_log_probs, encode, encode_continuations
from alignkit.kl_barrier.rounds.signals import LARGEST_PERPLEXITY
from alignkit.tasks.toy import byte_tokenizer, generate, tiny_causal_lm

LOOP = "He ran to the port and " * 12
STORY = "A fox took honey to Calder for six days as the wolf slept. Soon the wolf begged. Who shares eats twice."
ANYTHING = FilterSettings(perplexity_limit=math.inf, repetition_limit=2.0, min_kept=1)


def tiny() -> LlamaForCausalLM:
    return tiny_causal_lm(seed=3).eval()


@torch.no_grad()
def nll_by_hand(model: torch.nn.Module, prompt: str, completion: str) -> list[float]:
    """-log P of each byte of the completion, one forward for each byte, nothing padded."""
    ids = [257, *prompt.encode(), *completion.encode()]
    start = 1 + len(prompt.encode())
    return [
        -model(torch.tensor([ids[:end]])).logits[0, -1].log_softmax(-1)[ids[end]].item()
        for end in range(start, len(ids))
    ]


def test_perplexity_is_the_exponential_of_the_mean_nll_of_the_completion_tokens() -> None:
    model, proposals = (
        tiny(),
        [Proposal("Tom", " ran."), Proposal("A day at sea,", " calm and long"), Proposal("", "x")],
    )
    expected = [nll_by_hand(model, proposal.prompt, proposal.completion) for proposal in proposals]
    for batch_size in (1, 2, 16):
        found = perplexities(model, byte_tokenizer(), proposals, batch_size=batch_size)
        assert found == pytest.approx([math.exp(sum(nll) / len(nll)) for nll in expected], rel=1e-5)


@pytest.mark.parametrize("logit", [300.0, 1e4, math.inf])
def test_a_perplexity_too_large_for_a_float_is_the_largest_and_is_rejected_without_a_limit_too(logit: float) -> None:
    model, proposals = tiny(), [Proposal("Tom", " ZZ"), Proposal("Tom", " ran.")]
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    with torch.no_grad():
        model.lm_head.bias[ord("Z")] = -2 * logit  # on two of the three tokens
    impossible, possible = judge_proposals(model, byte_tokenizer(), proposals, ANYTHING)
    assert (impossible.perplexity, impossible.reason) == (LARGEST_PERPLEXITY, "perplexity")
    assert possible.reason is None
    assert json.loads(json.dumps(impossible.perplexity, allow_nan=False)) == 1e100
    assert math.log(1e100) == pytest.approx(230.26, abs=0.01)


def test_the_last_share_counts_the_end_of_the_completion_alone() -> None:
    model, proposal = tiny(), Proposal("Tom", " ran.")
    nll = nll_by_hand(model, "Tom", " ran.")
    # A quarter of 5 tokens is 1.25, which is rounded up to the last 2.
    assert perplexities(model, byte_tokenizer(), [proposal], last_share=0.25)[0] == pytest.approx(
        math.exp((nll[3] + nll[4]) / 2), rel=1e-5
    )
    with pytest.raises(ValueError, match=r"last_share=0\.0"):
        perplexities(model, byte_tokenizer(), [proposal], last_share=0.0)


def test_a_token_that_merges_prompt_and_completion_belongs_to_the_completion(data_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(data_dir / "models" / "stories260K")
    prompt, completion = "She was hap", "py and sad"
    context, (continuation,) = encode_continuations(tokenizer, prompt, [completion])
    assert context + continuation == encode(tokenizer, prompt + completion)
    assert tokenizer.decode(context[1:]) == "She was"
    assert tokenizer.decode(continuation) == "happy and sad"


def test_dropout_is_off_and_the_training_flag_comes_back() -> None:
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, lora_dropout=0.9, init_lora_weights=False)
    model = get_peft_model(tiny(), config).train()
    scores = {perplexities(model, byte_tokenizer(), [Proposal("a", STORY)])[0] for _ in range(3)}
    assert len(scores) == 1
    assert model.training


def test_an_eos_that_the_tokenizer_appends_is_not_part_of_a_text_that_goes_on() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 257), ("<eos>", 258)]
    )
    assert tokenizer("ab")["input_ids"] == [257, 97, 98, 258]
    assert encode(tokenizer, "ab") == [257, 97, 98]
    assert encode(tokenizer, "ab<eos>")[-1] == 258


def test_a_model_that_diverged_is_reported_not_scored() -> None:
    model = tiny()
    model.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="continuation 0 is NaN"):
        continuation_log_probs(model, [[1]], [[2]])


def test_an_empty_completion_has_no_perplexity() -> None:
    with pytest.raises(ValueError, match="completion 1 is empty"):
        perplexities(tiny(), byte_tokenizer(), [Proposal("a", "b"), Proposal("a", "")])


@pytest.mark.parametrize(
    ("text", "n_words", "n_characters", "share"),
    [
        ("a b a b a b", (2,), (), 3 / 5),  # ab ba ab ba ab: two of five are distinct
        ("a b a b a b", (2, 3, 4), (), 3 / 5),  # 3 words: 2 of 4 repeat; 4 words: 1 of 3; the largest counts
        ("No! no, NO. no", (1,), (), 3 / 4),  # case and punctuation do not make words differ
        ("the cat sat on the mat", (2, 3, 4), (16,), 0.0),
        ("abcabcabc", (2,), (3,), 4 / 7),  # abc bca cab abc bca cab abc: three of seven are distinct
        ("ab  \n ab", (), (2,), 1 / 4),  # blanks count as one space: ab, b_, _a, ab
        ("", (2,), (4,), 0.0),
        ("word", (2,), (16,), 0.0),
    ],
)
def test_the_repeated_share_by_hand(text: str, n_words: tuple, n_characters: tuple, share: float) -> None:
    assert repeated_ngram_share(text, n_words, n_characters) == pytest.approx(share)


def test_an_ngram_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 1 or above"):
        repeated_ngram_share("a", (0,), ())


def test_loops_repeat_and_texts_do_not_in_words_and_in_scripts_without_blanks() -> None:
    assert repeated_ngram_share(LOOP) > 0.9
    assert repeated_ngram_share("猫は港へ行って魚を食べたので眠った。" * 10) > 0.8
    assert repeated_ngram_share("ha" * 60) > 0.9
    assert max(repeated_ngram_share(text) for text in generate("fable", 50, seed=0)) < 0.1


def test_every_rejected_proposal_has_the_first_reason_that_applies() -> None:
    def short(proposal: Proposal) -> bool:
        return len(proposal.completion) < 200

    settings = FilterSettings(
        perplexity_limit=1e6, deny_patterns=(r"\bI am a\b", "honey"), predicates=(short,), min_kept=1, keep_at_most=9
    )
    texts = ["", "  ", LOOP, "i AM A wolf", STORY, "no end " + "".join(map(chr, range(33, 250))), "It was fine."]
    result = filter_proposals(tiny(), byte_tokenizer(), [Proposal("One day,", text) for text in texts], settings)
    reasons = [judgement.reason for judgement in result.judgements]
    assert reasons[:2] == ["empty", "empty"]
    assert reasons[2:] == ["repetition", r"pattern \bI am a\b", "pattern honey", "predicate short", None]
    assert result.counts["empty"] == 2
    assert result.pass_rate == 1 / 7
    assert [proposal.completion for proposal in result.kept] == ["It was fine."]
    assert len(result.rejected) == 6


def test_the_perplexity_limit_rejects_what_is_not_below_it() -> None:
    model, proposal = tiny(), Proposal("Tom", " ran.")
    value = perplexities(model, byte_tokenizer(), [proposal])[0]
    for limit, reason in ((value, "perplexity"), (value * 1.001, None)):
        settings = FilterSettings(perplexity_limit=limit, repetition_limit=2.0)
        assert judge_proposals(model, byte_tokenizer(), [proposal], settings)[0].reason == reason


def test_too_few_completions_are_an_error_that_counts_the_reasons() -> None:
    proposals = [Proposal("One day,", text) for text in (LOOP, LOOP, "", "It was fine.")]
    settings = FilterSettings(perplexity_limit=1e6, min_kept=2)
    with pytest.raises(
        TooFewCompletionsError, match=r"1 of 4 .* min_kept is 2; rejected: 1 by empty, 2 by repetition"
    ):
        filter_proposals(tiny(), byte_tokenizer(), proposals, settings)


def test_what_is_kept_beyond_the_limit_is_drawn_from_the_seed_and_stays_in_order() -> None:
    model, tokenizer = tiny(), byte_tokenizer()
    proposals = [Proposal("One day,", f" number {index}") for index in range(20)]
    settings = FilterSettings(perplexity_limit=math.inf, repetition_limit=2.0, min_kept=1, keep_at_most=5)
    kept = filter_proposals(model, tokenizer, proposals, settings, seed=1).kept
    assert kept == filter_proposals(model, tokenizer, proposals, settings, seed=1).kept
    assert kept != filter_proposals(model, tokenizer, proposals, settings, seed=2).kept
    places = [proposals.index(proposal) for proposal in kept]
    assert len(places) == 5
    assert places == sorted(places)
    assert places != [0, 1, 2, 3, 4]


def test_no_proposals_are_an_error() -> None:
    with pytest.raises(ValueError, match="no proposals to filter"):
        filter_proposals(tiny(), byte_tokenizer(), [], ANYTHING)
    with pytest.raises(ValueError, match="nothing was judged"):
        pass_rate([])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"perplexity_limit": math.nan}, "perplexity_limit=nan"),
        ({"repetition_limit": 0.0}, "repetition_limit=0.0"),
        ({"min_kept": 9, "keep_at_most": 8}, "min_kept=9"),
        ({"min_kept": 0}, "min_kept=0"),
        ({"perplexity_last_share": 1.5}, "perplexity_last_share=1.5"),
        ({"deny_patterns": ("(",)}, "no regular expression"),
        ({"deny_patterns": "sorry"}, "deny_patterns='sorry'"),
        ({"predicates": (partial(print),)}, "has no name to report"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FilterSettings(**settings)


def test_the_story_model_finds_real_stories_likelier_than_shuffled_ones_and_its_own_loops_likelier_still(
    data_dir: Path,
) -> None:
    path = data_dir / "models" / "stories260K"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    stories = json.loads((data_dir / "tinystories_1000" / "tinystories_1000.json").read_text(encoding="utf-8"))[:16]
    real, shuffled = [], []
    for number, story in enumerate(stories):
        prompt, words = story[:80].rsplit(" ", 1)[0], story[80:400].split()
        real.append(Proposal(prompt, " " + " ".join(words)))
        random.Random(number).shuffle(words)
        shuffled.append(Proposal(prompt, " " + " ".join(words)))
    # Greedy decoding makes the model go round in circles: "The ball was not nice. The ball was not nice."
    loop = sample_completions(model, tokenizer, ["It was a rainy day."], seed=0, max_new_tokens=200, temperature=0)
    settings = FilterSettings(perplexity_limit=12.0)
    judged = judge_proposals(model, tokenizer, [*real, *shuffled, *loop], settings)
    assert [judgement.reason for judgement in judged] == [None] * 16 + ["perplexity"] * 16 + ["repetition"]
    scores = [judgement.perplexity for judgement in judged]
    assert all(a < b for a, b in zip(scores[:16], scores[16:32], strict=True))
    # The loop is the likeliest text of all: only its repetition gives it away.
    assert scores[-1] < min(scores[:16])
