"""Prompts of TAT-QA: role, table, passages, question and the cue for the answer, within a limit of tokens.

How this differs from cutting a long prompt at one end, as training code does:

1. A prompt is made to fit. Passages give way first, the least relevant ones before the others, then rows of the table,
   then its columns. Role, header of the table, question and cue are never touched.
2. Relevance is the words that a passage, row or column shares with the question, rare ones counting more. The
   dataset's own marks of relevant passages were made by people who knew the answer, so they stay unread.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from alignkit.evaluation.generation import encode_prompt
from alignkit.tasks.tatqa_files import check_contexts

ROLE = (
    "You are a financial analyst. Answer the question from the table and the passages. Write the answer alone: a "
    "number with its scale (thousand, million, billion or percent) if it has one, several answers on a line each."
)
CUE = "Answer:"
STOP_STRINGS = ("\n\n", "\nQuestion:")
"""What ends an answer of a model that goes on."""

MOST_HEADER_ROWS = 4
SHORTEST_CUT = 40  # characters; less of a passage than that says nothing
_CUT_MARK = " ..."

Prompt = str | list[dict[str, str]]


class PromptTooLongError(ValueError):
    """Role, header, question and cue alone have more tokens than a prompt may have."""


@dataclass(frozen=True)
class PromptForm:
    """How prompts look.

    Args:
        max_prompt_tokens (`int`, *optional*): of a prompt as the model gets it, special tokens and chat template
            included. None for no limit.
        chat (`bool`): one message of the user in place of a text.
        chat_template_kwargs (`dict`): for the chat template, such as `{"enable_thinking": False}`.
        max_rows, max_columns (`int`): of the table, its header not counted, its first column counted.
        max_passage_characters (`int`): of all passages together.
    """

    max_prompt_tokens: int | None = None
    chat: bool = False
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_rows: int = 20
    max_columns: int = 8
    max_passage_characters: int = 1200

    def __post_init__(self) -> None:
        for name, least in (("max_rows", 1), ("max_columns", 2), ("max_passage_characters", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ValueError(f"max_prompt_tokens={self.max_prompt_tokens} must be at least 1, or None for no limit")
        if self.chat_template_kwargs and not self.chat:
            raise ValueError("chat_template_kwargs act only with chat=True; set it or leave them out")


def tatqa_prompts(
    contexts: Sequence[Mapping[str, Any]], tokenizer: Any = None, form: PromptForm | None = None
) -> dict[str, Prompt]:
    """The prompt of every question, by uid: a text, or a list of one message.

    Args:
        contexts: from [`alignkit.tasks.tatqa.load_tatqa`].
        tokenizer: counts the tokens; needed for `max_prompt_tokens` alone.
        form: default `PromptForm()`.

    Raises:
        PromptTooLongError: a question whose role, header, question and cue do not fit; names the uid and the numbers.
        ValueError: a limit without a tokenizer, or contexts with a missing field.
    """
    check_contexts(contexts)
    return {
        uid: make()
        for context in contexts
        for uid, make in prompt_makers(context, tokenizer, form or PromptForm()).items()
    }


def prompt_makers(context: Mapping[str, Any], tokenizer: Any, form: PromptForm) -> dict[str, Callable[[], Prompt]]:
    """For each question of a context, by uid, what makes its prompt; the parts they share are tokenised once."""
    if form.max_prompt_tokens is not None and tokenizer is None:
        raise ValueError("max_prompt_tokens needs a tokenizer to count them; give one")
    parts = _Parts(context, tokenizer, form)
    return {
        question["uid"]: partial(parts.prompt, question["question"], question["uid"])
        for question in context["questions"]
    }


def markdown_row(cells: Sequence[str]) -> str:
    """`| a | b |`, with blanks collapsed and bars inside a cell escaped."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def header_rows(table: Sequence[Sequence[str]]) -> int:
    """How many rows are header: the first, and those right below it whose first cell is blank, 4 at the most."""
    rows = 1
    while rows < min(len(table), MOST_HEADER_ROWS) and not table[rows][0].strip():
        rows += 1
    return rows


