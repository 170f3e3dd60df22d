"""Inputs of the head, small enough for float64 and for tiles of a few entries."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alignkit.fused_head import tiles


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 3 rows and 4 columns, so that tiny inputs have borders between tiles, and tiles that are not full."""
    monkeypatch.setattr(tiles, "CACHE_TILE", tiles.TileShape(3, 4))


@pytest.fixture
def inputs() -> Callable[..., dict[str, Any]]:
    """A function that draws the arguments of the head; only what is to be trained requires a gradient."""
    return draw_inputs


def draw_inputs(
    n: int = 5,
    v: int = 10,
    h: int = 3,
    ref_h: int | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    has_bias: bool = False,
    trains_head: bool = False,
    drift: float = 0.5,
) -> dict[str, Any]:
    """The reference's hidden states lie `drift` from the policy's; a width `ref_h` asks for a head of its own."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    hidden = draw(n, h)
    weight = draw(v, h)
    ref_hidden = hidden + drift * draw(n, h) if ref_h is None else draw(n, ref_h)
    bias = draw(v) if has_bias else None
    if bias is not None:
        bias.requires_grad_(trains_head)
    return {
        "policy_hidden": hidden.requires_grad_(),
        "ref_hidden": ref_hidden,
        "policy_weight": weight.requires_grad_(trains_head),
        "ref_weight": None if ref_h is None else draw(v, ref_h),
        "labels": torch.randint(v, (n,), generator=generator),
        "bias": bias,
        "ref_bias": draw(v) if has_bias and ref_h is not None else None,
    }
