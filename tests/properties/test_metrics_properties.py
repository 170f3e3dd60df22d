"""Metrics of texts, checks of instructions and words of judges: bounds, identity, symmetry, renderings read back."""

import json
import math

import pytest
from hypothesis import assume
from hypothesis import strategies as st

from alignkit.evaluation.decoding import cut_at_stop, prompt_seed
from alignkit.evaluation.instructions.following import Instruction, follow_instructions, loose_forms
from alignkit.evaluation.instructions.format_checks import (
    ends_with,
    has_bullets,
    has_placeholders,
    has_two_responses,
    is_json,
    is_quoted,
    repeats_prompt,
)
from alignkit.evaluation.instructions.generated import generate_instructed_prompts
from alignkit.evaluation.instructions.word_checks import (
    AT_LEAST,
    LESS,
    count_sentences,
    has_keyword_frequency,
    has_no_forbidden_words,
    has_number_of_paragraphs,
    has_number_of_words,
)
from alignkit.evaluation.judge.conversations import conversation
from alignkit.evaluation.judge.prompts import OwnPrompts
from alignkit.evaluation.judge.verdicts import parse_grade, parse_winner, preference_of, reading
from alignkit.evaluation.metrics.code import extract_code, pass_at_k, python_syntax_valid
from alignkit.evaluation.metrics.code_similarity import code_bleu, code_tokens, keyword_match, syntax_match
from alignkit.evaluation.metrics.fact_quantities import numbers_of
from alignkit.evaluation.metrics.facts import corpus_fact_f1, fact_f1, fact_scores, facts_of
from alignkit.evaluation.metrics.overlap import bleu, corpus_bleu, rouge_l
from alignkit.evaluation.metrics.words import corpus_distinct_n, distinct_n, exact_match, normalized_text, words_of
from alignkit.evaluation.suites.gsm8k import extract_answer
from tests.properties.given import given
from tests.properties.strategies import ORDERS, SEEDS, TEXTS, WORDS, shuffled

PLAIN = st.lists(st.sampled_from(["river", "sea", "is", "old", "Berlin", "5", "1,200", "Ms"]), min_size=1, max_size=12)
SENTENCES = PLAIN.map(" ".join)
CODE = st.lists(
    st.sampled_from(["x = 1", "y = f(x) + 2", "print(x)", "if x:\n    y = 3", "for i in y:\n    x += i", "'a # b'"]),
    min_size=1,
    max_size=4,
).map("\n".join)

# ---- Texts ----


@given(SENTENCES, SENTENCES, ORDERS)
def test_overlaps_are_shares_that_are_one_for_the_same_text_and_blind_to_the_order_of_references(said, wanted, order):
    for metric in (rouge_l, bleu, fact_f1, exact_match):
        [score] = metric([said], [wanted])
        assert 0 <= score <= 1
        assert metric([said], [said]) == pytest.approx([1.0])
        assert metric([said], [[wanted, said]]) == pytest.approx([1.0])
        several = shuffled([wanted, "another text"], order)
        assert metric([said], [several])[0] == pytest.approx(metric([said], [several[::-1]])[0])
    assert rouge_l([wanted], [said]) == pytest.approx(rouge_l([said], [wanted]))
    assert rouge_l([said.upper()], [wanted]) == rouge_l([said], [wanted])
    assert exact_match([wanted], [said]) == exact_match([said], [wanted])
    assert corpus_bleu([said] * 3, [said] * 3) == pytest.approx(corpus_bleu([said], [said]))


@given(st.text(max_size=30))
def test_a_normalised_text_is_normal_and_neither_case_nor_punctuation_nor_articles_matter(text):
    normal = normalized_text(text)
    assert normal == " ".join(normal.split())
    assert normalized_text(f"  {text}!? ") == normal
    assert exact_match([text], [text]) == [1.0]
    if {*normal.split()} - {"a", "an", "the"}:
        assert normalized_text(f"The {text}") == normal


@given(st.integers(-(10**9), 10**9))
def test_a_number_with_commas_is_the_number_without(number):
    assert exact_match([f"{number:,}"], [str(number)]) == [1.0]
    assert exact_match([str(-number)], [str(number)]) == [float(number == 0)]
    assert numbers_of(f"about {abs(number):,} percent") == [f"{abs(number)} %"]
    assert extract_answer(f"so it is {number:,}.") == number
    assert extract_answer(f"1 + 1\n#### ${abs(number):,}.00 in all, 7 left") == abs(number)


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=15), st.integers(1, 2), st.permutations("abc"))
def test_distinct_n_sees_which_words_are_equal_and_not_which_they_are(words, n, names):
    text = " ".join(words)
    [share] = distinct_n([text], n)
    assert 0 < share <= 1
    renamed = " ".join(names["abc".index(word)].upper() for word in words)
    assert distinct_n([renamed], n) == [share]
    assert corpus_distinct_n([text], n) == share
    assert corpus_distinct_n([text, text], n) == pytest.approx(share / 2)
    assert words_of(text) == words


