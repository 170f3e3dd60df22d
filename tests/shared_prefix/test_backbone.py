"""Sharing changes no number: log-probabilities, loss and gradients of tiny models of many architectures."""

import pytest
import torch

from alignkit.shared_prefix import pack_rows, share_prefix
from alignkit.shared_prefix.attention import PathMask
from tests.shared_prefix.completions import (
    ARCHITECTURES,
    Rows,
    assert_sharing_changes_nothing,
    cut_inputs,
    logps,
    pack,
    ragged_pairs,
    tiny,
    tokens,
)

P = tokens(20, 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_loss_and_gradients_are_those_of_whole_rows(architecture, attention):
    if architecture == "Gemma2" and attention == "sdpa":
        pytest.skip("transformers refuses the soft cap of Gemma 2's attention with sdpa")
    assert_sharing_changes_nothing(tiny(architecture, attention), ragged_pairs())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(Rows([P + [5, 6, 7, 1], P + [5, 6, 7, 2]], [20, 20]), id="equal up to the last token"),
        pytest.param(Rows([P + [5, 6], P + [5, 6]], [20, 20]), id="identical"),
        pytest.param(Rows([P + [5, 6], P + [5, 6, 7]], [20, 20]), id="one is the beginning of the other"),
        pytest.param(Rows([P[:19] + [3, 4], P[:19] + [5, 6, 7]], [20, 20]), id="prompt merges with the completion"),
        pytest.param(Rows([P + [n, *tokens(3 * n, n)] for n in range(3, 7)], [20] * 4), id="four completions"),
        pytest.param(
            Rows([[4, *tokens(15, 1)], [4, *tokens(9, 2)], [4, *tokens(15, 1), 5], [4, *tokens(9, 2), 6]], [5] * 4),
            id="two prompts that begin alike",
        ),
        pytest.param(
            Rows([tokens(19, 1), P + [3], tokens(19, 2), P + [4]], [4, 20, 4, 20]), id="some have no common prefix"
        ),
        pytest.param(Rows([P[:3] + tokens(50, 2), P[:3] + tokens(2, 3)] * 2, [3] * 4), id="completions longer"),
    ],
)
def test_any_common_beginning_gives_the_numbers_of_whole_rows(rows, attention):
    for architecture in ("Llama", "Gemma3"):
        assert_sharing_changes_nothing(tiny(architecture, attention), rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("limit", [35, 50, 60])
def test_splitting_rows_at_a_limit_changes_no_number(attention, limit):
    model, rows = tiny("Olmo3", attention), ragged_pairs()
    assert_sharing_changes_nothing(model, rows, max_packed_tokens=limit)
    packed = pack(model, rows, max_packed_tokens=limit)
    assert len(packed.input_ids) > 1 and packed.input_ids.shape[1] <= limit


@pytest.mark.parametrize("architecture", ["Llama", "Mistral with a short window", "Gemma3"])
def test_rows_attended_in_padded_batches_give_what_rows_attended_one_by_one_do(architecture, monkeypatch):
    model, rows = tiny(architecture), ragged_pairs()
    share_prefix(model)
    packed = pack(model, rows)
    expected = logps(model, rows, packed)
    monkeypatch.setattr("alignkit.shared_prefix.attention.rows_at_once", lambda device, n_rows: n_rows)
    assert [len(piece.keys) for piece in PathMask(packed).pieces] == [2, 4]
    torch.testing.assert_close(logps(model, rows, packed), expected, rtol=0, atol=1e-5)


# A CPU has no backward for flex_attention.
@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["flex_attention", "sdpa", "eager"])
def test_on_a_gpu_log_probs_are_those_of_the_cpu_and_gradients_flow(attention):
    rows = ragged_pairs()
    expected = logps(tiny("Olmo3"), rows)
    model = tiny("Olmo3", attention).cuda()
    share_prefix(model)
    packed = pack(model, rows).to("cuda")
    inputs = {name: tensor.cuda() for name, tensor in cut_inputs(rows).items()}
    log_probs = model(**inputs, packed=packed, fused_lm_head=True).log_probs[inputs["labels"][:, 1:] != -100]
    torch.testing.assert_close(log_probs.cpu(), expected, rtol=0, atol=2e-3)  # matrix products in TF32 or so
    log_probs.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_a_token_that_a_completion_does_not_build_on_does_not_move_it():
    model = tiny("Llama")
    share_prefix(model)
    rows = Rows([P + [5, 6, 7], P + [8, 9, 10]], [20, 20])
    other = Rows([P + [5, 6, 7], P + [11, 12, 13]], [20, 20])
    first, second = (logps(model, batch, pack(model, batch)) for batch in (rows, other))
    assert torch.equal(first[:3], second[:3]) and not torch.isclose(first[3:], second[3:]).any()


def test_without_packed_rows_the_model_is_what_it_was_and_patching_twice_changes_nothing():
    model, rows = tiny("Qwen3"), ragged_pairs()
    expected = logps(model, rows)
    share_prefix(model)
    forward = model.base_model.forward
    share_prefix(model)
    assert model.base_model.forward == forward
    assert torch.equal(logps(model, rows), expected)
    assert torch.equal(model(torch.tensor([P]), use_cache=True).logits, model(torch.tensor([P])).logits)
    assert model.generate(torch.tensor([P]), max_new_tokens=3, do_sample=False).shape == (1, 23)


def test_half_precision_differs_by_its_rounding_alone():
    model, rows = tiny("Qwen3"), ragged_pairs()
    exact = logps(model, rows)
    model.bfloat16()
    whole = logps(model, rows).float()
    share_prefix(model)
    shared = logps(model, rows, pack(model, rows)).float()
    error = (whole - exact).square().mean().sqrt()
    assert 0 < (shared - exact).square().mean().sqrt() < 1.5 * error


def test_a_model_that_computes_with_its_mask_is_told_apart():
    packed = pack_rows([P + [1], P + [2]], [0, 0], width=1)
    assert packed is not None
    with pytest.raises(ValueError, match="the model computes with its attention mask"):
        PathMask(packed) + 0.0
