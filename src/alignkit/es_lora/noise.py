"""Noise of a population's members: a function of (seed, step, member, name), and of nothing else.

Every float32 normal is computed from a counter and a key, so that any part of any tensor can be drawn alone, again,
and anywhere. Uniform words are Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3");
normals are Box and Muller's (1958).

How this differs from `torch.randn` with a seeded generator, and why:

1. The order of calls, the split into slices and the number of processes cannot change a value: there is no state.
2. Words are equal on every device. `torch.randn` gives other numbers on a GPU than on a CPU.
3. The key is a hash of all four fields, so no two tensors, members or steps share a stream. A seed such as
   `1000 * step + member`, used again for every tensor, correlates them.
4. Logarithm, sine and cosine are taken in float64 and rounded once. Two devices or instruction sets then agree but for
   that rounding, and a slice equals its part of the whole however the vector unit cuts it.
"""

import hashlib
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TILE = 1024  # normals that are drawn together: 512 pairs, first all cosines, then all sines; contiguous, unlike pairs
_BLOCKS_PER_TILE = TILE // 8  # a block is four words of 64 bits, each of them two uniforms
_TILES_PER_CHUNK = {"cpu": 32, "cuda": 16384}  # what fits a CPU's second-level cache; what fills a GPU

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_LOW_32 = 0xFFFFFFFF


class Span(NamedTuple):
    """Consecutive tiles of one stream."""

    key: int
    first_tile: int
    n_tiles: int


def member_noise(
    seed: int, step: int, member: int, name: str, shape: Sequence[int], device: str | torch.device = "cpu"
) -> Tensor:
    r"""Standard normal noise of one tensor of one member.

    Element i of the flattened tensor is, with tile t = ⌊i / 1024⌋ and j = i mod 512,

        √(−2 ln u) cos θ  where i mod 1024 < 512, else  √(−2 ln u) sin θ
        u = (w_{1024 t + j} + 1/2) / 2³²,  θ = π s_{1024 t + 512 + j} / 2³¹

    w being 32-bit words of the stream (2³¹ is added to s, the word read with a sign), so |element| <= 6.77. The key of
    the stream is a 128-bit hash of the four fields.

    Args:
        seed, step, member (`int`): any whole numbers.
        name (`str`): of the tensor. Tensors of different names are independent.
        shape (`Sequence[int]`): of the result. A prefix of a longer tensor's flat noise is the shorter one's.
        device: where to draw it. Words are the same everywhere; normals are bit-identical on one type of device and
            one version of torch, and within 3e-7 · |element| elsewhere.

    Returns:
        `Tensor`, `shape`, float32.

    Raises:
        TypeError: a seed, step or member that is not a whole number.
    """
    return member_noises(seed, step, member, {name: shape}, device)[name]


