"""The probe: scores at every token, how they are summed up, and how they are shown."""

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

from alignkit.reward_model.data import encode_text
from alignkit.reward_model.probing import ProbeResult, probe
from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer, tiny_sequence_classifier

HEADS = ["kind", "brief"]
TEXT = "Warm a kettle."


def hand_result(scores: list[list[float]], tokens: list[str] | None = None) -> ProbeResult:
    tokens = tokens or [f"t{position}" for position in range(len(scores))]
    return ProbeResult(tokens, list(range(len(scores))), torch.tensor(scores), HEADS[: len(scores[0])])


def tiny_model(seed: int = 0) -> LlamaForSequenceClassification:
    return tiny_sequence_classifier(HEADS, seed=seed)


def printed(table: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@torch.no_grad()
def test_the_score_at_a_token_is_the_models_score_of_the_text_cut_after_it() -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    result = probe(model, tokenizer, TEXT)
    assert result.token_ids == encode_text(tokenizer, TEXT)
    assert result.scores.shape == (len(result.tokens), 2)
    for end in (1, 5, len(result.token_ids)):
        logits = model(torch.tensor([result.token_ids[:end]])).logits
        torch.testing.assert_close(result.scores[end - 1], logits[0], atol=1e-5, rtol=0)


def test_a_peft_model_is_probed_with_its_adapter() -> None:
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["q_proj"], init_lora_weights=False)
    model, tokenizer = get_peft_model(tiny_model(), config), byte_tokenizer()
    with_adapter = probe(model, tokenizer, TEXT)
    with model.disable_adapter():
        without = probe(model, tokenizer, TEXT)
    assert with_adapter.head_names == HEADS
    assert (with_adapter.scores - without.scores).abs().max() > 1e-3


def test_chat_messages_are_probed_through_the_chat_template() -> None:
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    result = probe(tiny_model(), tokenizer, [{"role": "user", "content": "Hi"}])
    assert "".join(result.tokens) == "<bos>user:␣Hi\\n"


def test_probing_leaves_a_model_in_training_mode_as_it_was_and_switches_dropout_off() -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    model.config.attention_dropout = 0.9
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train()
    assert torch.equal(probe(model, tokenizer, TEXT).scores, probe(model, tokenizer, TEXT).scores)
    assert model.training


def test_a_character_of_several_tokens_is_shown_at_its_last_one_and_blanks_are_visible() -> None:
    tokens = probe(tiny_model(), byte_tokenizer(), "é \n😀[b]").tokens
    assert tokens == ["<bos>", "⋯", "é", "␣", "\\n", "⋯", "⋯", "⋯", "😀", "[", "b", "]", "<eos>"]


def test_a_token_keeps_the_space_that_it_loses_when_it_is_decoded_alone() -> None:
    # A SentencePiece-like vocabulary: "▁a" alone decodes to "a", after another token to " a".
    vocabulary = {"<unk>": 0, "▁a": 1, "b": 2}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Split("b", "isolated")]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    result = probe(tiny_model(), tokenizer, "ab a")
    assert result.token_ids == [1, 2, 1]
    assert result.tokens == ["a", "b", "␣a"]


def test_points_are_evenly_spaced_and_hold_the_first_and_the_last() -> None:
    result = hand_result([[0.0]] * 11)
    assert result.points(3) == [0, 5, 10]
    assert result.points(5) == [0, 3, 5, 8, 10]  # 2.5 and 7.5 are rounded up
    assert result.points(1) == [10]
    assert result.points(11) == result.points(50) == list(range(11))
    assert hand_result([[0.0]]).points(7) == [0]


def test_points_below_one_are_an_error() -> None:
    with pytest.raises(ValueError, match="number of points is 0"):
        hand_result([[0.0]]).points(0)


def test_the_summary_worked_by_hand() -> None:
    result = hand_result([[1.0, 0.0], [4.0, -2.0], [-2.0, 0.5]])
    assert result.summary() == {
        "kind": {"first": 1, "last": -2, "change": -3, "min": -2, "max": 4, "mean": 1},
        "brief": {"first": 0, "last": 0.5, "change": 0.5, "min": -2, "max": 0.5, "mean": -0.5},
    }


def test_a_sparkline_has_eight_heights_from_min_to_max() -> None:
    result = hand_result([[float(score)] for score in range(8)])
    assert result.sparkline("kind") == "▁▂▃▄▅▆▇█ [0 to 7]"
    assert result.sparkline("kind", width=2) == "▁█ [0 to 7]"


def test_a_sparkline_of_equal_scores_is_flat() -> None:
    assert hand_result([[0.25]] * 3).sparkline("kind") == "▅▅▅ [0.25 to 0.25]"


def test_a_sparkline_of_an_unknown_head_is_an_error_that_lists_the_heads() -> None:
    with pytest.raises(ValueError, match=r"no head 'rude'; the heads are \['kind', 'brief'\]"):
        hand_result([[0.0, 1.0]]).sparkline("rude")


def test_the_table_has_one_row_for_every_point_and_prints_markup_characters_as_they_are() -> None:
    result = hand_result([[1.0, 2.0], [3.0, 4.0], [5.0, -6.5]], tokens=["a", "[bold]", "c"])
    text = printed(result.table(3))
    assert "[bold]" in text
    assert "-6.500" in text
    assert "[bold]" not in printed(result.table(2))


def test_the_json_form_survives_json_and_holds_every_score() -> None:
    result = hand_result([[1.0, 2.0], [3.0, 4.0]])
    document = json.loads(json.dumps(result.to_json()))
    assert document["scores"] == {"kind": [1, 3], "brief": [2, 4]}
    assert document["summary"] == result.summary()
    assert (document["tokens"], document["token_ids"], document["n_tokens"]) == (["t0", "t1"], [0, 1], 2)


@pytest.mark.parametrize("n_tokens", [1, 10, 120])
def test_a_heatmap_grows_with_the_text_and_draws_any_token(tmp_path: Path, n_tokens: int) -> None:
    # "$" starts a formula in matplotlib and 中 is not in its font: neither may raise or warn.
    tokens = ["$a$", "$", "中", "long" * 9, "\\n", "_{"] * 20
    scores = [[math.sin(position), 100.0 * (position == 3)] for position in range(n_tokens)]
    hand_result(scores, tokens[:n_tokens]).heatmap(tmp_path / "map.png")
    header = (tmp_path / "map.png").read_bytes()[:24]
    width, height = struct.unpack(">II", header[16:24])
    assert header[:4] == b"\x89PNG"
    assert width <= 1800
    assert height == pytest.approx(150 * (0.7 + math.ceil(n_tokens / 50) * 1.6), abs=1)


def test_an_empty_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="the text is empty"):
        probe(tiny_model(), byte_tokenizer(), "")


def test_a_score_that_is_not_finite_is_an_error_that_names_head_and_token() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.score.weight[1] = math.inf
    with pytest.raises(ValueError, match="head 'brief' at token 0 is"):
        probe(model, byte_tokenizer(), TEXT)
