"""From dataset rows to token ids: the one place where texts become tokens, in training and in scoring."""

import json
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

import aiohttp
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from huggingface_hub.errors import HTTPError
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from alignkit.reward_model.rows import ParsedRow, Text, parse_row
from alignkit.row_checks import check_characters

logger = logging.get_logger(__name__)

INTS, FLOATS = List(Value("int64")), List(Value("float64"))
ENCODED_FEATURES = Features(
    {
        "row": Value("int64"),
        "input_ids": List(INTS),
        "text_key": INTS,
        **dict.fromkeys(("winner", "loser", "head"), INTS),
        **dict.fromkeys(("weight", "margin", "unit"), FLOATS),
        **dict.fromkeys(("positive", "positive_head", "member", "member_head"), INTS),
        "length": Value("int64"),  # what `train_sampling_strategy="group_by_length"` reads
        "trimmed_tokens": Value("int64"),
        "dropped": Value("bool"),
    }
)
# What a source can raise for reasons that may pass: connection errors and time-outs are OSErrors, the HTTP clients of
# fsspec and of the hub have their own, and generators of users tend to raise RuntimeError. Bad rows are ValueErrors.
STREAM_ERRORS = (OSError, RuntimeError, aiohttp.ClientError, HTTPError)
FIRST_PAUSE_S = 0.5  # before a stream is reopened; doubled at every further failure in a row


def encode_text(tokenizer: PreTrainedTokenizerBase, text: Text, **chat_template_kwargs: Any) -> list[int]:
    """Token ids of a text, the same in training and in scoring.

    A string is tokenized with the tokenizer's own special tokens; where the text has them already, the doubling is
    undone, and EOS is appended if neither wrote it. Chat messages are rendered by the chat template, which
    alone decides about special tokens, as in TRL. Token ids are returned as they are.

    Raises:
        ValueError: half a surrogate pair in a string; chat messages without a chat template, with one that refuses
            them, or with one that prints the current date: its scores would change from day to day.
    """
    if isinstance(text, str):
        check_characters(text, "the text")
        ids = tokenizer(text)["input_ids"]
        if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
            ids = ids[1:]
        if tokenizer.eos_token_id is not None:
            if ids[-2:] == [tokenizer.eos_token_id] * 2:
                ids = ids[:-1]
            elif ids[-1:] != [tokenizer.eos_token_id]:
                ids = [*ids, tokenizer.eos_token_id]
        return ids
    if isinstance(text[0], int):
        return text
    try:
        check_chat_template(tokenizer, text, **chat_template_kwargs)
        encoding: Any = tokenizer.apply_chat_template(text, tokenize=True, return_dict=True, **chat_template_kwargs)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the messages: {error}") from error
    return encoding["input_ids"]


def check_chat_template(tokenizer: PreTrainedTokenizerBase, messages: Any, **chat_template_kwargs: Any) -> None:
    """Raise a `ValueError` if there is no chat template, or if what it makes of the messages changes with the date.

    A template that could print the date is rendered with two different ones. A date fixed by an argument of the
    template (`date_string` in Llama 3's) is fine.
    """
    template, tools = chat_template_kwargs.get("chat_template"), chat_template_kwargs.get("tools")
    if template is None and tokenizer.chat_template is None:
        raise ValueError(
            "the texts are chat messages but the tokenizer has no chat_template; set one, or pass strings"
        )
    template = tokenizer.get_chat_template(template, tools)
    if "strftime_now" not in template:
        return
    # A macro at its top takes the place of the function of the same name.
    fixed = (
        "{%- macro strftime_now(format) -%}" + date + "{%- endmacro -%}" + template for date in ("first", "second")
    )
    rendered = {
        tokenizer.apply_chat_template(messages, tokenize=False, **{**chat_template_kwargs, "chat_template": text})
        for text in fixed
    }
    if len(rendered) > 1:
        raise ValueError(
            "the chat template prints the current date (strftime_now), so the same conversation would score "
            "differently every day; set tokenizer.chat_template, or chat_template_path, to one with a fixed date, or "
            "fix it by the row's chat_template_kwargs"
        )


