"""Countdown: reach a target with given numbers, each used once, and + - * / and brackets. Made here, from a seed.

How this differs from the countdown tasks of published ES and RL experiments:

1. Every problem has an integer target and a solution that has been checked, and no problem comes twice, whatever the
   order of its numbers. In the solution, as in the television game, every value on the way is a positive integer.
2. Only the completion is judged. Graders that read prompt and completion together find the tags of the prompt.
3. An answer is parsed, never run (`alignkit.rewards.arithmetic`): powers, floor division, signs, `0x10` and `1_0`
   count nothing and cannot hang.
4. The format is whole only if think block and answer block hold something and no further tag. The answer is what
   stands in the last answer block. Both take linear time for any text.
"""

import operator
import random
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from alignkit.rewards.arithmetic import apply_operator, evaluate_expression, numbers_used, parse_expression
from alignkit.rewards.completions import check_columns, completion_text

_PATIENCE = 20_000
"""Attempts in a row without a new problem after which the problems count as used up."""

_TAG = re.compile(r"</?(?:think|answer)>")
_WHOLE = ["<think>", "</think>", "<answer>", "</answer>"]

_OPENINGS = ("", "Let me see. ", "I try some ways. ", "I need {target}. ", "The target is {target}. ")
_FAILURES = ("{text} = {value}, not {target}. ", "{text} is {value}, so no. ", "With {text} I get {value}. ")
_ENDINGS = ("", " That works.", " That is it.", " This is the target.")
_SEPARATORS = ("\n", "\n\n", " ", "")


def countdown_prompt(numbers: Sequence[int], target: int) -> str:
    """The question, complete for a base model to go on from, and fit to be the content of a chat message."""
    return (
        f"Numbers: {', '.join(map(str, numbers))}. Target: {target}.\n"
        "Use every number exactly once, with + - * / and brackets, to make the target. Think inside <think> </think>, "
        "then write the expression alone inside <answer> </answer>.\n"
    )


def generate_countdown(
    n: int,
    *,
    seed: int,
    numbers: Sequence[int] = (3, 4),
    number_range: tuple[int, int] = (1, 99),
    target_range: tuple[int, int] = (10, 99),
) -> list[dict[str, Any]]:
    """`n` solvable problems, no two of which have the same target and the same numbers in some order.

    The first rows of a larger `n` are those of a smaller one. Different seeds draw from the same problems, so two
    draws may overlap: for disjoint splits use [`generate_splits`].

    Args:
        n (`int`): number of rows.
        seed (`int`): of the draw; the global random state is neither read nor changed.
        numbers (sequence of `int`): how many numbers a problem may have, 2 to 8; each entry is as likely as the others
            until its problems are used up.
        number_range (pair of `int`): smallest and largest number.
        target_range (pair of `int`): smallest and largest target.

    Returns:
        Rows with `prompt` (`str`), `numbers` (list of `int`), `target` (`int`), and `solution`, an expression of
        exactly these numbers with exactly this value, for example `"(25 - 4) * 3"`.

    Raises:
        ValueError: fewer than `n` problems can be found, or an argument out of its range.
    """
    _check_settings(n, numbers, number_range, target_range)
    generator = random.Random(f"countdown:{seed}")
    rows: list[dict[str, Any]] = []
    seen: set[tuple[int, ...]] = set()
    counts = list(numbers)
    while len(rows) < n and counts:
        # Drawn once for a row, not once an attempt, because attempts with few numbers succeed more often.
        count = generator.choice(counts)
        for _ in range(_PATIENCE + 10 * len(rows)):
            drawn = [generator.randint(*number_range) for _ in range(count)]
            found = _random_solution(drawn, generator)
            if found is None or not target_range[0] <= found[1] <= target_range[1]:
                continue
            solution, target = found
            key = (target, *sorted(drawn))
            if key not in seen:
                seen.add(key)
                prompt = countdown_prompt(drawn, target)
                rows.append({"prompt": prompt, "numbers": drawn, "target": target, "solution": solution})
                break
        else:
            counts.remove(count)
    if len(rows) < n:
        raise ValueError(
            f"n={n} problems were asked for and {len(rows)} were found with numbers={tuple(numbers)}, "
            f"number_range={number_range} and target_range={target_range}; ask for fewer or widen a range"
        )
    return rows


