"""Draws that several of these tests share: small tensors, texts of every kind, plain data."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

NUMBERS = st.floats(-50, 50, width=32)
SHARES = st.floats(0, 1)
TEXTS = st.text(max_size=40)
WORDS = st.text(alphabet=st.characters(codec="utf-8", categories=["Ll", "Lu", "Nd"]), min_size=1, max_size=8)
SEEDS = st.integers(0, 2**31)
ORDERS = st.randoms(use_true_random=False)


@st.composite
def tensors(draw: st.DrawFn, *shape: int, of: st.SearchStrategy[float] = NUMBERS) -> Tensor:
    """A float64 tensor of that shape."""
    size = math.prod(shape)
    return torch.tensor(draw(st.lists(of, min_size=size, max_size=size)), dtype=torch.float64).view(shape)


def plain_values(*, keys: st.SearchStrategy[str] = TEXTS) -> st.SearchStrategy[dict[str, object]]:
    """Mappings of what JSON and YAML both hold, nested."""
    leaves = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | TEXTS
    inner = st.recursive(
        leaves, lambda part: st.lists(part, max_size=3) | st.dictionaries(keys, part, max_size=3), max_leaves=8
    )
    return st.dictionaries(keys, inner, max_size=4)


def shuffled(items: list, order) -> list:
    """The items in another order."""
    return order.sample(items, len(items))