def common_prefix_length(texts: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all texts share."""
    return next((i for i, column in enumerate(zip(*texts, strict=False)) if len({*column}) > 1), min(map(len, texts)))


def text_key(ids: list[int]) -> int:
    """64-bit key of a token sequence, the same on every rank and machine."""
    return int.from_bytes(blake2b(array("q", ids).tobytes(), digest_size=8).digest(), "little", signed=True)


@dataclass
class RowEncoder:
    """Encodes one dataset row; `datasets.map` calls it with the row and its number.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): tokenizer.
        head_names (`list[str]`): names of the heads.
        split (`str`): name of the split, for error messages.
        max_length (`int`, *optional*): longest text allowed, in tokens.
        overflow (`str`): `"raise"`, `"drop"` or `"truncate_prompt"`.
        use_margin_magnitude (`bool`): see [`MultiHeadRewardConfig`].
    """

    tokenizer: PreTrainedTokenizerBase
    head_names: list[str]
    split: str
    max_length: int | None = None
    overflow: str = "raise"
    use_margin_magnitude: bool = False

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        try:
            parsed = parse_row(row, self.head_names, use_margin_magnitude=self.use_margin_magnitude)
            tools = row.get("tools")
            tools = json.loads(tools) if isinstance(tools, str) else tools
            chat_kwargs = {"tools": tools, **(row.get("chat_template_kwargs") or {})}
            texts = [encode_text(self.tokenizer, text, **chat_kwargs) for text in parsed.texts]
            self._check_identical(parsed, texts)
            texts, trimmed = self.fit(texts, self._prompt(row, parsed, chat_kwargs))
        except ValueError as error:
            raise ValueError(f"{self.split} row {index}: {error}") from error
        return encoded_row(index, texts, parsed, trimmed)

    def fit(self, texts: list[list[int]], prompt: list[int] | None = None) -> tuple[list[list[int]], int]:
        """Texts that fit in `max_length`, and by how many tokens each was shortened, or no texts at all ("drop").

        `"truncate_prompt"` takes the oldest tokens of the prompt (after BOS) away, as many from each text, so that the
        texts still differ in nothing but their completions. Without a `prompt` it is what all texts begin with.
        """
        longest = max(map(len, texts))
        if self.max_length is None or longest <= self.max_length:
            return texts, 0
        if self.overflow == "drop":
            return [], 0
        excess = longest - self.max_length
        message = f"a text has {longest} tokens, {excess} more than max_length={self.max_length}"
        if self.overflow == "raise":
            raise ValueError(f"{message}; raise max_length, or set overflow to 'drop' or 'truncate_prompt'")
        start = int(texts[0][0] == self.tokenizer.bos_token_id)
        begin_alike = texts if prompt is None else [*texts, prompt]
        prompt_length = common_prefix_length(begin_alike) - start if len(begin_alike) > 1 else 0
        if prompt_length < excess:
            raise ValueError(
                f"{message}, and its prompt has only {max(prompt_length, 0)} tokens to take away; raise max_length, "
                "shorten the text, or set overflow='drop'"
            )
        return [text[:start] + text[start + excess :] for text in texts], excess

    def _prompt(self, row: dict[str, Any], parsed: ParsedRow, chat_kwargs: dict[str, Any]) -> list[int] | None:
        """Token ids of the prompt that the texts begin with, when it may have to be shortened."""
        prompt, text = row.get("prompt"), parsed.texts[0]
        is_token_ids = not isinstance(text, str) and isinstance(text[0], int)
        if self.overflow != "truncate_prompt" or not prompt or is_token_ids:
            return None
        return encode_text(self.tokenizer, prompt, **{**chat_kwargs, "add_generation_prompt": True})

    @staticmethod
    def _check_identical(parsed: ParsedRow, texts: list[list[int]]) -> None:
        for winner, loser, unit in zip(parsed.winner, parsed.loser, parsed.unit, strict=True):
            if texts[winner] == texts[loser] and unit == 1:  # a tie between equal texts says nothing false
                raise ValueError(
                    "the preferred and the rejected text are identical after tokenization; drop the row, or mark it "
                    f"as a tie: {parsed.texts[winner]!r:.80}"
                )


def encoded_row(index: int, texts: list[list[int]], parsed: ParsedRow, trimmed: int = 0) -> dict[str, Any]:
    """A row of `ENCODED_FEATURES`. Without texts it is marked as dropped; its heads stay, to be counted."""
    fields = {name: value for name, value in vars(parsed).items() if name != "texts"}
    return {
        "row": index,
        "input_ids": texts,
        "text_key": [text_key(ids) for ids in texts],
        **fields,
        "length": max(map(len, texts), default=0),
        "trimmed_tokens": trimmed,
        "dropped": not texts,
    }


def encode_dataset(dataset: Dataset, encoder: RowEncoder, num_proc: int | None = None) -> Dataset:
    """Encode a map-style dataset. Dropped rows are still in it, marked.

    Raises:
        ValueError: an empty dataset, or a bad row, named by split and number.
    """
    if len(dataset) == 0:
        raise ValueError(f"the {encoder.split} dataset is empty; give it at least one row")
    return dataset.with_format(None).map(
        encoder,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=ENCODED_FEATURES,
        num_proc=num_proc,
        desc=f"Encoding {encoder.split} dataset",
    )


class EncodedStream(torch.utils.data.IterableDataset):
    """Encodes a streaming dataset on the fly, and reopens it where it stopped when reading fails.

    Args:
        dataset (`IterableDataset`): the source.
        encoder (`RowEncoder`): encoder of a row.
        retries (`int`): reopenings in a row, without a row between them, before the error is raised.
        on_row (`Callable`, *optional*): called with each encoded row, dropped ones too.
        then (`Sequence[dict]`): encoded rows that follow the stream's own.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        encoder: RowEncoder,
        retries: int = 3,
        on_row: Callable[[dict[str, Any]], None] | None = None,
        then: Sequence[dict[str, Any]] = (),
    ):
        self.dataset, self.encoder, self.retries, self.on_row, self.then = dataset, encoder, retries, on_row, then

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        n_read, n_kept = 0, 0
        for row in self._rows():
            encoded = self.encoder(row, n_read)
            n_read += 1
            if self.on_row is not None:
                self.on_row(encoded)
            if not encoded["dropped"]:
                n_kept += 1
                yield encoded
        if not n_kept:
            raise ValueError(
                f"the {self.encoder.split} stream gave {n_read} rows, of which none was kept; give it at least one "
                f"row whose texts fit in max_length={self.encoder.max_length}"
            )
        yield from self.then

    def _rows(self) -> Iterator[dict[str, Any]]:
        read, failures = 0, 0
        while True:
            try:
                for row in islice(self.dataset, read, None):
                    yield row
                    read, failures = read + 1, 0
                return
            except STREAM_ERRORS as error:
                failures += 1
                where = f"the {self.encoder.split} stream failed after {read} rows: {type(error).__name__}: {error}"
                if failures > self.retries:
                    raise RuntimeError(f"{where}; given up after {self.retries} retries (stream_retries)") from error
                pause_s = FIRST_PAUSE_S * 2 ** (failures - 1)
                logger.warning(f"{where}; reopening it in {pause_s} s ({failures} of {self.retries})")
                time.sleep(pause_s)
