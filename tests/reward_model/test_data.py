"""Texts to token ids: special tokens once, prompts shortened and nothing else, drops counted, streams that fail."""

import json
import logging

import aiohttp
import pytest
from datasets import Dataset, IterableDataset
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from alignkit.reward_model.data import (
    EncodedStream,
    RowEncoder,
    check_chat_template,
    common_prefix_length,
    encode_dataset,
    encode_text,
    text_key,
)
from alignkit.reward_model.preparation import DataPreparation, DataSettings
from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer

BOS, EOS = 257, 258
HEADS = ["tidy", "short"]


def tokenizer_with(*, adds_bos: bool = True, adds_eos: bool = False) -> PreTrainedTokenizerFast:
    """The byte tokenizer with another opinion about the special tokens it adds by itself."""
    tokenizer = byte_tokenizer()
    template = ["<bos>"] * adds_bos + ["$A"] + ["<eos>"] * adds_eos
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(template), special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return tokenizer


def encoder(**settings) -> RowEncoder:
    settings = {"tokenizer": byte_tokenizer(), "head_names": HEADS, "split": "train", **settings}
    return RowEncoder(**settings)


def pair(chosen: str, rejected: str, **columns) -> dict:
    return {"chosen": chosen, "rejected": rejected, "head": "tidy", **columns}


def decoded(tokenizer, texts: list[list[int]]) -> list[str]:
    return [tokenizer.decode(ids) for ids in texts]


# ---- Special tokens ----


@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("text", ["ab", "<bos>ab", "ab<eos>", "<bos>ab<eos>"])
def test_bos_and_eos_are_there_once_whoever_wrote_them(text, adds_eos):
    ids = encode_text(tokenizer_with(adds_eos=adds_eos), text)
    assert ids == [BOS, 97, 98, EOS]


def test_a_tokenizer_that_adds_no_bos_gets_none_but_keeps_one_that_is_in_the_text():
    tokenizer = tokenizer_with(adds_bos=False)
    assert encode_text(tokenizer, "ab") == [97, 98, EOS]
    assert encode_text(tokenizer, "<bos>ab") == [BOS, 97, 98, EOS]


def test_an_eos_inside_a_text_is_not_the_end_of_it():
    assert encode_text(byte_tokenizer(), "a<eos>b") == [BOS, 97, EOS, 98, EOS]


def test_a_tokenizer_without_eos_appends_nothing():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    assert encode_text(tokenizer, "ab") == [BOS, 97, 98]


def test_token_ids_are_returned_as_they_are():
    assert encode_text(byte_tokenizer(), [5, 6]) == [5, 6]


@pytest.mark.parametrize(
    ("last", "rendered"),
    [("assistant", "<bos>user: hi\nassistant: yo<eos>"), ("user", "<bos>user: hi\nuser: yo\n")],
)
def test_the_chat_template_alone_decides_about_the_special_tokens_of_messages(last, rendered):
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    messages = [{"role": "user", "content": "hi"}, {"role": last, "content": "yo"}]
    assert tokenizer.decode(encode_text(tokenizer, messages)) == rendered


def test_a_row_of_messages_is_encoded_with_its_own_chat_template_arguments():
    template = "{{ tone }}{% for m in messages %}{{ m['content'] }}{% endfor %}{{ tools | length if tools else 0 }}"
    row = {
        "prompt": [{"role": "user", "content": "q"}],
        **pair([{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]),
        "chat_template_kwargs": {"tone": "calm "},
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    tokenizer = byte_tokenizer(chat_template=template)
    encoded = encoder(tokenizer=tokenizer)(row, 0)
    assert decoded(tokenizer, encoded["input_ids"]) == ["calm qa1", "calm qb1"]


MESSAGES = [{"role": "user", "content": "hi"}]
DATED = "{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE


def test_messages_without_a_chat_template_are_refused():
    with pytest.raises(ValueError, match=r"tokenizer has no chat_template; set one, or pass strings"):
        encode_text(byte_tokenizer(), MESSAGES)


def test_a_template_that_prints_the_date_is_refused_wherever_it_comes_from():
    dated, fixed = byte_tokenizer(chat_template=DATED), byte_tokenizer(chat_template=CHAT_TEMPLATE)
    for tokenizer, arguments in ((dated, {}), (fixed, {"chat_template": DATED})):
        with pytest.raises(ValueError, match=r"current date \(strftime_now\).*set tokenizer.chat_template"):
            encode_text(tokenizer, MESSAGES, **arguments)
    assert encode_text(dated, MESSAGES, chat_template=CHAT_TEMPLATE) == encode_text(fixed, MESSAGES)


def test_a_template_whose_date_is_fixed_by_an_argument_is_taken():
    dated = "{{ date_string if date_string is defined else strftime_now('%d') }}" + CHAT_TEMPLATE
    tokenizer = byte_tokenizer(chat_template=dated)
    fixed = encode_text(tokenizer, MESSAGES, date_string="26 Jul 2024")
    assert "26 Jul 2024" in tokenizer.decode(fixed)
    with pytest.raises(ValueError, match="current date"):
        encode_text(tokenizer, MESSAGES)


def test_the_template_used_with_tools_is_the_one_that_is_checked():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": DATED}
    check_chat_template(tokenizer, MESSAGES)
    with pytest.raises(ValueError, match="current date"):
        check_chat_template(tokenizer, MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}])


