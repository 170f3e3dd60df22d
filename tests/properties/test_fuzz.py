"""A hundred thousand texts and files that nobody would write: documented errors alone, finite values, in time."""

import random
import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from alignkit.evaluation.decoding import cut_at_stop
from alignkit.evaluation.document import Bullets, Heading, Table, Text, to_markdown
from alignkit.evaluation.human_sheets import Scale, sheet_csv
from alignkit.evaluation.instructions.following import Instruction, loose_forms
from alignkit.evaluation.instructions.kinds import KINDS
from alignkit.evaluation.judge.prompts import OwnPrompts
from alignkit.evaluation.judge.verdicts import parse_grade, parse_winner, reading
from alignkit.evaluation.metrics.code import extract_code, python_syntax_valid
from alignkit.evaluation.metrics.code_similarity import code_bleu, keyword_match, syntax_match
from alignkit.evaluation.metrics.facts import DEFAULT_KINDS, fact_f1
from alignkit.evaluation.metrics.overlap import bleu, rouge_l
from alignkit.evaluation.metrics.safety import harmlessness, refusals
from alignkit.evaluation.metrics.words import corpus_distinct_n, exact_match
from alignkit.evaluation.report_html import to_html
from alignkit.evaluation.suites.clinical import _length_match
from alignkit.evaluation.suites.code_problems import embedded_rows, read_problem
from alignkit.evaluation.suites.gsm8k import extract_answer as gsm8k_answer
from alignkit.evaluation.suites.safety import dialogue
from alignkit.evaluation.tatqa_rules import ANSWER_TYPES, is_number, number_value, score_answer
from alignkit.evaluation.tatqa_text import answer_text, extract_answer
from alignkit.kl_barrier.rounds.filters import repeated_ngram_share
from alignkit.rewards.arithmetic import evaluate_expression, numbers_used
from alignkit.rewards.heuristics import FormatReward, LengthReward, RefusalReward, RepetitionReward, ToxicityReward
from alignkit.spec_files import read_value
from alignkit.tasks.conciseness import ConcisenessReward
from alignkit.tasks.countdown import CountdownReward, answer_score, format_score
from alignkit.tasks.requests import FORMAT, check_answer, requests
from tests.properties.fuzz import random_file, random_text
from tests.properties.readers import READERS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CHUNKS = 10
TEXTS_PER_CHUNK = 5_000
FILES_PER_READER = 2_500
LONGEST_S = 2.0  # of the processor, for one input

VALID = (
    "<think>25 - 4 = 21. 21 * 3 = 63.</think>\n<answer>(25 - 4) * 3</answer>",
    "He pays $1,200.50 for 3 apples, 2 left.\n#### 1,200",
    "Answer: $1,496.5 million\n$(12)%\n\nQuestion: x",
    "1. Aspirin 81 mg daily.\n2. March 5, 2024: Ms Lee of Berlin, five percent, 52-year-old.",
    "Sure:\n```python\ndef f(x):\n    return [x ** 2 for _ in range(3)]\n```\nThat is it.",
    "Reasons. A is better.\n[[A]]\nRating: [[7]]",
    '{"reasons": "x", "rating": 5, "better": "tie"}',
    "<<Title>>\n* one\n* two\nSection 1\nP.S. [name]\n***\nMy answer is yes.",
    "\n\nHuman: How are you?\n\nAssistant: Fine.\n\nHuman: Good.",
    " Sure: crow, mouse.",
    "helpful:1-5:ordinal",
    "a: 5e-5\nb: [x, 'y', {c: d}]\n",
)
ARGUMENTS = {str: "river.(", int: 2, list: ["river", "(x"]}
INSTRUCTIONS = [
    Instruction(
        kind,
        {name: "at least" if name.endswith("relation") else ARGUMENTS[of] for name, of in spec.arguments.items()},
    )
    for kind, spec in KINDS.items()
    if "language" not in kind and "english" not in kind
]
PROBLEM = read_problem(embedded_rows()[0], "row 0")
REQUEST = requests("evaluation")[0]
REFERENCE = "def f(x):\n    return x + 1"


def share(value: float) -> bool:
    return isinstance(value, float) and 0 <= value <= 1


def scores_of_tatqa(text: str) -> bool:
    items, scale = extract_answer(text)
    written = answer_text(items, scale)
    for kind in ANSWER_TYPES:
        for gold in (["12"], [text], items or ["x"]):
            score = score_answer(items, scale, gold, "million", kind)
            if not (share(score.em) and share(score.f1)):
                return False
    value = number_value(text)
    return isinstance(written, str) and isinstance(is_number(text), bool) and (value is None or value == value)


def frame_holds(text: str) -> bool:
    """No text can end its own frame: no line of it is one of those that frame it."""
    [_, asked] = OwnPrompts().grading([{"role": "user", "content": "q"}, {"role": "assistant", "content": text}], [])
    line = max((one for one in asked["content"].split("\n") if one and set(one) == {"="}), key=len)
    return line not in text


def pages_hold(text: str) -> bool:
    blocks = [Heading(1, text), Text(text), Bullets([(text, text)]), Table(["a", "b"], [[text, text]])]
    lines = to_markdown(blocks, "").rstrip("\n").split("\n")
    return len(lines) == 9 and to_html(blocks).count("<td") == 2