@given(SENTENCES, SENTENCES)
def test_precision_of_facts_one_way_is_recall_the_other_way_and_counts_add_up(said, wanted):
    [there], [back] = fact_scores([said], [wanted]), fact_scores([wanted], [said])
    assert there.precision == back.recall and there.f1 == pytest.approx(back.f1)
    assert there.n_predicted == facts_of(said).total()
    assert there.n_common <= min(there.n_predicted, there.n_reference)
    if there.n_predicted + there.n_reference:
        assert corpus_fact_f1([said, wanted], [wanted, said]) == pytest.approx(
            2 * there.n_common / (there.n_predicted + there.n_reference)
        )
    assert facts_of(f"{said} . {wanted}", ["number"]).total() == (
        facts_of(said, ["number"]).total() + facts_of(wanted, ["number"]).total()
    )


# ---- Code ----


@given(CODE, CODE)
def test_likeness_of_code_is_a_share_and_one_for_the_same_tokens(said, wanted):
    for metric in (syntax_match, keyword_match, code_bleu):
        assert 0 <= metric([said], [wanted])[0] <= 1
        assert metric([wanted], [wanted]) == pytest.approx([1.0])
        assert metric([f"{wanted}\n# a comment"], [wanted]) == pytest.approx([1.0])
    renamed = wanted.replace("x", "z")
    assert syntax_match([renamed], [wanted]) == pytest.approx([1.0])
    assert python_syntax_valid([said, f"{said}\n)"]) == [1.0, 0.0]
    assert code_tokens(f"{said} # {wanted!r}") == code_tokens(said)


@given(
    CODE,
    TEXTS.filter(lambda text: "`" not in text and "~" not in text),
    st.sampled_from(["python", "py", "", "Python"]),
)
def test_code_in_a_fence_is_taken_out_whatever_stands_around_it(code, around, mark):
    for fence in ("```", "~~~", "`````"):
        answer = f"{around}\n{fence}{mark}\n{code}\n{fence}\n{around}"
        assert extract_code(answer) == f"{code}\n"
        other = f"```json\n{{}}\n```\n{answer}"
        assert extract_code(other) == f"{code}\n"
    assert extract_code(code) == code


