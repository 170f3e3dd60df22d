"""Everything in the package that reads what a model wrote, as functions of one text."""

from collections.abc import Callable
from typing import Any

from alignkit.evaluation.instructions import Instruction, follow_instructions
from alignkit.evaluation.instructions.following import InstructedPrompt
from alignkit.evaluation.judge.verdicts import is_refusal as judge_refuses
from alignkit.evaluation.judge.verdicts import parse_grade, parse_winner
from alignkit.evaluation.metrics.code import extract_code, python_syntax_valid
from alignkit.evaluation.metrics.code_similarity import code_bleu, keyword_match, syntax_match
from alignkit.evaluation.metrics.facts import fact_f1
from alignkit.evaluation.metrics.overlap import bleu, rouge_l
from alignkit.evaluation.metrics.safety import harmlessness, refusals
from alignkit.evaluation.metrics.words import corpus_distinct_n, exact_match, normalized_text
from alignkit.evaluation.suites.clinical import _length_match
from alignkit.evaluation.suites.code_problems import embedded_rows, read_problem
from alignkit.evaluation.suites.gsm8k import extract_answer as gsm8k_answer
from alignkit.evaluation.tatqa_rules import score_answer
from alignkit.evaluation.tatqa_text import extract_answer
from alignkit.kl_barrier.rounds.coherence import repetition_rates
from alignkit.rewards.arithmetic import evaluate_expression, numbers_used
from alignkit.rewards.heuristics import (
    FormatReward,
    LengthReward,
    RefusalReward,
    RepetitionReward,
    ToxicityReward,
    WeightedReward,
)
from alignkit.rewards.refusals import is_refusal
from alignkit.tasks.conciseness import ConcisenessReward
from alignkit.tasks.countdown import CountdownReward, answer_score, format_score
from alignkit.tasks.requests import check_answer, requests

