"""Exact evaluation of arithmetic that a language model wrote, safe against whatever else it may have written.

How this differs from graders that call `eval` or `ast.parse`:

1. The text never reaches Python's parser. That parser takes `0x10`, `1_0`, `2**3` and `7//2` for arithmetic, computes
   towers of powers for ever, and its own stack is at the mercy of the text.
2. The parse is one loop over the tokens with a stack of its own, so that no nesting can exhaust the interpreter's.
3. Values are exact fractions: 8 / (3 - 8 / 3) is 24, without a tolerance that lets near misses pass.
4. Text, numbers and values are bounded, so that the worst text costs a tenth of a millisecond.
"""

import re
from fractions import Fraction

MAX_CHARACTERS = 256
"""A longer text is no expression."""
MAX_NUMBERS = 32
"""Most numbers in an expression: 63 nodes of its tree."""
MAX_BITS = 256
"""Largest numerator and denominator, of the numbers and of every value on the way."""

_EXPRESSION = re.compile(r"[0-9+\-*/() ]*")
_TOKEN = re.compile(r"[0-9]+|[+\-*/()]")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


def parse_expression(text: str) -> list[int | str] | None:
    """The expression in postfix order: its numbers as `int`, each operator as `str` behind its two operands.

    The text may hold the digits 0 to 9, `+ - * / ( )` and blanks (the character U+0020 alone). Every operator stands
    between two operands, so there is no sign, no power and no floor division; `*` and `/` bind closer than `+` and
    `-`, and equals go from left to right. Numbers have no leading zeros and are not interrupted by blanks.

    Returns:
        For example `[1, 2, 3, "*", "+"]` for `"1 + 2 * 3"`; `None` for a text that is no such expression or that
        exceeds `MAX_CHARACTERS`, `MAX_NUMBERS` or `MAX_BITS`.

    Raises:
        TypeError: something that is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"text is {text!r:.80}, a {type(text).__name__}; give the expression as a string")
    if len(text) > MAX_CHARACTERS or not _EXPRESSION.fullmatch(text):
        return None
    postfix: list[int | str] = []
    pending: list[str] = []  # operators without their right operand, and open brackets
    n_numbers = 0
    operand_is_due = True
    for token in _TOKEN.findall(text):
        if operand_is_due and token == "(":
            pending.append(token)
        elif operand_is_due:
            number = _number(token)
            n_numbers += 1
            if number is None or n_numbers > MAX_NUMBERS:
                return None
            postfix.append(number)
            operand_is_due = False
        elif token == ")":
            while pending and pending[-1] != "(":
                postfix.append(pending.pop())
            if not pending:
                return None
            pending.pop()
        elif token in _PRECEDENCE:
            while pending and _PRECEDENCE.get(pending[-1], 0) >= _PRECEDENCE[token]:
                postfix.append(pending.pop())
            pending.append(token)
            operand_is_due = True
        else:
            return None
    if operand_is_due or "(" in pending:
        return None
    return postfix + pending[::-1]


def evaluate_expression(text: str) -> Fraction | None:
    """Exact value of an arithmetic expression, see [`parse_expression`] for what counts as one.

    Returns:
        `None` for anything else, for a division by zero, and where a value on the way exceeds `MAX_BITS`.

    Raises:
        TypeError: something that is not a string.
    """
    postfix = parse_expression(text)
    if postfix is None:
        return None
    values: list[Fraction] = []
    for item in postfix:
        if isinstance(item, int):
            values.append(Fraction(item))
            continue
        right = values.pop()
        left = values.pop()
        if item == "/" and not right:
            return None
        value = apply_operator(item, left, right)
        if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
            return None
        values.append(value)
    return values.pop()


def apply_operator(operator: str, left: Fraction, right: Fraction) -> Fraction:
    """left operator right, for one of `+ - * /`.

    Raises:
        ZeroDivisionError: a division by zero.
    """
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    return left * right if operator == "*" else left / right


def numbers_used(text: str) -> list[int] | None:
    """The numbers of an expression from left to right, repetitions included; `None` for what does not parse.

    They come from the parse that [`evaluate_expression`] uses, so that what is counted is what is computed.

    Raises:
        TypeError: something that is not a string.
    """
    postfix = parse_expression(text)
    return None if postfix is None else [item for item in postfix if isinstance(item, int)]


def _number(token: str) -> int | None:
    """Value of a run of digits; None for a leading zero, for too many bits and for a token that is no number."""
    if not token.isdigit() or (token[0] == "0" and token != "0"):
        return None
    number = int(token)
    return number if number.bit_length() <= MAX_BITS else None