GRADERS: dict[str, Callable[[str], Any]] = {
    "arithmetic": lambda text: isinstance(evaluate_expression(text), Fraction | None) and numbers_used(text) != [],
    "length": lambda text: (
        share(LengthReward(2, 9).score(text)) and share(LengthReward(0, 9, "characters").score(text))
    ),
    "repetition": lambda text: (
        share(RepetitionReward().score(text)) and share(RepetitionReward(2, "characters").score(text))
    ),
    "format": lambda text: share(FormatReward(FORMAT).score(text)),
    "refusal": lambda text: share(RefusalReward().score(text)) and share(refusals([text])[0]),
    "toxicity": lambda text: (
        share(ToxicityReward(["dolt", "a b", "🙂"]).score(text)) and share(harmlessness([text], ["dolt"])[0])
    ),
    "countdown": lambda text: share(format_score(text)) and share(answer_score(text, [25, 4, 3], 63)),
    "countdown_reward": lambda text: 0 <= CountdownReward()(None, [text], [[25, 4, 3]], [63])[0] <= 1.1,
    "conciseness": lambda text: -1000 <= ConcisenessReward(-1000)(None, [text], ["ab"])[0] <= 0,
    "request": lambda text: isinstance(check_answer(REQUEST, text).good, bool),
    "tatqa": scores_of_tatqa,
    "gsm8k": lambda text: (
        isinstance(found := gsm8k_answer(text), Decimal | None) and (found is None or found.is_finite())
    ),
    "extract_code": lambda text: isinstance(extract_code(text), str) and isinstance(PROBLEM.solution(text), str),
    "python": lambda text: share(python_syntax_valid([text])[0]),
    "syntax": lambda text: share(syntax_match([text], [REFERENCE])[0]),
    "keywords": lambda text: share(keyword_match([text], [REFERENCE])[0]),
    "facts": lambda text: share(fact_f1([text], ["On March 5 Ms Lee paid 5%."], (*DEFAULT_KINDS, "medical_term"))[0]),
    "facts_of_itself": lambda text: not text.strip() or fact_f1([text], [text]) == [1.0],
    "exact_match": lambda text: exact_match([text], [text]) == [1.0] and share(exact_match([text], ["the 5%"])[0]),
    "distinct": lambda text: share(corpus_distinct_n([text, "two words"])),
    "instructions": lambda text: all(isinstance(one.is_loosely_followed(text), bool) for one in INSTRUCTIONS),
    "loose_forms": lambda text: len(loose_forms(text)) == 8,
    "grade": lambda text: all(
        grade is None or 1 <= grade <= 10 for grade in (parse_grade(text, "brackets"), parse_grade(text, "json"))
    ),
    "winner": lambda text: all(
        parse_winner(text, form) in ("first", "second", "tie", None) for form in ("brackets", "json")
    ),
    "reading": lambda text: reading("grade", text, False, "json").failure in ("", "refused", "malformed"),
    "repeated_share": lambda text: share(repeated_ngram_share(text)),
    "cut_at_stop": lambda text: text.startswith(cut_at_stop(text, ("\n\n", "x"))),
    "length_match": lambda text: 0 <= _length_match(text, "a b") <= 1,
    "frame": frame_holds,
    "pages": pages_hold,
    "sheet": lambda text: sheet_csv([("r1", text, text)], [Scale("x")]).count("r1") >= 1,
}
SLOW_GRADERS: dict[str, Callable[[str], Any]] = {
    "rouge": lambda text: share(rouge_l([text], ["a b c"])[0]),
    "bleu": lambda text: share(bleu([text], ["a b c d e"])[0]),
    "code_bleu": lambda text: share(code_bleu([text], [REFERENCE])[0]),
    "language": lambda text: isinstance(Instruction("change_case:english_capital", {}).is_followed(text), bool),
}
# What refuses a text says so by a ValueError.
PARSERS: dict[str, Callable[[str], Any]] = {
    "dialogue": lambda text: dialogue(text, 1),
    "scale": Scale.parse,
    "value": read_value,
}


def check(name: str, grade: Callable[[str], Any], text: str, allowed: tuple[type[Exception], ...] = ()) -> None:
    start = time.process_time()
    try:
        assert grade(text) or allowed, f"{name} of {text!r:.300}"
    except allowed:
        pass
    except Exception as error:  # whatever it is, it goes on with the text that brought it about
        raise AssertionError(f"{name} of {text!r:.300}: {error!r:.300}") from error
    assert time.process_time() - start < LONGEST_S, f"{name} of {text!r:.300}"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_grader_gives_any_text_a_finite_value_in_its_range(chunk):
    rng = random.Random(f"graders {chunk}")
    for number in range(TEXTS_PER_CHUNK):
        text = random_text(rng, VALID)
        for name, grade in GRADERS.items():
            check(name, grade, text)
        for name, parse in PARSERS.items():
            check(name, parse, text, (ValueError,))
        if number % 10 == 0:
            for name, grade in SLOW_GRADERS.items():
                check(name, grade, text)


@pytest.mark.parametrize("name", READERS)
def test_every_reader_of_a_file_takes_it_or_says_in_one_line_which_file_and_what_is_wrong(name, tmp_path):
    reader = READERS[name]
    valid = reader.valid(tmp_path)
    path = tmp_path / reader.file
    rng = random.Random(f"files {name}")
    for content in valid:
        path.write_bytes(content)
        reader.read(path)  # a valid file is read
    for _ in range(FILES_PER_READER):
        content = random_file(rng, valid)
        path.write_bytes(content)
        start = time.process_time()
        try:
            reader.read(path)
        except (ValueError, OSError) as error:
            assert str(tmp_path) in str(error), f"{name}: {content!r:.400} gives {error!r:.300}, without the file"
        except Exception as error:  # as above
            raise AssertionError(f"{name}: {content!r:.400} gives {error!r:.300}") from error
        assert time.process_time() - start < LONGEST_S, f"{name}: {content!r:.400}"