# ---- Keys ----


def test_the_key_of_a_text_is_the_same_on_every_machine_and_run():
    assert text_key([1, 2, 3]) == -5405627362230748553
    assert text_key([1, 2, 3]) != text_key([1, 2]) != text_key([2, 1])
    assert -(2**63) <= text_key([7]) < 2**63


def test_the_common_prefix_is_what_all_texts_begin_with():
    assert common_prefix_length([[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]]) == 2
    assert common_prefix_length([[1, 2], [1, 2, 3]]) == 2
    assert common_prefix_length([[1], [2]]) == 0


# ---- Rows that are too long ----


def test_too_long_is_an_error_by_default_that_names_the_row_the_lengths_and_the_ways_out():
    message = (
        r"train row 7: a text has 6 tokens, 1 more than max_length=5; raise max_length, or set overflow to 'drop'"
    )
    with pytest.raises(ValueError, match=message):
        encoder(max_length=5)(pair("abcd", "x"), 7)


def test_a_text_of_exactly_max_length_fits():
    assert not encoder(max_length=6)(pair("abcd", "x"), 0)["dropped"]


def test_truncating_takes_the_oldest_prompt_tokens_from_every_text_alike_and_keeps_bos_and_completions():
    encode = encoder(max_length=8, overflow="truncate_prompt")
    encoded = encode(pair("wxyz", "no", prompt="0123456"), 0)
    # <bos> 7 prompt bytes, 4 completion bytes, <eos>: 13 tokens, 5 too many.
    assert decoded(encode.tokenizer, encoded["input_ids"]) == ["<bos>56wxyz<eos>", "<bos>56no<eos>"]
    assert encoded["trimmed_tokens"] == 5


def test_truncating_a_rated_list_takes_as_much_from_each_completion():
    encode = encoder(max_length=6, overflow="truncate_prompt")
    row = {"prompt": "0123", "completions": ["a", "bcd", "ef"], "ratings": {"tidy": [1.0, 2.0, 3.0]}}
    encoded = encode(row, 0)
    assert decoded(encode.tokenizer, encoded["input_ids"]) == ["<bos>3a<eos>", "<bos>3bcd<eos>", "<bos>3ef<eos>"]


def test_truncating_never_takes_what_the_completions_have_in_common():
    encode = encoder(max_length=8, overflow="truncate_prompt")
    row = pair("same one", "same two", prompt="0123")
    with pytest.raises(ValueError, match=r"14 tokens, 6 more than max_length=8, and its prompt has only 4 tokens to"):
        encode(row, 0)


def test_truncating_messages_keeps_what_the_assistant_said():
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    question = [{"role": "user", "content": "0123456789"}]
    answers = ([{"role": "assistant", "content": content}] for content in ("same 1", "same 22"))
    row = pair(*answers, prompt=question)
    encoded = encoder(tokenizer=tokenizer, max_length=22, overflow="truncate_prompt")(row, 0)
    assert decoded(tokenizer, encoded["input_ids"]) == [
        "<bos>9\nassistant: same 1<eos>",
        "<bos>9\nassistant: same 22<eos>",
    ]
    with pytest.raises(ValueError, match="its prompt has only 28 tokens to take away"):
        encoder(tokenizer=tokenizer, max_length=8, overflow="truncate_prompt")(row, 0)


def test_without_a_prompt_column_the_prompt_is_what_the_texts_begin_with():
    encode = encoder(max_length=5, overflow="truncate_prompt")
    encoded = encode(pair("0123ab", "0123cd"), 0)
    assert decoded(encode.tokenizer, encoded["input_ids"]) == ["<bos>3ab<eos>", "<bos>3cd<eos>"]


def test_a_text_without_a_prompt_cannot_be_shortened():
    with pytest.raises(ValueError, match="its prompt has only 0 tokens to take away"):
        encoder(max_length=5, overflow="truncate_prompt")({"text": "abcdef", "head": "tidy"}, 0)


