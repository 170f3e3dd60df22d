"""Bad input through the real trainer and loader: each error names the value and the fix."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model

from alignkit.reward_model import load_reward_model
from alignkit.reward_model.export import RewardModel
from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer, tiny_sequence_classifier

HEADS = ["tidy", "short"]


def pair(head: str = "tidy", **columns: Any) -> dict[str, Any]:
    return {"chosen": "a good text", "rejected": "a bad text", "head": head, **columns}


def with_bad_row(row: dict[str, Any]) -> Dataset:
    """Two good rows, one for each head, and a bad one: row 2."""
    rows = [pair("tidy"), pair("short"), row]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return Dataset.from_dict({column: [row.get(column) for row in rows] for column in columns})


@pytest.fixture
def refused(make_trainer):
    """Assert that building a trainer fails with a message that matches every pattern."""

    def check(*patterns: str, error: type[Exception] = ValueError, data: Any = None, **settings: Any) -> None:
        data = Dataset.from_list([pair("tidy"), pair("short")]) if data is None else data
        with pytest.raises(error) as caught:
            make_trainer(settings.pop("head_names", HEADS), data, **settings)
        for pattern in patterns:
            assert caught.match(pattern)

    return check


# ---- Rows ----


def test_an_unknown_head_name(refused):
    refused("train row 2", "head 'tiddy'", r"use one of \['tidy', 'short'\]", data=with_bad_row(pair("tiddy")))


def test_a_row_with_neither_format(refused):
    row = {"chosen": None, "rejected": None, "head": "tidy", "question": "why?"}
    refused("train row 2", r"only the columns \['head', 'question'\]", "give it either", data=with_bad_row(row))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_margin_that_is_not_finite(refused, value):
    refused("train row 2", f"margin is {value}; it must be a finite number", data=with_bad_row(pair(margin=value)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_rating_that_is_not_finite(refused, value):
    row = {"completions": ["a", "b"], "ratings": {"tidy": [1.0, value]}}
    refused("train row 2", rf"ratings\['tidy'\]\[1\] is {value}; it must be a finite", data=with_bad_row(row))


def test_chosen_and_rejected_that_are_the_same_text(refused):
    row = pair(rejected="a good text")
    refused("train row 2", "identical", "drop the row, or mark it as a tie", "'a good text'", data=with_bad_row(row))


def test_a_text_longer_than_max_length(refused):
    patterns = ("train row 2", "52 tokens, 20 more than max_length=32", "raise max_length, or set overflow to 'drop'")
    refused(*patterns, data=with_bad_row(pair(chosen="x" * 50)), max_length=32)


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text(refused, text):
    patterns = ("train row 2", f"column 'rejected' is empty \\({text!r}\\)".replace("\\n", "\\\\n"), "drop the row or")
    refused(*patterns, data=with_bad_row(pair(rejected=text)))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("chosen", [1, 2], "train row 0: column 'chosen' must be a string or a list of messages.*got int 1"),
        ("head", [0.5, 1.0], r"train row 0: column 'head' names the head 0.5; use one of.*or a number from 0 to 1"),
        ("margin", ["1", "2"], "train row 0: margin is '1'; it must be a finite number"),
        ("tie", ["no", "no"], "train row 0: column 'tie' is 'no'; it must be true or false"),
    ],
)
def test_a_column_of_the_wrong_type(refused, column, values, message):
    columns = {"chosen": ["a", "b"], "rejected": ["c", "d"], "head": HEADS, column: values}
    refused(message, data=Dataset.from_dict(columns))


def test_rows_that_are_no_dataset(refused):
    rows = [pair("tidy"), pair("short")]
    refused("`train_dataset` must be a `Dataset` or `IterableDataset`, got `list`", error=TypeError, data=rows)
    refused("eval is a list; make it a datasets.Dataset or IterableDataset", error=TypeError, eval_dataset=rows)


def test_rows_that_another_trainer_has_encoded(refused, make_trainer):
    encoded = make_trainer(HEADS, Dataset.from_list([pair("tidy"), pair("short")])).train_dataset
    refused("train is encoded already, by another trainer; give this one the rows it was made of", data=encoded)


def test_an_empty_dataset(refused):
    refused("the train dataset is empty; give it at least one row", data=Dataset.from_list([pair()]).select([]))


def test_an_empty_stream(make_trainer):
    trainer = make_trainer(HEADS, stream_of(), max_steps=1)
    with pytest.raises(ValueError, match="the train stream gave 0 rows, of which none was kept; give it at least one"):
        trainer.train()


def test_a_dataset_of_which_nothing_fits(refused):
    patterns = ("train: all 2 rows were dropped", "longer than max_length=4", "raise max_length")
    refused(*patterns, overflow="drop", max_length=4)


def test_a_chat_template_that_uses_the_current_date(refused):
    messages = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    data = Dataset.from_list([{**messages, "head": head} for head in HEADS])
    tokenizer = byte_tokenizer(chat_template="{{ strftime_now('%d %B') }}" + CHAT_TEMPLATE)
    patterns = ("train row 0", r"current date \(strftime_now\)", "set tokenizer.chat_template, or chat_template_path")
    refused(*patterns, data=data, processing_class=tokenizer)


def test_messages_without_a_chat_template(refused):
    messages = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    data = Dataset.from_list([{**messages, "head": head} for head in HEADS])
    refused("train row 0", "the tokenizer has no chat_template; set one, or pass strings", data=data)


# ---- Heads, tiers and negatives ----


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["tidy", "short", "tidy"], ("'tidy' more than once", "every head needs its own name")),
        ([], ("head_names is empty", "name at least one head")),
        (["tidy/short"], ("head name 'tidy/short'", "without '/'")),
        ("tidy", ("head_names is 'tidy'", r"make it a list, \['tidy'\]")),
    ],
)
def test_head_names_that_are_repeated_or_missing_or_no_list(make_config, names, patterns):
    with pytest.raises(ValueError) as caught:
        make_config(names)
    for pattern in patterns:
        assert caught.match(pattern)


def test_a_head_with_no_comparison(refused):
    message = r"head 'short' has no comparison of weight above 0.*add rows for it, or take it out of head_names"
    refused(message, data=Dataset.from_list([pair("tidy")]))


POSITIVES = [{"text": "an ode", "head": "tidy"}, {"text": "a note", "head": "short"}]


def negatives(*tiers: str) -> Dataset:
    return Dataset.from_list([{"text": f"text {i}", "tier": tier} for i, tier in enumerate(tiers)])


def test_a_tier_without_a_weight(refused):
    refused(
        "negatives: tier 'firm' has no weight",
        r"add it to tier_weights, which is \{'soft': 1.0\}",
        data=Dataset.from_list(POSITIVES),
        negatives=negatives("soft", "firm"),
        tier_weights={"soft": 1.0},
    )


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, "2"])
def test_a_tier_weight_that_is_no_weight(make_config, weight):
    with pytest.raises(ValueError, match=rf"tier_weights\['soft'\] is {weight!r}; it must be a finite number, 0 or"):
        make_config(HEADS, tier_weights={"soft": weight})


def test_negatives_missing_for_an_active_tier(refused):
    refused(
        r"negatives: tier 'furthest' has weight 0.5 but no text \(0 dropped for their length\)",
        "add texts of that tier, or leave it out of tier_weights",
        data=Dataset.from_list(POSITIVES),
        negatives=negatives("soft", "semi_firm"),
    )


def stream_of(*rows: dict[str, Any]) -> IterableDataset:
    def generate():
        yield from rows

    return IterableDataset.from_generator(generate)


NO_NEGATIVES = r"of the form \(text, head\), for head 'tidy'; such rows need the trainer argument `negatives`"


def test_positives_of_a_corpus_without_any_negatives(refused):
    refused("train has a row that is " + NO_NEGATIVES, data=Dataset.from_list(POSITIVES))


def test_positives_of_a_streamed_corpus_without_any_negatives(make_trainer):
    trainer = make_trainer(HEADS, stream_of(*POSITIVES), max_steps=1)
    with pytest.raises(ValueError, match="train row 0 is " + NO_NEGATIVES):
        trainer.train()


FOR_TIDY = [{"text": "prose", "tier": "soft", "heads": ["tidy"]}]
NO_NEGATIVE_FOR_SHORT = "is a positive of head 'short', against which no negative may be used.*add 'short' to the 'he"


def test_a_head_whose_positives_no_negative_may_be_used_against(refused):
    settings = {"negatives": Dataset.from_list(FOR_TIDY), "tier_weights": {"soft": 1.0}}
    refused("train has a row that " + NO_NEGATIVE_FOR_SHORT, data=Dataset.from_list(POSITIVES), **settings)


def test_a_head_that_loses_its_only_negative_to_a_conflict(refused):
    rows = [*FOR_TIDY, {"text": "a note", "tier": "soft", "heads": ["short"]}]
    settings = {"negatives": Dataset.from_list(rows), "tier_weights": {"soft": 1.0}, "on_conflict": "drop"}
    refused("train has a row that " + NO_NEGATIVE_FOR_SHORT, data=Dataset.from_list(POSITIVES), **settings)


def test_a_streamed_head_whose_positives_no_negative_may_be_used_against(make_trainer):
    settings = {"negatives": Dataset.from_list(FOR_TIDY), "tier_weights": {"soft": 1.0}, "max_steps": 1}
    trainer = make_trainer(HEADS, stream_of(*POSITIVES), **settings)
    with pytest.raises(ValueError, match="train row 1 " + NO_NEGATIVE_FOR_SHORT):
        trainer.train()


def test_negatives_that_are_no_dataset(refused):
    for value, name in ((FOR_TIDY, "list"), (stream_of(*FOR_TIDY), "IterableDataset")):
        refused(
            f"negatives is a {name}; its rows are drawn by number",
            r"make it a datasets.Dataset, for example by Dataset.from_list\(rows\)",
            error=TypeError,
            data=Dataset.from_list(POSITIVES),
            negatives=value,
        )


def test_negatives_without_any_positives_of_a_corpus(refused):
    message = r"`negatives` is given but no row of train has the form \(text, head\); leave it out"
    refused(message, negatives=negatives("soft"), tier_weights={"soft": 1.0})


def test_a_positive_that_is_also_a_negative_of_its_head(refused):
    refused(
        r"negatives row 1 \(tier 'soft'\) is also a positive of head 'tidy'",
        "take the head out of its 'heads', or set on_conflict='drop'",
        data=Dataset.from_list(POSITIVES),
        negatives=Dataset.from_list([{"text": text, "tier": "soft"} for text in ("other", "an ode")]),
        tier_weights={"soft": 1.0},
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairing": "random"}, r"pairing is 'random'; choose one of \['all', 'positional'\]"),
        ({"reduction": "sum"}, r"reduction is 'sum'; choose one of \['comparisons', 'active_heads'\]"),
        ({"regularizer": "l2"}, r"regularizer is 'l2'; choose one of"),
        ({"overflow": "cut"}, r"overflow is 'cut'; choose one of"),
        ({"on_conflict": "ignore"}, r"on_conflict is 'ignore'; choose one of"),
        ({"negatives_per_tier": 0}, "negatives_per_tier is 0; it must be at least 1"),
        ({"encode_batch_size": 0}, "encode_batch_size is 0; it must be at least 1"),
        ({"max_packed_tokens": 0}, "max_packed_tokens is 0; it must be at least 1"),
        ({"stream_retries": -1}, "stream_retries is -1; it must be at least 0"),
        ({"score_softcap": 0.0}, "score_softcap is 0.0; it must be above 0, or None"),
        ({"regularizer_weight": math.nan}, "regularizer_weight is nan; it must be finite, 0 or more"),
        ({"head_weights": "even"}, "head_weights is 'even'; choose 'uniform', 'inverse_count', a dict"),
        ({"head_weights": {"tidy": -1.0}}, r"head_weights\['tidy'\] is -1.0; it must be a finite number, 0 or more"),
        ({"tier_weights": [1.0]}, r"tier_weights is \[1.0\]; it must be a dict of tier name to weight"),
        ({"regularizer": "center", "center_rewards_coefficient": 0.1}, "both set; .* keep one of them"),
    ],
)
def test_a_setting_out_of_range(make_config, settings, message):
    with pytest.raises(ValueError, match=message):
        make_config(HEADS, **settings)


def test_head_weights_that_do_not_name_every_head(refused):
    message = r"head_weights names \['tidy'\]; it must name exactly the heads \['tidy', 'short'\]"
    refused(message, head_weights={"tidy": 1.0})


# ---- Tokenizers, models and checkpoints ----


def test_a_tokenizer_without_pad_token_pads_with_eos_and_scores_alike(make_trainer):
    data = Dataset.from_list([pair("tidy"), pair("short", chosen="another, longer text")])
    logged = []
    for pad_token in ("<pad>", None):
        tokenizer = byte_tokenizer()
        tokenizer.pad_token = pad_token
        trainer = make_trainer(HEADS, data, processing_class=tokenizer, max_steps=2)
        trainer.train()
        assert trainer.processing_class.pad_token == (pad_token or "<eos>")
        logged.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert logged[0] == pytest.approx(logged[1], rel=1e-6)


def test_a_tokenizer_with_neither_pad_nor_eos_token(refused):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    refused("neither a pad_token nor an eos_token", r"set tokenizer\.pad_token", processing_class=tokenizer)


def lora(task_type: str) -> LoraConfig:
    return LoraConfig(task_type=task_type, target_modules=["q_proj"], r=2)


def test_a_peft_config_that_is_not_for_sequence_classification(refused):
    patterns = ("task_type is .*CAUSAL_LM", "needs task_type='SEQ_CLS'")
    refused(*patterns, peft_config=lora("CAUSAL_LM"))


def test_a_peft_model_that_is_not_for_sequence_classification(refused):
    model = get_peft_model(tiny_sequence_classifier(HEADS), lora("FEATURE_EXTRACTION"))
    refused("task_type is .*FEATURE_EXTRACTION", "needs task_type='SEQ_CLS'", model=model)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A reward model with the heads `tidy`, `short` and `kind`."""
    RewardModel(tiny_sequence_classifier([*HEADS, "kind"]), byte_tokenizer()).save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("names", [HEADS, ["short", "tidy", "kind"], ["tidy", "short", "brave"]])
