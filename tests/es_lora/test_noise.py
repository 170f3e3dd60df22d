"""Noise of members: the words against published answers, the normals against the distribution, and keys."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from alignkit.es_lora import antithetic_member, member_noise, member_noises, noise_slice
from alignkit.es_lora.noise import TILE, Span, keyed_words, philox4x64, words_by_numpy, words_on_device

CPU = torch.device("cpu")
N = 2**18


def words(text: str) -> list[torch.Tensor]:
    """Hexadecimal words of 64 bits as int64 tensors of one element."""
    unsigned = np.array([int(word, 16) for word in text.split()], dtype=np.uint64)
    return [torch.tensor([value]) for value in unsigned.view(np.int64).tolist()]


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([x.flatten(), y.flatten()]).double())[0, 1].item()


# ---- Words ----


@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [
        ("0 0 0 0", "0 0", "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
        (
            " ".join(["ffffffffffffffff"] * 4),
            " ".join(["ffffffffffffffff"] * 2),
            "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
        ),
        (
            "243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89",
            "452821e638d01377 be5466cf34e90c6c",
            "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_the_blocks_are_the_known_answers_of_random123(counter, key, block):
    assert philox4x64(words(counter), words(key)) == words(block)


@given(
    st.lists(st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 2**40), st.integers(1, 3)), min_size=1, max_size=4)
)
@example([(2**128 - 1, 3, 2), (2**127 + 2**63 + 9, 2**40, 1)])  # keys of few bits are what is drawn most often
@settings(max_examples=25, deadline=None)
def test_tensor_operations_give_the_words_of_numpy(spans):
    spans = [Span(*span) for span in spans]
    assert torch.equal(words_on_device(spans, CPU), words_by_numpy(spans))


def test_words_are_drawn_on_their_device_without_reading_a_value_from_it():
    words = words_on_device([Span(5, 0, 3), Span(2**127, 11, 2)], torch.device("meta"))  # which has no values
    assert (words.device.type, tuple(words.shape), words.dtype) == ("meta", (5 * TILE,), torch.int32)


def test_noise_lies_on_the_device_that_is_asked_for():
    assert member_noise(0, 0, 0, "w", (3,), "meta").device.type == "meta"


def test_the_bytes_of_the_words_are_uniform():
    counts = np.bincount(keyed_words("uniform", 0, count=N).view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4


# ---- Normals ----


def test_the_normals_are_the_formula_applied_to_the_words():
    noise = member_noise(1, 2, 3, "w", (2 * TILE,)).double().numpy()
    word = keyed_words(1, 2, 3, "w", count=TILE).view(np.uint32).astype(np.float64).reshape(2, 2, TILE // 2)
    radius = np.sqrt(-2 * np.log((word[:, 0] + 0.5 + 2.0**31) % 2.0**32 / 2.0**32))
    angle = np.pi * (word[:, 1] - 2.0**32 * (word[:, 1] >= 2.0**31)) / 2.0**31
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).flatten()
    np.testing.assert_allclose(noise, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_normals_are_standard_normal(seed):
    noise = member_noise(seed, 5, 2, "w", (N,)).double().numpy()
    assert stats.kstest(noise, "norm").pvalue > 1e-4
    assert stats.kstest(np.abs(noise), "halfnorm").pvalue > 1e-4
    assert abs(noise.mean()) < 4 / math.sqrt(N)
    assert abs(noise.var() - 1) < 4 * math.sqrt(2 / N)
    assert abs((noise**4).mean() - 3) < 4 * math.sqrt(96 / N)


def test_the_tails_are_as_heavy_as_they_should_be():
    n = 2**22
    noise = member_noise(0, 0, 0, "w", (n,)).abs()
    assert noise.max() < 6.77
    for z in (3.0, 4.0, 4.5):
        expected = n * 2 * stats.norm.sf(z)
        assert abs((noise > z).sum().item() - expected) < 4 * math.sqrt(expected)


def test_the_two_halves_of_a_pair_are_independent():
    cosine, sine = member_noise(0, 0, 0, "w", (N,)).view(-1, 2, TILE // 2).unbind(1)
    bound = 4 / math.sqrt(N / 2)
    assert abs(correlation(cosine, sine)) < bound
    assert abs(correlation(cosine**2, sine**2)) < bound


def test_extreme_words_give_finite_normals(monkeypatch):
    extremes = torch.tensor([-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 1], dtype=torch.int32)
    radius, angle = torch.cartesian_prod(extremes, extremes).T
    tile = torch.zeros(2, TILE // 2, dtype=torch.int32)
    tile[0, : len(radius)], tile[1, : len(angle)] = radius, angle
    monkeypatch.setattr("alignkit.es_lora.noise.words_by_numpy", lambda spans: tile.flatten())
    noise = member_noise(0, 0, 0, "w", (TILE,))
    assert noise.isfinite().all()
    assert noise.abs().max() == pytest.approx(math.sqrt(2 * 33 * math.log(2)), rel=1e-6)


# ---- Keys ----


def test_no_two_tensors_members_steps_or_seeds_are_correlated():
    fields = [
        (0, 0, 0, "a"),
        (0, 0, 0, "b"),
        (0, 0, 1, "a"),
        (0, 1, 0, "a"),
        (1, 0, 0, "a"),
        (0, 1, 1, "a"),
        (1, 1, 0, "b"),
    ]
    noises = torch.stack([member_noise(*each, (N,)) for each in fields])
    off_diagonal = torch.corrcoef(noises.double()) - torch.eye(len(fields))
    assert off_diagonal.abs().max() < 4 / math.sqrt(N)


def test_members_far_apart_do_not_meet_in_another_step():
    # With a seed such as 1000 * step + member, member 1000 of step 0 would be member 0 of step 1.
    assert not torch.equal(member_noise(0, 0, 1000, "w", (8,)), member_noise(0, 1, 0, "w", (8,)))
    assert not torch.equal(member_noise(1, 11, 1, "w", (8,)), member_noise(11, 1, 1, "w", (8,)))


@pytest.mark.parametrize("fields", [(0.5, 0, 0), (0, 1.0, 0), (0, 0, None)])
def test_a_key_that_is_not_a_whole_number_is_refused(fields):
    with pytest.raises(TypeError):
        member_noise(*fields, "w", (2,))


def test_whole_numbers_of_numpy_and_negative_ones_are_keys():
    assert torch.equal(member_noise(np.int64(3), 0, 0, "w", (4,)), member_noise(3, 0, 0, "w", (4,)))
    assert not torch.equal(member_noise(-3, 0, 0, "w", (4,)), member_noise(3, 0, 0, "w", (4,)))


# ---- Order, slices, chunks ----


@given(st.integers(0, 90_000), st.integers(0, 5_000))
@settings(max_examples=40, deadline=None)
def test_a_slice_drawn_alone_equals_the_slice_of_the_whole(start, count):
    whole = member_noise(7, 1, 4, "w", (100_000,))
    assert torch.equal(noise_slice(7, 1, 4, "w", start, count), whole[start : start + count])


def test_a_negative_slice_is_refused():
    with pytest.raises(ValueError, match="start is -1"):
        noise_slice(0, 0, 0, "w", -1, 4)


def test_the_shape_and_the_other_tensors_do_not_change_a_value():
    shapes = {"a": (3, 5), "b": (70, 1000), "scalar": (), "none": (0, 4), "c": (TILE,)}
    together = member_noises(2, 3, 4, shapes)
    assert [*together] == [*shapes]
    for name, shape in shapes.items():
        alone = member_noise(2, 3, 4, name, shape)
        assert together[name].shape == alone.shape == torch.Size(shape)
        assert torch.equal(together[name], alone)
    assert torch.equal(together["b"].flatten()[:500], member_noise(2, 3, 4, "b", (500,)))


def test_chunks_do_not_change_a_bit(monkeypatch):
    whole = member_noise(0, 1, 2, "w", (300, 401))
    drawn = []
    monkeypatch.setattr("alignkit.es_lora.noise._TILES_PER_CHUNK", {"cpu": 3, "cuda": 3})
    monkeypatch.setattr(
        "alignkit.es_lora.noise.words_by_numpy", lambda spans: drawn.append(spans) or words_by_numpy(spans)
    )
    assert torch.equal(member_noise(0, 1, 2, "w", (300, 401)), whole)
    assert [sum(span.n_tiles for span in spans) for spans in drawn] == [3] * 39 + [1]  # 117.5 tiles


def test_threads_do_not_change_a_bit():
    whole = member_noise(0, 1, 2, "w", (300, 401))
    torch.set_num_threads(2)
    try:
        assert torch.equal(member_noise(0, 1, 2, "w", (300, 401)), whole)
    finally:
        torch.set_num_threads(1)


def test_global_random_state_is_neither_read_nor_changed():
    first = member_noise(0, 0, 0, "w", (64,))
    torch.manual_seed(1)
    np.random.seed(1)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert torch.equal(member_noise(0, 0, 0, "w", (64,)), first)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_the_first_normals_are_the_ones_of_every_release():
    # A checkpoint is resumed with the noise of the version that wrote it, so these may never change.
    expected = torch.tensor([0.53757972, 0.34436771, 0.15878533, -0.36691263])
    torch.testing.assert_close(member_noise(0, 0, 0, "weight", (4,)), expected, rtol=0, atol=1e-6)


def test_members_of_a_pair_share_the_noise_with_opposite_signs():
    assert [antithetic_member(member) for member in range(5)] == [(0, 1), (0, -1), (1, 1), (1, -1), (2, 1)]


@pytest.mark.gpu
def test_a_gpu_draws_the_same_words_and_the_same_normals_but_for_rounding():
    spans = [Span(5, 0, 3), Span(2**127 + 9, 11, 2)]
    device = torch.device("cuda")
    assert torch.equal(words_on_device(spans, device).cpu(), words_by_numpy(spans))
    there, here = member_noise(0, 1, 2, "w", (N,), device), member_noise(0, 1, 2, "w", (N,))
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), here, rtol=3e-7, atol=1e-12)
    assert torch.equal(noise_slice(0, 1, 2, "w", 1000, 5000, device), there[1000:6000])