class _Parts:
    """A context in the parts that a prompt takes or leaves.

    Tokens of parts are added up to choose them, and the prompt as a whole is counted at the end, because tokens may
    merge where parts meet.
    """

    def __init__(self, context: Mapping[str, Any], tokenizer: Any, form: PromptForm):
        self._tokenizer = tokenizer
        self._form = form
        width = max(map(len, context["table"]["table"]))
        table = [[*row, *[""] * (width - len(row))] for row in context["table"]["table"]]
        n_header = header_rows(table)
        self._header, self._rows = table[:n_header], table[n_header:]
        ordered = sorted(context["paragraphs"], key=lambda paragraph: paragraph["order"])
        self._passages = [text for paragraph in ordered if (text := " ".join(paragraph["text"].split()))]
        self._columns = [" ".join(row[column] for row in self._header) for column in range(width)]
        self._row_words = [words_of(" ".join(row)) for row in self._rows]
        self._passage_words = [words_of(passage) for passage in self._passages]
        self._column_words = [words_of(column) for column in self._columns]
        everything = [*self._row_words, *self._passage_words, *self._column_words]
        counts: dict[str, int] = {}
        for words in everything:
            for word in words:
                counts[word] = counts.get(word, 0) + 1
        self._weights = {word: math.log(1 + len(everything) / count) for word, count in counts.items()}
        self._sizes: dict[tuple[int, ...], list[int]] = {}
        self._passage_sizes: list[int] | None = None

    def prompt(self, question: str, uid: str) -> Prompt:
        asked = words_of(question)
        by_relevance = self._ranked(self._column_words, asked)
        columns = sorted([0, *[column for column in by_relevance if column][: self._form.max_columns - 1]])
        rows = self._ranked(self._row_words, asked)[: self._form.max_rows]
        passages = self._ranked(self._passage_words, asked)
        lengths = [len(text) for text in self._passages]
        budget = self._worth_showing(_fill(passages, lengths, self._form.max_passage_characters))
        limit = self._form.max_prompt_tokens
        if limit is None:
            return self._as_form(self._text(question, columns, rows, budget))
        while True:
            found = self._fit(question, columns, rows, budget, limit)
            if found is not None:
                return found
            if len(columns) == 1:
                tokens = self._count(self._as_form(self._text(question, columns, [], {})))
                raise PromptTooLongError(
                    f"question {uid}: role, header, question and cue have {tokens} tokens, more than "
                    f"max_prompt_tokens={limit}; raise it"
                )
            columns.remove(next(column for column in reversed(by_relevance) if column and column in columns))

    def _fit(
        self, question: str, columns: list[int], rows: list[int], budget: Mapping[int, int], limit: int
    ) -> Prompt | None:
        """The fullest prompt with these columns; None if it has no room for a row and has a column to give."""
        room = limit - self._count(self._as_form(self._text(question, columns, [], {})))
        row_sizes = self._row_sizes(tuple(columns))
        while room >= 0:
            kept = _while_they_fit([row_sizes[row] for row in rows], room)
            if rows and not kept and len(columns) > 1:
                return None
            left = room - sum(row_sizes[row] for row in rows[:kept])
            passages = self._cut_to_tokens(budget, left) if kept == len(rows) else {}
            prompt = self._as_form(self._text(question, columns, rows[:kept], passages))
            excess = self._count(prompt) - limit
            if excess <= 0:
                return prompt
            room -= excess
        return None

    def _text(self, question: str, columns: Sequence[int], rows: Sequence[int], passages: Mapping[int, int]) -> str:
        """Parts by number, passages with the number of characters that are kept of each."""
        header = [markdown_row([row[column] for column in columns]) for row in self._header]
        body = [markdown_row([self._rows[row][column] for column in columns]) for row in sorted(rows)]
        table = [header[0], "|" + "---|" * len(columns), *header[1:], *body]
        blocks = [ROLE, "\n".join(["Table:", *table])]
        if passages:
            texts = [_shortened(self._passages[number], passages[number]) for number in sorted(passages)]
            blocks.append("Passages:\n" + "\n".join(texts))
        return "\n\n".join([*blocks, f"Question: {' '.join(question.split())}\n{CUE}"])

    def _as_form(self, text: str) -> Prompt:
        return [{"role": "user", "content": text}] if self._form.chat else text

    def _count(self, prompt: Prompt) -> int:
        return len(encode_prompt(self._tokenizer, prompt, self._form.chat_template_kwargs))

    def _tokens(self, texts: list[str]) -> list[int]:
        return [len(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    def _row_sizes(self, columns: tuple[int, ...]) -> list[int]:
        if columns not in self._sizes:
            self._sizes[columns] = self._tokens(
                [markdown_row([row[column] for column in columns]) + "\n" for row in self._rows]
            )
        return self._sizes[columns]

    def _cut_to_tokens(self, budget: Mapping[int, int], room: int) -> dict[int, int]:
        """Passages with the number of characters of each for which there is room, `budget` at the most."""
        if self._passage_sizes is None:
            self._passage_sizes = self._tokens([text + "\n" for text in self._passages])
            self._heading_size = self._tokens(["\n\nPassages:\n"])[0]
        # The start of a passage is taken to have as many tokens a character as all of it; the prompt is counted later.
        per_character = {number: self._passage_sizes[number] / len(self._passages[number]) for number in budget}
        kept: dict[int, int] = {}
        left: float = room - self._heading_size
        for number, characters in budget.items():
            kept[number] = min(characters, int(left / per_character[number]))
            left -= kept[number] * per_character[number]
            if kept[number] < characters:
                break
        return self._worth_showing(kept)

    def _worth_showing(self, kept: Mapping[int, int]) -> dict[int, int]:
        """Without those of which too little is left."""
        least = {number: min(len(self._passages[number]), SHORTEST_CUT) for number in kept}
        return {number: count for number, count in kept.items() if count >= least[number]}

    def _ranked(self, candidates: Sequence[set[str]], asked: set[str]) -> list[int]:
        """Numbers of the candidates, the most relevant first, equal ones in their order."""
        scores = [sum(self._weights[word] for word in words & asked) for words in candidates]
        return sorted(range(len(candidates)), key=lambda number: -scores[number])


def words_of(text: str) -> set[str]:
    """Words and numbers in lower case, plural endings dropped."""
    return {word.rstrip("s") or word for word in re.findall(r"[a-z0-9]+", text.lower())}


def _while_they_fit(sizes: Sequence[int], room: int) -> int:
    """How many sizes from the first on sum up to `room` at the most."""
    for count, size in enumerate(sizes):
        room -= size
        if room < 0:
            return count
    return len(sizes)


def _fill(order: Sequence[int], sizes: Sequence[int], room: int) -> dict[int, int]:
    """In this order, as much of each as there is room for; the last one may be cut."""
    kept: dict[int, int] = {}
    for number in order:
        if room <= 0:
            break
        kept[number] = min(sizes[number], room)
        room -= kept[number]
    return kept


def _shortened(text: str, characters: int) -> str:
    """The first words of the text in so many characters, the mark of the cut included."""
    if characters >= len(text):
        return text
    return text[: characters - len(_CUT_MARK)].rpartition(" ")[0] + _CUT_MARK