def test_a_tokenizer_without_bos_loses_its_first_prompt_token_first():
    tokenizer = tokenizer_with(adds_bos=False)
    encoded = encoder(tokenizer=tokenizer, max_length=4, overflow="truncate_prompt")(pair("ab", "cd", prompt="012"), 0)
    assert decoded(tokenizer, encoded["input_ids"]) == ["2ab<eos>", "2cd<eos>"]


def settings(**changes) -> DataSettings:
    plain = {
        "max_length": 16,
        "overflow": "drop",
        "on_conflict": "raise",
        "use_margin_magnitude": False,
        "tier_weights": {"soft": 1.0},
        "dataset_num_proc": None,
        "dataloader_num_workers": 0,
        "stream_retries": 3,
    }
    return DataSettings(**{**plain, **changes})


@pytest.fixture
def library_log(caplog, monkeypatch):
    """Records of the package, whose root logger is that of transformers."""
    monkeypatch.setattr(logging.getLogger("alignkit"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


def test_of_two_hundred_rows_of_which_thirty_five_fit_the_report_says_that_165_were_dropped(library_log):
    rows = [pair("a", "b" if i < 35 else "b" * 99) | {"head": HEADS[i % 2]} for i in range(200)]
    preparation = DataPreparation(HEADS)
    encoded = preparation.prepare(Dataset.from_list(rows), byte_tokenizer(), settings(), "train")
    report = preparation.report["train"]
    assert len(encoded) == 35
    assert report["rows"] == 200
    assert report["dropped"] == {"tidy": 82, "short": 83}
    assert report["comparisons"] == {"tidy": 18, "short": 17}
    assert "train: 200 rows; dropped: tidy 82, short 83" in library_log.text


def test_trimmed_rows_are_counted_and_logged(library_log):
    rows = [pair("a", "b", prompt="0" * (10 + 10 * i)) for i in range(3)]
    preparation = DataPreparation(["tidy"])
    trim = settings(overflow="truncate_prompt")
    preparation.prepare(Dataset.from_list(rows), byte_tokenizer(), trim, "eval")
    assert preparation.report["eval"]["trimmed"] == {"tidy": 2}
    assert "eval: 3 rows; trimmed: tidy 2" in library_log.text


def test_a_row_for_two_heads_is_counted_once_for_each():
    row = {"chosen": "a", "rejected": "b", "head_margins": {"tidy": 1.0, "short": 0.0}}
    preparation = DataPreparation(HEADS)
    preparation.prepare(Dataset.from_list([row]), byte_tokenizer(), settings(), "train")
    assert preparation.report["train"] == {
        "rows": 1,
        "comparisons": {"tidy": 1, "short": 1},  # the two halves of a tie are one
        "positives": {"tidy": 0, "short": 0},
        "weight": {"tidy": 1, "short": 1},
        "dropped": {"tidy": 0, "short": 0},
        "trimmed": {"tidy": 0, "short": 0},
    }


def test_texts_that_differ_only_before_tokenization_are_refused_as_identical():
    with pytest.raises(ValueError, match=r"train row 3: .*identical after tokenization; drop the row, or mark.*'ab'"):
        encoder()(pair("ab", "ab<eos>"), 3)


def test_a_tie_between_equal_texts_is_let_through():
    assert not encoder()(pair("ab", "ab", tie=True), 0)["dropped"]


def test_encoding_leaves_dropped_rows_in_place_and_marked():
    rows = Dataset.from_list([pair("a", "b"), pair("a", "b" * 99), pair("c", "d")])
    encoded = encode_dataset(rows, encoder(max_length=8, overflow="drop"))
    assert encoded["dropped"] == [False, True, False]
    assert encoded["row"] == [0, 1, 2]


# ---- Streams ----


class Flaky:
    """Rows from a source that raises `error` before the rows in `failing`, once each, or every time."""

    def __init__(self, n_rows: int, failing: list[int], error: Exception, *, for_good: bool = False):
        self.n_rows, self.failing, self.error, self.for_good = n_rows, list(failing), error, for_good

    def __call__(self):
        for number in range(self.n_rows):
            if number in self.failing:
                if not self.for_good:
                    self.failing.remove(number)
                raise self.error
            yield pair(f"good {number}", f"bad {number}")


def stream(source: Flaky, **arguments) -> EncodedStream:
    def rows():  # a plain generator function, which datasets can fingerprint
        yield from source()

    return EncodedStream(IterableDataset.from_generator(rows), encoder(max_length=64), **arguments)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Streams here do not need the seconds that a server needs to come back."""
    monkeypatch.setattr("alignkit.reward_model.data.FIRST_PAUSE_S", 0.001)


def chosen_texts(rows) -> list[str]:
    return [byte_tokenizer().decode(row["input_ids"][0], skip_special_tokens=True) for row in rows]


@pytest.mark.parametrize("failing", [[0], [3], [0, 3], [2, 5]])
@pytest.mark.parametrize(
    "error",
    [
        OSError("disk"),
        ConnectionError("reset"),
        TimeoutError("slow"),
        RuntimeError("gone"),
        aiohttp.ServerDisconnectedError(),
    ],
)
def test_a_stream_that_fails_and_recovers_loses_and_repeats_no_row(failing, error):
    rows = list(stream(Flaky(6, failing, error)))
    assert chosen_texts(rows) == [f"good {number}" for number in range(6)]
    assert [row["row"] for row in rows] == list(range(6))


def test_a_stream_that_dies_for_good_raises_after_its_retries_and_names_how_far_it_came():
    message = r"train stream failed after 2 rows: OSError: disk; given up after 3 retries \(stream_retries\)"
    read = []
    with pytest.raises(RuntimeError, match=message) as caught:
        read.extend(stream(Flaky(6, [2], OSError("disk"), for_good=True)))
    assert isinstance(caught.value.__cause__, OSError)


def test_with_no_retries_the_first_failure_is_the_last():
    with pytest.raises(RuntimeError, match=r"failed after 1 rows.*given up after 0 retries"):
        list(stream(Flaky(3, [1], OSError("disk")), retries=0))


def test_the_retries_count_failures_in_a_row_not_in_all():
    rows = list(stream(Flaky(9, [1, 3, 5, 7], OSError("disk")), retries=1))
    assert len(rows) == 9


def test_an_error_that_is_no_failure_of_reading_is_raised_at_once():
    source = Flaky(6, [2], ValueError("a bad field"))
    with pytest.raises(ValueError, match="a bad field"):
        list(stream(source))
    assert source.failing == []  # read once


def test_a_bad_row_of_a_stream_is_named_by_its_number():
    def rows():
        yield pair("a", "b")
        yield pair("a", "b", margin=float("nan"))

    with pytest.raises(ValueError, match="train row 1: margin is nan"):
        list(EncodedStream(IterableDataset.from_generator(rows), encoder()))


def test_a_stream_reports_every_row_it_read_and_yields_only_those_that_fit():
    def rows():
        yield pair("a", "b")
        yield pair("a", "b" * 99)
        yield pair("c", "d")

    seen = []
    short = encoder(max_length=8, overflow="drop")
    encoded = list(EncodedStream(IterableDataset.from_generator(rows), short, on_row=seen.append, then=[{"row": -1}]))
    assert [row["dropped"] for row in seen] == [False, True, False]
    assert [row["row"] for row in encoded] == [0, 2, -1]


@pytest.mark.parametrize(("row", "n_read"), [(None, 0), (pair("a", "b" * 99), 1)])
def test_a_stream_that_gives_no_row_to_train_on_is_refused(row, n_read):
    def rows():
        yield from [] if row is None else [row]

    message = rf"train stream gave {n_read} rows, of which none was kept; give it at least one.*max_length=8"
    with pytest.raises(ValueError, match=message):
        list(EncodedStream(IterableDataset.from_generator(rows), encoder(max_length=8, overflow="drop")))


def test_rows_lost_from_a_stream_are_counted_over_its_first_pass_and_logged(library_log):
    def rows():
        for index in range(6):
            yield pair("a", "b" * (99 if index % 2 else 1))

    preparation = DataPreparation(["tidy"])
    stream = preparation.prepare(IterableDataset.from_generator(rows), byte_tokenizer(), settings(), "train")
    for _ in range(3):
        assert len(list(stream)) == 3
    assert preparation.report["train"]["rows"] == 6
    assert preparation.report["train"]["dropped"] == {"tidy": 3}
    assert "train: 2 rows so far; dropped: tidy 1" in library_log.text
    assert "train: 4 rows so far; dropped: tidy 2" in library_log.text


def test_every_epoch_of_a_shuffled_stream_has_its_own_order():
    rows = [pair(f"row {i}", "x") for i in range(20)]
    source = IterableDataset.from_generator(lambda: iter(rows)).shuffle(seed=0, buffer_size=20)
    stream = EncodedStream(source, encoder())
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append(chosen_texts(stream))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_tools_given_as_json_are_those_given_as_objects():
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
    template = "{% for tool in tools or [] %}{{ tool['function']['name'] }}{% endfor %}" + CHAT_TEMPLATE
    encode = encoder(tokenizer=byte_tokenizer(chat_template=template))
    answers = {"chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}
    row = {"prompt": MESSAGES, **answers, "head": HEADS[0]}
    with_tools = [encode({**row, "tools": tools}, 0)["input_ids"] for tools in ([tool], json.dumps([tool]))]
    assert with_tools[0] == with_tools[1] != encode(row, 0)["input_ids"]
