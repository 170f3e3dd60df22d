"""Prompts of TAT-QA and how they are made to fit."""

import copy
import statistics

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from alignkit.evaluation.generation import encode_prompt
from alignkit.tasks.tatqa import PromptForm, PromptTooLongError, load_tatqa, tatqa_prompts
from alignkit.tasks.tatqa_prompts import CUE, ROLE, header_rows, markdown_row
from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer
from tests.tasks.tatqa_context import small_context

WHOLE = """\
You are a financial analyst. Answer the question from the table and the passages. Write the answer alone: a number \
with its scale (thousand, million, billion or percent) if it has one, several answers on a line each.

Table:
|  | Years Ended September 30, |  |
|---|---|---|
|  | 2019 | 2018 |
| Fixed price | $ 1,452.4 | $ 1,146.2 |
| Other | 44.1 | 56.7 |
| Total sales | $1,496.5 | $1,202.9 |
| Units sold | 8,400 | 7,900 |

Passages:
On a cost-plus type contract we are paid our allowable costs plus a fixed profit. Revenue from service agreements is \
recognised evenly over the term of the contract, which is three years as a rule.
Amounts are in millions and follow the contract type of each customer.

Question: What is the change in Other in 2019 from 2018?
Answer:"""


def table_rows(prompt: str) -> list[str]:
    return [line for line in prompt.splitlines() if line.startswith("| ")]


def test_a_prompt_is_role_table_passages_in_their_order_question_and_cue():
    assert tatqa_prompts([small_context()])["q3"] == WHOLE


def test_the_answer_is_not_in_the_prompt_and_neither_are_marks_made_with_it_in_view():
    context = small_context()
    before = tatqa_prompts([context])
    for question in context["questions"]:
        question |= {"answer_from": "text", "rel_paragraphs": ["2"], "derivation": "44.1-56.7"}
    context["questions"][3]["answer"] = 99
    assert tatqa_prompts([context]) == before


def test_header_rows_are_the_first_and_those_below_it_without_a_label():
    assert header_rows([["", "a"], ["", "b"], ["c", "d"]]) == 2
    assert header_rows([["a", "b"], ["c", "d"]]) == 1
    assert header_rows([["", "a"]] * 9) == 4
    assert header_rows([["a", "b"]]) == 1


def test_a_bar_inside_a_cell_does_not_part_it():
    assert markdown_row(["a|b", " c \n d"]) == r"| a\|b | c d |"


def test_rows_of_unequal_length_are_filled_up():
    context = small_context()
    context["table"]["table"][3] = ["Other", "44.1"]
    assert "| Other | 44.1 |  |" in tatqa_prompts([context])["q3"]


def test_rows_and_columns_above_their_limits_give_way_by_relevance():
    prompt = tatqa_prompts([small_context()], form=PromptForm(max_rows=2, max_columns=2))["q0"]
    # The question names total sales and 2019; of the other rows, equal in this, the first one stays.
    header = ["|  | Years Ended September 30, |", "|  | 2019 |"]
    assert table_rows(prompt) == [*header, "| Fixed price | $ 1,452.4 |", "| Total sales | $1,496.5 |"]


def test_passages_have_a_budget_and_are_cut_at_a_word():
    prompt = tatqa_prompts([small_context()], form=PromptForm(max_passage_characters=70))["q1"]
    passages = prompt.split("Passages:\n")[1].split("\n\n")[0]
    # The question is about cost-plus contracts, so that the first passage takes all.
    assert passages == "On a cost-plus type contract we are paid our allowable costs plus ..."


def test_parts_give_way_in_order_and_the_fixed_parts_never_do():
    tokenizer = byte_tokenizer()
    context = small_context()
    whole = len(encode_prompt(tokenizer, tatqa_prompts([context])["q3"]))
    seen = []
    for limit in range(whole, 0, -1):
        try:
            prompt = tatqa_prompts(
                [{**context, "questions": context["questions"][3:4]}], tokenizer, PromptForm(max_prompt_tokens=limit)
            )["q3"]
        except PromptTooLongError as error:
            assert f"question q3: role, header, question and cue have {limit + 1} tokens" in str(error)
            break
        assert len(encode_prompt(tokenizer, prompt)) <= limit
        assert prompt.startswith(ROLE + "\n\nTable:\n|")
        assert prompt.endswith("Question: What is the change in Other in 2019 from 2018?\nAnswer:")
        rows = table_rows(prompt)
        columns = prompt.split("\n|---|")[1].split("\n")[0].count("---") + 1
        passages = len(prompt.split("Passages:\n")[1].split("\n\n")[0]) if "Passages:" in prompt else 0
        seen.append((columns, len(rows) - 2, passages))
        assert rows[0].startswith("|  |") or columns == 1
        if len(rows) - 2 > 1:
            assert any(row.startswith("| Other") for row in rows)
        if len(rows) - 2 < 4:
            assert not passages
    assert seen[0] == (3, 4, 262)
    for fewer_columns, before in zip(seen[1:], seen, strict=False):
        assert fewer_columns[0] <= before[0]
        if fewer_columns[0] == before[0] == 3:
            assert fewer_columns[1] <= before[1] and fewer_columns[2] <= before[2]
    # A column is given up only where not one row has room beside the header.
    assert min(rows for columns, rows, _ in seen if columns == 3) == 1
    assert {columns for columns, _, _ in seen} == {1, 2, 3}


def test_the_most_relevant_row_is_the_last_to_go():
    tokenizer = byte_tokenizer()
    full = len(encode_prompt(tokenizer, tatqa_prompts([small_context()])["q3"]))
    prompts = tatqa_prompts([small_context()], tokenizer, PromptForm(max_prompt_tokens=full - 340))
    assert [row for row in table_rows(prompts["q3"])[2:] if "Other" in row] == ["| Other | 44.1 | 56.7 |"]
    assert any("Total sales" in row for row in table_rows(prompts["q0"]))