@given(st.lists(st.booleans(), min_size=2, max_size=10), ORDERS)
def test_pass_at_k_rises_with_k_from_the_pass_rate_to_whether_any_passed(samples, order):
    values = [pass_at_k([samples], k)[0] for k in range(1, len(samples) + 1)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(sum(samples) / len(samples))
    assert values[-1] == float(any(samples))
    assert pass_at_k([shuffled(samples, order)], 2) == pass_at_k([samples], 2)
    fails = [1 - value for value in values]
    assert fails[1] == pytest.approx(math.comb(samples.count(False), 2) / math.comb(len(samples), 2))


# ---- Instructions ----


@given(TEXTS, WORDS, st.integers(0, 5))
def test_at_least_and_less_than_are_each_others_opposite(text, word, threshold):
    for check in (
        lambda relation: has_keyword_frequency(text, word, threshold, relation),
        lambda relation: has_number_of_words(text, threshold, relation),
    ):
        assert check(AT_LEAST) != check(LESS)
    assert has_number_of_words(text, 0, AT_LEAST)


@given(st.lists(SENTENCES, min_size=1, max_size=5), st.sampled_from([". ", "! ", "?\n", '." ']))
def test_parts_of_an_answer_are_counted_as_they_were_put_together(parts, end):
    # A stop behind a title or the number of a list ends no sentence.
    assume(not any(part.endswith("Ms") or part == "5" for part in parts))
    assert count_sentences("".join(f"{part}{end}" for part in parts)) == len(parts)
    assert count_sentences(end.join(parts)) == len(parts)
    assert has_number_of_paragraphs("\n***\n".join(parts), len(parts))
    assert has_bullets("\n".join(f"* {part}" for part in parts), len(parts))
    assert has_placeholders(" ".join(f"[{part}]" for part in parts), len(parts))
    assert not has_placeholders(" ".join(f"[{part}]" for part in parts), len(parts) + 1)
    assert has_two_responses("******".join(parts)) == (len(parts) == 2 and parts[0] != parts[1])


@given(TEXTS, WORDS)
def test_what_is_asked_for_is_seen_whatever_its_case_and_what_is_forbidden_is_not_within_a_word(text, word):
    assert repeats_prompt(f"{word.upper()} {text}", word.lower()) == (word.upper().lower() == word.lower())
    assert ends_with(f"{text} {word}\n", word)
    assert is_quoted(f' "{text}"')
    assert not has_no_forbidden_words(f"x, {word}. y", [word])
    assert has_no_forbidden_words(f"x{word}x", [word])


@given(st.recursive(st.none() | st.booleans() | st.integers() | TEXTS, lambda part: st.lists(part), max_leaves=5))
def test_json_is_json_bare_and_in_a_fence(value):
    text = json.dumps(value)
    assert is_json(text) and is_json(f"```json\n{text}\n```") and is_json(f"\n{text} ")
    assert not is_json(f"{text} x")


@given(TEXTS, st.integers(0, 400))
def test_what_is_followed_strictly_is_followed_loosely_and_a_blank_answer_follows_nothing(text, number):
    [prompt] = generate_instructed_prompts(number + 1)[number:]
    [found] = follow_instructions([text], [prompt])
    assert all(loose >= strict for strict, loose in zip(found.strict, found.loose, strict=True))
    assert text in loose_forms(text)
    assert not any(follow_instructions([" \n"], [prompt])[0].loose)
    again = [Instruction(one.kind, one.arguments) for one in prompt.instructions]
    assert tuple(again) == prompt.instructions


# ---- Judges ----

NOISE = TEXTS.filter(lambda text: "[[" not in text and "</think>" not in text)


@given(st.integers(2, 20).map(lambda number: number / 2), NOISE, NOISE, TEXTS)
def test_a_grade_is_read_back_from_any_words_around_it_and_two_that_differ_are_none(grade, before, after, thought):
    text = f"{before} [[{grade}]] {after}"
    assert parse_grade(text, "brackets") == grade
    assert parse_grade(f"{thought}[[1]]</think>{text}", "brackets") == grade
    assert parse_grade(f"{text} [[{grade}]]", "brackets") == grade
    assert parse_grade(f"{text} [[{grade + 0.5}]]", "brackets") is None
    assert parse_grade(f"[[{grade + 10}]]", "brackets") is None
    assert parse_grade(json.dumps({"reasons": before, "rating": grade}), "json") == grade


@given(st.sampled_from("ABC"), st.sampled_from("ABC"), NOISE)
def test_a_judge_that_looks_at_places_alone_prefers_nobody_and_sides_turn_round_with_letters(one, other, noise):
    winners = {"A": "first", "B": "second", "C": "tie"}
    first, second = (reading("compare", f"{noise} [[{letter}]]", False, "brackets") for letter in (one, other))
    assert parse_winner(first.text, "brackets") == winners[one]
    found = preference_of(first, second, "brackets")
    turned = preference_of(second, first, "brackets")
    mirrored = {"first": "second", "second": "first", "tie": "tie"}
    assert turned.winner == mirrored[found.winner]
    if one == other:
        assert found.winner == "tie"
    assert found.consistent == ((one, other) in {("A", "B"), ("B", "A"), ("C", "C")})


@given(TEXTS, st.text(alphabet="=\n x", max_size=60), st.none() | TEXTS)
def test_no_answer_can_end_its_own_frame(question, answer, reference):
    shown = conversation(question, answer)
    references = () if reference is None else (reference,)
    [_, asked] = OwnPrompts().grading(shown, references)
    line = max((one for one in asked["content"].split("\n") if one and set(one) == {"="}), key=len)
    assert line not in question + "\n" + answer + "\n" + (reference or "")
    assert asked["content"].count(f"assistant:\n{line}\n{answer}\n{line}") == 1
    assert asked["content"].split("\n").count(line) == 2 * (2 + len(references))


@given(TEXTS, st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_a_completion_is_cut_before_its_first_stop_and_cutting_again_changes_nothing(text, stops):
    cut = cut_at_stop(text, stops)
    assert text.startswith(cut)
    assert not any(stop in cut.lstrip() for stop in stops)
    assert cut_at_stop(cut, stops) == cut
    assert cut_at_stop(text, stops[::-1]) == cut


@given(SEEDS, st.integers(0, 999), SEEDS, st.integers(0, 999))
def test_prompts_at_two_places_and_two_seeds_have_seeds_of_their_own(seed, place, other_seed, other_place):
    is_same = (seed, place) == (other_seed, other_place)
    assert (prompt_seed(seed, place) == prompt_seed(other_seed, other_place)) == is_same
    assert 0 <= prompt_seed(seed, place) < 2**56