def member_noises(
    seed: int, step: int, member: int, shapes: Mapping[str, Sequence[int]], device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """[`member_noise`] of many tensors, drawn together: small tensors then cost no call each.

    Args:
        shapes (`Mapping[str, Sequence[int]]`): shape of each tensor, by name.

    Returns:
        `dict[str, Tensor]`: in the order of `shapes`; parts of one buffer.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    spans = [Span(_key(seed, step, member, name), 0, -(-size // TILE)) for name, size in sizes.items()]
    parts = _normals(spans, device).split([span.n_tiles * TILE for span in spans])
    return {name: part[: sizes[name]].view(tuple(shapes[name])) for name, part in zip(shapes, parts, strict=True)}


def noise_slice(
    seed: int, step: int, member: int, name: str, start: int, count: int, device: str | torch.device = "cpu"
) -> Tensor:
    """Elements start to start + count of [`member_noise`]'s flattened tensor, without the rest: `(count,)`.

    Raises:
        ValueError: a start or count below 0.
    """
    if start < 0 or count < 0:
        raise ValueError(f"start is {start} and count {count}; give whole numbers from 0")
    first = start // TILE
    span = Span(_key(seed, step, member, name), first, -(-(start + count) // TILE) - first if count else 0)
    return _normals([span], device)[start - first * TILE :][:count]


def antithetic_member(member: int) -> tuple[int, int]:
    """The member whose noise this one uses, and its sign: 2k -> (k, +1), 2k + 1 -> (k, -1)."""
    return member // 2, 1 - 2 * (member % 2)


def keyed_words(*fields: int | str, count: int) -> npt.NDArray[np.uint64]:
    """The first `count` words of 64 random bits of the stream of these fields: the same on any machine."""
    return np.random.Philox(key=_key(*fields), counter=0).random_raw(count)


def philox4x64(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox4x64-10 in tensor operations, for devices on which NumPy's does not run.

    Unsigned numbers are held in int64, where addition and multiplication wrap around as theirs do.

    Args:
        counter (4 × `(n,)` int64), key (2 × `(n,)` int64): words, least significant first.

    Returns:
        4 × `(n,)` int64, the block of each counter.
    """
    a, b, c, d = counter
    key_a, key_b = key
    for _ in range(_ROUNDS):
        high_a, low_a = _multiply(a, _MULTIPLIERS[0])
        high_c, low_c = _multiply(c, _MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ key_a, low_c, high_a ^ d ^ key_b, low_a
        key_a, key_b = key_a + _signed(_WEYL[0]), key_b + _signed(_WEYL[1])
    return [a, b, c, d]


def _multiply(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Upper and lower 64 bits of the product of unsigned numbers, by halves of 32 bits."""
    x_low, x_high = x & _LOW_32, (x >> 32) & _LOW_32
    factor_low, factor_high = factor & _LOW_32, factor >> 32
    carry = (x_low * factor_low >> 32) & _LOW_32
    first = x_high * factor_low + carry
    second = x_low * factor_high + (first & _LOW_32)
    high = x_high * factor_high + ((first >> 32) & _LOW_32) + ((second >> 32) & _LOW_32)
    return high, x * _signed(factor)


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned word."""
    return word - (word >> 63 << 64)


def _key(*fields: int | str) -> int:
    """128 bits that no other fields share; what is not a whole number or a name is refused, not rounded."""
    texts = [field if isinstance(field, str) else str(operator.index(field)) for field in fields]
    return int.from_bytes(hashlib.blake2b("\0".join(texts).encode(), digest_size=16).digest(), "little")


def _normals(spans: Sequence[Span], device: str | torch.device) -> Tensor:
    """Normals of all tiles of all spans, one after another, flat."""
    device = torch.device(device)
    kind = "cuda" if device.type == "cuda" else "cpu"
    drawn_on = device if kind == "cuda" else torch.device("cpu")
    normals = torch.empty(sum(span.n_tiles for span in spans), 2, TILE // 2, device=drawn_on)
    start = 0
    for chunk in _chunks(spans, _TILES_PER_CHUNK[kind]):
        words = words_on_device(chunk, drawn_on) if kind == "cuda" else words_by_numpy(chunk)
        words = words.view(-1, 2, TILE // 2)
        radius = words[:, 0].double().add_(2.0**31 + 0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = words[:, 1].double().mul_(math.pi * 2.0**-31)
        part = normals[start : start + len(words)]
        part[:, 0] = angle.cos().mul_(radius)
        part[:, 1] = angle.sin_().mul_(radius)
        start += len(words)
    return normals.flatten().to(device)


def _chunks(spans: Sequence[Span], n_tiles: int) -> Iterator[list[Span]]:
    """The spans, cut and packed into lists of `n_tiles` tiles."""
    chunk: list[Span] = []
    room = n_tiles
    for key, first, left in spans:
        while left:
            taken = min(left, room)
            chunk.append(Span(key, first, taken))
            first, left, room = first + taken, left - taken, room - taken
            if not room:
                yield chunk
                chunk, room = [], n_tiles
    if chunk:
        yield chunk


def words_by_numpy(spans: Sequence[Span]) -> Tensor:
    """32-bit words of the spans' tiles, `(tiles · 1024,)` int32."""
    generator = np.random.Philox(key=0)  # one for all spans, because to make one costs more than its words
    state: Any = generator.state
    parts = []
    for key, first, n_tiles in spans:
        state["state"]["key"][:] = key & (2**64 - 1), key >> 64
        state["state"]["counter"][0] = first * _BLOCKS_PER_TILE
        generator.state = state
        parts.append(generator.random_raw(n_tiles * TILE // 2))
    return torch.from_numpy(np.concatenate(parts).view(np.int32))


def words_on_device(spans: Sequence[Span], device: torch.device) -> Tensor:
    """[`words_by_numpy`] from tensor operations."""
    total = sum(n_tiles for _, _, n_tiles in spans) * _BLOCKS_PER_TILE
    # NumPy adds 1 to the counter before its first block.
    streams = [
        (
            _signed(key & (2**64 - 1)),
            _signed(key >> 64),
            first * _BLOCKS_PER_TILE + 1,
            n_tiles * _BLOCKS_PER_TILE,
        )
        for key, first, n_tiles in spans
    ]
    on_device = torch.tensor(streams, device=device)  # one copy, because each is waited for
    blocks = on_device[:, 3]
    starts = on_device[:, :3].repeat_interleave(blocks, dim=0, output_size=total)
    within = torch.arange(total, device=device) - (blocks.cumsum(0) - blocks).repeat_interleave(
        blocks, output_size=total
    )
    zeros = torch.zeros_like(within)
    block = philox4x64([starts[:, 2] + within, zeros, zeros, zeros], [starts[:, 0], starts[:, 1]])
    return torch.stack(block, dim=1).flatten().view(torch.int32)