def test_a_checkpoint_with_other_heads(refused, checkpoint, names):
    data = Dataset.from_list([pair(name) for name in names])
    patterns = (
        f"head_names is {names}".replace("[", r"\["),
        r"has the heads \['tidy', 'short', 'kind'\]",
        "use the same",
    )
    refused(*patterns, head_names=names, data=data, model=str(checkpoint), processing_class=None)


def test_a_truncated_safetensors_file(refused, checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    patterns = (str(checkpoint), "damaged safetensors file", "save or download it again")
    names = [*HEADS, "kind"]
    data = Dataset.from_list([pair(name) for name in names])
    refused(*patterns, head_names=names, data=data, model=str(checkpoint), processing_class=None)
    with pytest.raises(ValueError, match=r"damaged safetensors file.*save or download it again"):
        load_reward_model(checkpoint)


def test_a_streaming_source_that_dies(make_trainer):
    def rows():
        yield pair("tidy")
        yield pair("short")
        raise OSError("connection lost")

    source = IterableDataset.from_generator(rows)
    trainer = make_trainer(HEADS, source, max_steps=9, per_device_train_batch_size=1, stream_retries=2)
    message = (
        r"train stream failed after 2 rows: OSError: connection lost; given up after 2 retries \(stream_retries\)"
    )
    with pytest.raises(RuntimeError, match=message):
        trainer.train()
    assert trainer.data_report["train"]["rows"] == 2
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())
