"""Arithmetic: equal to exact fractions on every expression there is, and None, at once, on everything else."""

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.rewards.arithmetic import (
    MAX_BITS,
    MAX_CHARACTERS,
    MAX_NUMBERS,
    apply_operator,
    evaluate_expression,
    numbers_used,
    parse_expression,
)

NUMBERS = st.integers(0, 99)
TREES = st.recursive(
    NUMBERS, lambda children: st.tuples(children, st.sampled_from("+-*/"), children), max_leaves=MAX_NUMBERS
)
BLANKS = st.sampled_from(["", " ", "  "])


def value_of(tree) -> Fraction | None:
    """Value of a tree by Fraction's own operators; None for a division by zero or a value that is too large."""
    if isinstance(tree, int):
        return Fraction(tree)
    left, right = value_of(tree[0]), value_of(tree[2])
    if left is None or right is None:
        return None
    match tree[1]:
        case "+":
            value = left + right
        case "-":
            value = left - right
        case "*":
            value = left * right
        case _:
            if right == 0:
                return None
            value = left / right
    fits = max(abs(value.numerator), value.denominator) < 2**MAX_BITS
    return value if fits else None


def leaves(tree) -> list[int]:
    return [tree] if isinstance(tree, int) else leaves(tree[0]) + leaves(tree[2])


def written(tree, blank: str, all_brackets: bool) -> str:
    """A text of the tree, with brackets around every operation or only where precedence needs them."""
    if isinstance(tree, int):
        return str(tree)
    left, right = written(tree[0], blank, all_brackets), written(tree[2], blank, all_brackets)
    binds_closely = tree[1] in "*/"
    if not isinstance(tree[0], int) and (all_brackets or (binds_closely and tree[0][1] in "+-")):
        left = f"({left})"
    if not isinstance(tree[2], int) and (all_brackets or binds_closely or tree[2][1] in "+-"):
        right = f"({right})"
    return f"{left}{blank}{tree[1]}{blank}{right}"


@given(TREES, BLANKS, st.booleans())
def test_the_value_of_a_tree_is_that_of_fraction_arithmetic_however_it_is_bracketed(tree, blank, all_brackets) -> None:
    text = written(tree, blank, all_brackets)
    if len(text) <= MAX_CHARACTERS:
        assert evaluate_expression(text) == value_of(tree)
        assert numbers_used(text) == leaves(tree)
    else:
        assert evaluate_expression(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("0", 0),
        (" ( 7 ) ", 7),
        ("((((7))))", 7),
        ("1+2*3", 7),
        ("(1+2)*3", 9),
        ("10-4-3", 3),
        ("10-(4-3)", 9),
        ("12/2/3", 2),
        ("12/2*3", 18),
        ("1/3", Fraction(1, 3)),
        ("1/3+1/3+1/3", 1),
        ("8/(3-8/3)", 24),
        ("3-10", -7),
        ("0*5-0/7", 0),
        ("2*3-4/2+1", 5),
        ("9007199254740993-9007199254740992", 1),
    ],
)
def test_values_worked_out_by_hand(text: str, value: int | Fraction) -> None:
    assert evaluate_expression(text) == value


def test_the_postfix_order_puts_each_operator_behind_its_operands() -> None:
    assert parse_expression("1 + 2 * (3 - 4)") == [1, 2, 3, 4, "-", "*", "+"]
    assert parse_expression("10-4-3") == [10, 4, "-", 3, "-"]


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "()", "(", ")", "+", "1+", "+1", "-1", "1+-1", "2*-3", "(-1)+2", "1-+1", "--1", "1 2", "1 + 2 3"],
        *["(1", "1)", "1)(2", ")1(", "(1+2))", "((1+2)", "2(3)", "(2)(3)", "(2)3", "1(+)2", "1*/2", "*1", "(+1)"],
        *["2**3", "7//2", "95**98**99", "2* *3", "7/ /2", "2^3", "7%2", "1<<9", "~1", "1@2", "1=1", "1,2", "(1,2)"],
        *[
            "0x10",
            "1_0",
            "1e3",
            "1.5",
            "1.",
            ".5",
            "1j",
            "0b1",
            "0o7",
            "007",
            "01+2",
            "00",
            "True",
            "None",
            "a",
            "x+1",
        ],
        *[
            "1+2\n",
            "\n1+2",
            "1+\n2",
            "1\t+2",
            "1+2\r",
            "1+2\0",
            "\0",
            "1\N{NO-BREAK SPACE}+2",
            "1+2;",
            "1+2#",
            "1\\\n+2",
        ],
        *[
            "１+２",
            "١+٢",
            "²",
            "1²",
            "½",
            "Ⅷ",
            "1−2",
            "2×3",
            "6÷2",
            "1⁄2",
            "\u200b1",
            "\ud800",
            "1+2\N{BYTE ORDER MARK}",
        ],
        *["__import__('os')", "().__class__", "[1]", "lambda: 1", "'1'", "f'{1}'", "1 if 1 else 2", "1 or 2", "not 1"],
    ],
)
def test_what_is_no_expression_has_no_value_and_no_numbers(text: str) -> None:
    assert evaluate_expression(text) is None
    assert numbers_used(text) is None