def generate_splits(
    n_train: int, n_test: int, *, seed: int, **settings: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and test rows: no test problem is a training problem with its numbers in another order.

    `settings` are those of [`generate_countdown`], which also says what is raised.
    """
    if min(n_train, n_test) < 0:
        raise ValueError(f"n_train={n_train} and n_test={n_test} must not be negative")
    rows = generate_countdown(n_train + n_test, seed=seed, **settings)
    return rows[:n_train], rows[n_train:]


def countdown_trace(row: Mapping[str, Any], *, seed: int, max_failures: int = 2) -> str:
    """A completion with full reward, to teach the format: up to `max_failures` attempts, the steps, the answer.

    Equal arguments give equal texts; opening, attempts, ending and white space vary with the seed and the row.

    Args:
        row (mapping): one of [`generate_countdown`].
        seed (`int`): of the wording.
        max_failures (`int`): most failed attempts that are written out before the solution.

    Raises:
        ValueError: the solution does not solve the row, or `max_failures` is negative.
    """
    numbers, target, solution = row["numbers"], row["target"], row["solution"]
    if answer_score(f"<answer>{solution}</answer>", numbers, target) != 1:
        raise ValueError(
            f"solution {solution!r} does not make {target} of {numbers}; give a row of generate_countdown"
        )
    if max_failures < 0:
        raise ValueError(f"max_failures={max_failures} must not be negative")
    generator = random.Random(f"countdown_trace:{seed}:{numbers}:{target}")
    thought = generator.choice(_OPENINGS).format(target=target)
    for _ in range(generator.randint(0, max_failures)):
        attempt = _random_solution(numbers, generator)
        if attempt is not None and attempt[1] != target:
            text, value = attempt
            thought += generator.choice(_FAILURES).format(text=text, value=value, target=target)
    thought += _steps(solution) + generator.choice(_ENDINGS)
    return f"<think>{thought}</think>{generator.choice(_SEPARATORS)}<answer>{solution}</answer>"


class CountdownReward:
    """Reward function for completions of countdown prompts: 0.1 · format + answer, in [0, 1.1].

    See [`format_score`] and [`answer_score`] for the two.
    """

    def __call__(
        self, prompts: Any, completions: Any, numbers: Sequence[Sequence[int]], target: Sequence[int], **columns: Any
    ) -> list[float]:
        """One reward per completion, in TRL's signature. The prompts and further columns are not read.

        Args:
            completions (list of `str`, or of lists of messages): what the model wrote, without the prompt.
            numbers (list of lists of `int`), target (list of `int`): columns of the rows.

        Raises:
            TypeError: a completion that is no text, or a number or target that is no integer.
            ValueError: a column with another number of values than there are completions.
        """
        check_columns(completions, numbers=numbers, target=target)
        texts = [completion_text(completion) for completion in completions]
        return [
            0.1 * format_score(text) + answer_score(text, given, wanted)
            for text, given, wanted in zip(texts, numbers, target, strict=True)
        ]


def format_score(completion: str) -> float:
    """How much of the asked format a completion has: 1 if it has all of it, else 0.1 for think plus 0.5 for answer.

    All of it: a think block, then an answer block, neither blank and with no further tag inside, and beside them
    nothing but white space. Else: 0.1 if `<think>` is followed anywhere by `</think>`, plus 0.5 if `<answer>` is
    followed anywhere by `</answer>`.
    """
    # All tags are found at once and compared, because a pattern with two lazy gaps takes quadratic time to fail.
    if _TAG.findall(completion) == _WHOLE:
        before, thought, between, answer, after = _TAG.split(completion)
        if not (before.strip() or between.strip() or after.strip()) and thought.strip() and answer.strip():
            return 1.0
    return 0.1 * _has_block(completion, "think") + 0.5 * _has_block(completion, "answer")


def answer_score(completion: str, numbers: Sequence[int], target: int) -> float:
    """1 if the last answer block is an expression of exactly these numbers with exactly this value, else 0.

    The block may hold what [`parse_expression`] takes and nothing else, a line break for example; the numbers in it,
    with repetitions, must be the given ones in some order; the value is an exact fraction.

    Raises:
        TypeError: a number or the target is no integer.
    """
    try:
        given, wanted = sorted(map(operator.index, numbers)), operator.index(target)
    except TypeError as error:
        raise TypeError(f"numbers={numbers!r} and target={target!r} must hold integers") from error
    end = completion.rfind("</answer>")
    start = completion.rfind("<answer>", 0, max(end, 0))
    if start < 0:
        return 0.0
    start += len("<answer>")
    expression = completion[start : completion.find("</answer>", start)]
    used = numbers_used(expression)
    return float(used is not None and sorted(used) == given and evaluate_expression(expression) == wanted)


def _has_block(text: str, name: str) -> bool:
    start = text.find(f"<{name}>")
    return 0 <= start < text.rfind(f"</{name}>")


def _check_settings(
    n: int, numbers: Sequence[int], number_range: tuple[int, int], target_range: tuple[int, int]
) -> None:
    if not isinstance(n, int) or n < 0:
        raise ValueError(f"n={n!r} must be a whole number from 0 on")
    if isinstance(numbers, int) or not numbers or not all(2 <= count <= 8 for count in numbers):
        raise ValueError(f"numbers={numbers!r} must list how many numbers a problem may have, each from 2 to 8")
    for name, (low, high) in {"number_range": number_range, "target_range": target_range}.items():
        if not 1 <= low <= high:
            raise ValueError(f"{name}={(low, high)} must be a smallest and a largest value, from 1 on")


def _random_solution(numbers: Sequence[int], generator: random.Random) -> tuple[str, int] | None:
    """A random expression of all the numbers and its value; None if a value on the way is no positive integer."""
    parts = [(str(number), number) for number in numbers]
    while len(parts) > 1:
        left_text, left = parts.pop(generator.randrange(len(parts)))
        right_text, right = parts.pop(generator.randrange(len(parts)))
        symbol = generator.choice("+-*/")
        value = apply_operator(symbol, Fraction(left), Fraction(right))
        if value.denominator != 1 or value <= 0:
            return None
        text = f"{left_text} {symbol} {right_text}"
        parts.append((f"({text})" if parts else text, int(value)))
    return parts[0]


def _steps(solution: str) -> str:
    """`"(25 - 4) * 3"` -> `"25 - 4 = 21. 21 * 3 = 63."`"""
    steps: list[str] = []
    values: list[Fraction] = []
    for item in parse_expression(solution) or ():
        if isinstance(item, int):
            values.append(Fraction(item))
            continue
        right, left = values.pop(), values.pop()
        values.append(apply_operator(item, left, right))
        steps.append(f"{left} {item} {right} = {values[-1]}.")
    return " ".join(steps)