def test_room_that_a_long_row_leaves_is_not_given_back_to_passages():
    tokenizer = byte_tokenizer()
    context = small_context()
    context["table"]["table"].append(["Long label " * 20, "1", "2"])
    without_passages = tatqa_prompts([{**context, "paragraphs": []}])["q3"]
    form = PromptForm(max_prompt_tokens=len(without_passages) - 50)
    prompt = tatqa_prompts([context], tokenizer, form)["q3"]
    assert "Long label" not in prompt and "Passages:" not in prompt
    assert len(encode_prompt(tokenizer, prompt)) < form.max_prompt_tokens - 100


def test_a_chat_prompt_is_one_message_whose_template_counts():
    template = CHAT_TEMPLATE + "{% if thinking is defined and not thinking %}<think></think>{% endif %}"
    tokenizer = byte_tokenizer(chat_template=template)
    lengths = {}
    for name, kwargs in (("plain", {}), ("without thinking", {"thinking": False})):
        form = PromptForm(max_prompt_tokens=700, chat=True, chat_template_kwargs=kwargs)
        prompt = tatqa_prompts([small_context()], tokenizer, form)["q3"]
        assert [message["role"] for message in prompt] == ["user"]
        assert prompt[0]["content"].startswith(ROLE) and prompt[0]["content"].endswith(CUE)
        assert len(encode_prompt(tokenizer, prompt, kwargs)) <= 700
        lengths[name] = len(prompt[0]["content"])
    assert lengths["plain"] - lengths["without thinking"] in range(5, 40)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_rows": 0}, "max_rows=0"),
        ({"max_columns": 1}, "max_columns=1 must be at least 2"),
        ({"max_passage_characters": -1}, "max_passage_characters=-1"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens=0"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "only with chat=True"),
    ],
)
def test_a_form_out_of_range_is_an_error(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        PromptForm(**settings)


def test_a_limit_without_a_tokenizer_and_messages_without_a_template_are_errors():
    with pytest.raises(ValueError, match="max_prompt_tokens needs a tokenizer"):
        tatqa_prompts([small_context()], form=PromptForm(max_prompt_tokens=9))
    with pytest.raises(ValueError, match="no chat template"):
        tatqa_prompts([small_context()], byte_tokenizer(), PromptForm(max_prompt_tokens=9, chat=True))


@pytest.fixture(scope="module")
def dev(data_dir) -> list[dict]:
    return load_tatqa(data_dir / "tatqa" / "tatqa_dataset_dev.json")


@pytest.fixture(scope="module")
def bpe(dev) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 6,000 tokens, trained on the prompts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=6000,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(tatqa_prompts(dev).values(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def assert_fixed_parts(context: dict, prompts: dict[str, str]) -> None:
    table = context["table"]["table"]
    header = [markdown_row(row) for row in table[: header_rows(table)]]
    for question in context["questions"]:
        prompt = prompts[question["uid"]]
        assert prompt.startswith(f"{ROLE}\n\nTable:\n{header[0]}\n")
        assert all(row in prompt for row in header)
        assert prompt.endswith(f"\n\nQuestion: {' '.join(question['question'].split())}\n{CUE}")


def test_all_development_questions_fit_into_384_tokens_with_their_fixed_parts_whole(dev, bpe):
    untrimmed = [len(ids) for ids in bpe(list(tatqa_prompts(dev).values()))["input_ids"]]
    assert statistics.median(untrimmed) > 384
    prompts = tatqa_prompts(dev, bpe, PromptForm(max_prompt_tokens=384))
    lengths = [len(ids) for ids in bpe(list(prompts.values()))["input_ids"]]
    assert len(prompts) == 1668
    assert max(lengths) <= 384
    for context in dev:
        assert_fixed_parts(context, prompts)
    # What there is room for is used: nine of ten prompts that were cut have at most 16 tokens to spare.
    spare = sorted(384 - after for before, after in zip(untrimmed, lengths, strict=True) if before > 384)
    assert spare[len(spare) * 9 // 10] <= 16


def test_prompts_that_fit_are_left_whole(dev, bpe):
    prompts = tatqa_prompts(dev[:60])
    assert tatqa_prompts(dev[:60], bpe, PromptForm(max_prompt_tokens=100_000)) == prompts


def test_a_tokenizer_with_two_characters_a_token_gets_prompts_that_fit_too(dev, data_dir):
    tokenizer = AutoTokenizer.from_pretrained(str(data_dir / "models" / "stories260K"))
    prompts = tatqa_prompts(dev[:100], tokenizer, PromptForm(max_prompt_tokens=384))
    assert max(len(encode_prompt(tokenizer, prompt)) for prompt in prompts.values()) <= 384


class CountingTokenizer:
    """A tokenizer that counts the texts that it is asked to encode one at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer = tokenizer
        self.n_single = 0

    def __call__(self, text: str | list[str], **settings) -> dict:
        self.n_single += isinstance(text, str)
        return self._tokenizer(text, **settings)

    def __getattr__(self, name: str):
        return getattr(self._tokenizer, name)


def test_a_prompt_is_tokenised_about_twice_to_be_made_to_fit(dev, bpe):
    tokenizer = CountingTokenizer(bpe)
    prompts = tatqa_prompts(dev[:60], tokenizer, PromptForm(max_prompt_tokens=384))
    assert tokenizer.n_single <= 2.5 * len(prompts)


def test_contexts_are_left_as_they_were():
    context = small_context()
    before = copy.deepcopy(context)
    tatqa_prompts([context], byte_tokenizer(), PromptForm(max_prompt_tokens=500))
    assert context == before
