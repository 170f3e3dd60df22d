"""Texts and files as nobody would write them: at random, by a grammar of marks, and as mutations of what is valid."""

import json
import random
from collections.abc import Sequence
from typing import Any

import yaml

MARKS = (
    *(
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "<",
        ">",
        "[[",
        "]]",
        "<<",
        ">>",
        "``",
        "```",
        "```python\n",
        "~~~",
        "***",
        "******",
    ),
    *("+", "-", "*", "/", "**", "//", "%", "$", "€", "#", "####", "\\", "\\boxed{", "|", "=", ":", ";", ",", "."),
    *(
        "0",
        "1",
        "24",
        "007",
        "1,200",
        "1e9",
        "9" * 30,
        ".5",
        "1.5.2",
        "-3",
        "(12)",
        "٣",
        "²",
        "½",
        "三",
        "1_0",
        "0x10",
    ),
    *("<think>", "</think>", "<answer>", "</answer>", "Answer:", "Question:", "The answer is", "\n\nHuman:", "Note:"),
    *("million", "percent", "thousand", "March 5, 2024", "2024-03-05", "13/45/2024", "May", "five", "one", "A.M."),
    *("[[A]]", "[[5]]", '{"rating": 5}', '{"better": "A"}', "yes", "My answer is yes.", "P.S.", "Section 1", "* a\n"),
    *(" ", "\n", "\n\n", "\t", "\r\n", "\x00", "\x85", "\u2028", "\u200b", "\u202e", "\ufeff", "\ud800", "\u0301"),
    *(
        "nan",
        "inf",
        "Infinity",
        "None",
        "null",
        "true",
        "def f():\n",
        "    return 1\n",
        "lambda:",
        "'",
        '"',
        '"""',
        "`",
    ),
    *(
        "İ",
        "ß",
        "ﬁ",
        "🙂",
        "Dr. Smith",
        "the",
        "river",
        "I can't help",
        "Sure: crow, mouse.",
        "dolt",
        "%s",
        "{0}",
        "{{",
    ),
)
FILE_MARKS = (
    *("\n", " ", '"', "{", "}", "[", "]", ":", ",", "-", "&a", "*a", "? ", "!!int ", "{}", "[]", '"x": ', "\t"),
    *("null", "true", "NaN", "1e400", "-1", "0.5", "9" * 400, "9" * 5000, "[" * 5000, '""', "'", "2024-01-01", "\x00"),
)
STRANGE_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2.5, 10**400, -(10**400), 1e308, float("nan"), float("inf"), "", " ", "x", "\x00"),
    *("5", "1e400", [], [None], [[]], [1, "x"], {}, {"": None}, {"x": []}, "2024-01-01", [10**400], ["\ud800"]),
)


def random_text(rng: random.Random, valid: Sequence[str]) -> str:
    """A text of up to some thousand characters."""
    kind = rng.randrange(5)
    if kind == 0:
        return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(40)))
    if kind == 1:
        return rng.randbytes(rng.randrange(80)).decode(rng.choice(["latin-1", "utf-16-le"]), "replace")
    if kind == 2:
        return "".join(rng.choices(MARKS, k=rng.randrange(1, 30)))
    if kind == 3:
        return rng.choice(MARKS) * rng.choice([1, 2, 17, 17, 300, 300, 5000])
    return mutated(rng, rng.choice(valid), MARKS)


def mutated(rng: random.Random, text: str, marks: Sequence[str] = MARKS) -> str:
    """A valid text with one to five changes: a part cut, doubled, moved or repeated, a mark put in or a character."""
    for _ in range(rng.randint(1, 5)):
        start = rng.randint(0, len(text))
        end = min(len(text), start + rng.choice([1, 1, 2, 5, 20]))
        part = text[start:end]
        text = rng.choice(
            [
                text[:start] + text[end:],
                text[:end] + part + text[end:],
                text[:start] + part * rng.choice([3, 50]) + text[end:],
                text[:start] + rng.choice(marks) + text[start:],
                text[:start] + rng.choice(marks) + text[end:],
                text[:start] + chr(rng.randrange(0x300)) + text[end:],
                text[start:] + text[:start],
                text[:start],
            ]
        )
    return text


def mutated_bytes(rng: random.Random, content: bytes) -> bytes:
    """A valid file with a byte flipped or a part overwritten, cut, doubled or filled up, or the file cut off."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randint(0, len(content))
        end = min(len(content), start + rng.choice([1, 1, 4, 40]))
        content = rng.choice(
            [
                content[:start] + content[end:],
                content[:end] + content[start:end] + content[end:],
                content[:start] + rng.randbytes(end - start) + content[end:],
                content[:start] + rng.choice([b"\x00", b"\xff", b"\n", b'"', b"\\", b"-", b"9" * 9]) + content[start:],
                content[:start],
            ]
        )
    return content


def mutated_structure(rng: random.Random, value: Any) -> Any:
    """The same data with a strange value in one place, or without a part, or with a part under another name."""
    is_inside = isinstance(value, dict | list) and value and rng.random() < 0.85
    if not is_inside:
        return rng.choice(STRANGE_VALUES)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        parts = [mutated_structure(rng, value[place])] if rng.random() < 0.9 else []
        return [*value[:place], *parts, *value[place + 1 :]]
    name = rng.choice(list(value))
    change = rng.random()
    if change < 0.1:
        return {key: of_key for key, of_key in value.items() if key != name}
    if change < 0.2:
        return {(f"{key}x" if key == name else key): of_key for key, of_key in value.items()}
    return {**value, name: mutated_structure(rng, value[name])}


def _edited(rng: random.Random, content: bytes) -> bytes:
    """A file of JSON, JSON lines or YAML with one or two values changed; another file as it is."""
    try:
        text = content.decode()
        rows = [json.loads(line) for line in text.split("\n") if line] if text.count("\n{") else [yaml.safe_load(text)]
    except ValueError:
        return content
    for _ in range(rng.randint(1, 2)):
        place = rng.randrange(len(rows))
        rows[place] = mutated_structure(rng, rows[place])
    return "\n".join(json.dumps(row, default=str) for row in rows).encode() + b"\n"


def random_file(rng: random.Random, valid: Sequence[bytes]) -> bytes:
    """A valid file that was damaged by chance or edited by hand, or one that never was any."""
    kind = rng.randrange(12)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind > 7:
        return _edited(rng, rng.choice(valid))
    if kind == 1:
        return "".join(rng.choices([*FILE_MARKS, *MARKS], k=rng.randrange(20))).encode("utf-8", "surrogatepass")
    if kind < 4:
        return mutated_bytes(rng, rng.choice(valid))
    text = rng.choice(valid).decode("utf-8", "surrogateescape")
    return mutated(rng, text, FILE_MARKS).encode("utf-8", "surrogateescape")