WORDS = ["curse", "some phrase"]
REFERENCE = "On March 5, 2024 Ann Lee paid $1,200 for 3 books."
FIVE = {"num_words": 5, "relation": "at least"}
INSTRUCTIONS = (
    Instruction("keywords:existence", {"keywords": ["one"]}),
    Instruction("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "less than"}),
    Instruction("keywords:forbidden_words", {"forbidden_words": ["two"]}),
    Instruction("keywords:letter_frequency", {"letter": "a", "let_frequency": 2, "let_relation": "at least"}),
    Instruction("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"}),
    Instruction("length_constraints:number_paragraphs", {"num_paragraphs": 2}),
    Instruction("length_constraints:number_words", FIVE),
    Instruction(
        "length_constraints:nth_paragraph_first_word", {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "a"}
    ),
    Instruction("detectable_content:number_placeholders", {"num_placeholders": 1}),
    Instruction("detectable_content:postscript", {"postscript_marker": "P.S."}),
    Instruction("detectable_format:number_bullet_lists", {"num_bullets": 2}),
    Instruction("detectable_format:constrained_response", {}),
    Instruction("detectable_format:number_highlighted_sections", {"num_highlights": 1}),
    Instruction("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 1}),
    Instruction("detectable_format:json_format", {}),
    Instruction("detectable_format:title", {}),
    Instruction("combination:two_responses", {}),
    Instruction("combination:repeat_prompt", {"prompt_to_repeat": "Say"}),
    Instruction("startend:end_checker", {"end_phrase": "end"}),
    Instruction("startend:quotation", {}),
    Instruction("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}),
    Instruction("punctuation:no_comma", {}),
)
"""All kinds but those that ask for the language, which langdetect finds at its own pace."""
REQUEST = requests("evaluation", n=1)[0]
PROBLEM = read_problem(embedded_rows()[0], "row 0")
THOUGHTS = r"(?s)<think>.*?</think>\s*<answer>(?P<answer>.*?)</answer>"


def _of_one(function: Callable[..., list[float]], *more: Any) -> Callable[[str], float]:
    return lambda text: function([text], *more)[0]


def _rewarded(reward: Any, **columns: Any) -> Callable[[str], float]:
    return lambda text: reward(prompts=["p"], completions=[text], **columns)[0]


def _chat(reward: Any) -> Callable[[str], float]:
    return lambda text: reward(prompts=["p"], completions=[[{"role": "assistant", "content": text}]])[0]


FORMAT = FormatReward(THOUGHTS)
WEIGHTED = WeightedReward([LengthReward(1, 50), RepetitionReward()])

PROPORTIONS: dict[str, Callable[[str], float]] = {
    "toxicity": _rewarded(ToxicityReward(WORDS)),
    "length": _rewarded(LengthReward(2, 60)),
    "length_characters": _rewarded(LengthReward(2, 60, unit="characters")),
    "repetition": _rewarded(RepetitionReward()),
    "repetition_characters": _rewarded(RepetitionReward(unit="characters")),
    "refusal": _rewarded(RefusalReward()),
    "format": _rewarded(FORMAT),
    "weighted": _rewarded(WEIGHTED),
    "chat": _chat(LengthReward(2, 60)),
    "countdown_format": format_score,
    "countdown_answer": lambda text: answer_score(text, [25, 4, 3], 63),
    "exact_match": _of_one(exact_match, ["7"]),
    "rouge_l": _of_one(rouge_l, [REFERENCE]),
    "bleu": _of_one(bleu, [REFERENCE]),
    "fact_f1": _of_one(fact_f1, [REFERENCE], ("number", "date", "entity", "medical_term")),
    "harmlessness": _of_one(harmlessness, WORDS),
    "refusals": _of_one(refusals),
    "python_syntax_valid": _of_one(python_syntax_valid),
    "code_bleu": _of_one(code_bleu, ["def f(x):\n    return x + 1\n"]),
    "keyword_match": _of_one(keyword_match, ["def f(x):\n    return x + 1\n"]),
    "syntax_match": _of_one(syntax_match, ["def f(x):\n    return x + 1\n"]),
    "length_match": lambda text: _length_match(text, REFERENCE),
    "repetition_rates": _of_one(repetition_rates),
    "tatqa_em": lambda text: score_answer(*extract_answer(text), ["12.5"], "million", "arithmetic").em,
    "tatqa_f1": lambda text: score_answer(*extract_answer(text), ["Ann Lee"], "", "span").f1,
    "tatqa_raw": lambda text: score_answer(text, text, ["12.5"], "percent", "span").f1,
    "request": lambda text: float(check_answer(REQUEST, text).good),
}
"""Those whose value is from 0 to 1."""

READERS: dict[str, Callable[[str], Any]] = {
    "countdown": _rewarded(CountdownReward(), numbers=[[25, 4, 3]], target=[63]),
    "conciseness": _rewarded(ConcisenessReward(-1000.0), answer=["Yes"]),
    "expression": evaluate_expression,
    "numbers_used": numbers_used,
    "is_refusal": is_refusal,
    "normalized_text": normalized_text,
    "extract_code": extract_code,
    "code_solution": PROBLEM.solution,
    "gsm8k": gsm8k_answer,
    "tatqa": extract_answer,
    "grade_in_brackets": lambda text: parse_grade(text, "brackets"),
    "grade_in_json": lambda text: parse_grade(text, "json"),
    "winner_in_brackets": lambda text: parse_winner(text, "brackets"),
    "winner_in_json": lambda text: parse_winner(text, "json"),
    "judge_refuses": judge_refuses,
    "instructions": lambda text: follow_instructions([text], [InstructedPrompt("k", "Say", INSTRUCTIONS)])[0].strict,
    "loose_instructions": lambda text: (
        follow_instructions([text], [InstructedPrompt("k", "S", INSTRUCTIONS)])[0].loose
    ),
    "distinct_n": lambda text: corpus_distinct_n([text, "two words here"]),
}
"""Those that give something else."""