@pytest.mark.parametrize("text", ["1/0", "1/(2-2)", "0/0", "5/(0*3)+1"])
def test_a_division_by_zero_has_no_value_and_yet_uses_its_numbers(text: str) -> None:
    assert evaluate_expression(text) is None
    assert numbers_used(text) == [int(digit) for digit in text if digit.isdigit()]


def test_characters_numbers_and_bits_are_bounded() -> None:
    assert evaluate_expression("1" + " " * (MAX_CHARACTERS - 1)) == 1
    assert evaluate_expression("1" + " " * MAX_CHARACTERS) is None
    assert evaluate_expression("+".join(["1"] * MAX_NUMBERS)) == MAX_NUMBERS
    assert evaluate_expression("+".join(["1"] * (MAX_NUMBERS + 1))) is None
    largest = 2**MAX_BITS - 1
    assert evaluate_expression(str(largest)) == largest
    assert evaluate_expression(f"{largest}*1") == largest
    assert evaluate_expression(str(largest + 1)) is None
    assert evaluate_expression(f"{largest}+1-1") is None
    assert evaluate_expression(f"1/{largest}") == Fraction(1, largest)
    assert evaluate_expression(f"1/{largest}/2*2") is None
    assert numbers_used(str(largest + 1)) is None


@pytest.mark.parametrize(
    "text",
    [
        *["(" * 10**6, ")" * 10**6, "(" * 10**6 + "1" + ")" * 10**6, "1" * 10**6, "1+" * 10**6, " " * 10**6],
        *["x" * 10**6, "(" * 127 + "1+" * 64, "(" * 127 + "1" + ")" * 128, "9" * 77 + "*" + "9" * 77],
        *["*".join(["9" * 7] * 32), "9" * 256, "95**98**99", "9**9**9**9", "-" * 256 + "1"],
    ],
)
@pytest.mark.timeout(10)
def test_towers_and_megabytes_are_refused_at_once(text: str) -> None:
    for _ in range(100):
        assert evaluate_expression(text) is None


def test_brackets_as_deep_as_the_text_allows_exhaust_no_stack() -> None:
    assert evaluate_expression("(" * 127 + "12" + ")" * 127) == 12


@pytest.mark.timeout(20)
def test_ten_thousand_hostile_texts_are_worked_off() -> None:
    generator = random.Random(0)
    alphabets = ["0123456789+-*/() ", "0123456789+-*/() _xe.\n%^", "()", "9*/", "1+(", "é１٣\0\ud800 12+"]
    texts = [
        "".join(generator.choices(generator.choice(alphabets), k=generator.randint(0, 300))) for _ in range(10**4)
    ]
    # The slowest there are: 32 numbers with fractions on the way.
    texts[::10] = ["-".join(f"{generator.randint(1, 99)}/{generator.randint(1, 99)}" for _ in range(16))] * 1000
    values = [evaluate_expression(text) for text in texts]
    assert all(value is None or isinstance(value, Fraction) for value in values)
    assert all(value is not None for value in values[::10])


@given(st.text(alphabet="0123456789+-*/() ", max_size=12))
def test_every_text_with_a_value_has_the_one_that_python_computes_from_fractions(text: str) -> None:
    value = evaluate_expression(text)
    if value is None:
        return
    in_fractions = "".join(f"Fraction({part})" if part.isdigit() else part for part in _parts(text))
    assert eval(in_fractions, {"Fraction": Fraction}) == value


def _parts(text: str) -> list[str]:
    """Runs of digits, and every other character by itself."""
    parts: list[str] = []
    for character in text.strip():
        if character.isdigit() and parts and parts[-1].isdigit():
            parts[-1] += character
        else:
            parts.append(character)
    return parts


@given(st.text())
def test_any_text_gives_a_fraction_or_none_and_numbers_whenever_it_gives_a_value(text: str) -> None:
    value = evaluate_expression(text)
    assert value is None or isinstance(value, Fraction)
    assert value is None or numbers_used(text)


@pytest.mark.parametrize("text", [None, 7, b"1+2", ["1+2"], 1.5])
def test_what_is_no_string_is_refused_in_words(text: object) -> None:
    for function in (evaluate_expression, numbers_used, parse_expression):
        with pytest.raises(TypeError, match=f", a {type(text).__name__}; give the expression as a string"):
            function(text)


def test_an_operator_applied_to_zero_divides_as_fractions_do() -> None:
    with pytest.raises(ZeroDivisionError):
        apply_operator("/", Fraction(1), Fraction(0))
