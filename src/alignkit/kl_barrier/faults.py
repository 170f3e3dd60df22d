"""A divergence that is no number is an error that names its tokens."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alignkit.kl_barrier.sequences import IGNORED_LABEL
from alignkit.reliability.not_finite import NonFiniteError

SHOWN_POSITIONS = 5
SHOWN_TOKENS = 10


class NonFiniteDivergenceError(NonFiniteError):
    """KL is NaN or infinite at some position."""


class StepDivergences:
    """The divergences of an optimiser step, which are looked at when its loss is known to be bad, and not before.

    Args:
        tokenizer: to show the text.
        at_once: look at each micro-batch, where a backward is also the optimiser's step. Waits for the device.
    """

    def __init__(self, tokenizer: Any, *, at_once: bool):
        self._tokenizer = tokenizer
        self._at_once = at_once
        self.begin(0)

    def begin(self, step: int) -> None:
        """A step begins; `step` is its number."""
        self._step = step
        self._kept: list[tuple[Tensor, Mapping[str, Any]]] = []

    def keep(self, kl: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Keep those of a micro-batch; gives a 0 for its loss that is NaN if one of them is NaN or infinite.

        Raises:
            NonFiniteDivergenceError: one is, with `at_once`.
        """
        self._kept.append((kl.detach(), batch))
        if self._at_once:
            self.check()
        return (kl.detach() * 0).sum()

    def check(self, found: str = "") -> None:
        """Look at all that were kept.

        Args:
            found: what is known to be bad, to begin the message with; else the step.

        Raises:
            NonFiniteDivergenceError: of the first micro-batch with a bad one.
        """
        for kl, batch in self._kept:
            check_finite(kl, batch, self._tokenizer, found=found or f"step {self._step}")


def check_finite(kl: Tensor, batch: Mapping[str, Any], tokenizer: Any, *, found: str) -> None:
    """Raise where a divergence is NaN or infinite. Waits for the device.

    Args:
        kl (`(N,)`): divergences of the labelled positions, in row-major order.
        batch: `input_ids` and `labels` (B, T).
        tokenizer: to show the text.
        found: the beginning of the message, with the number of the optimiser step.

    Raises:
        NonFiniteDivergenceError: with up to five positions: row, column, token and the text before it.
    """
    is_bad = ~torch.isfinite(kl)
    if not is_bad.any():
        return
    labels = batch["labels"]
    rows, columns = (labels[:, 1:] != IGNORED_LABEL).nonzero(as_tuple=True)
    decode = getattr(tokenizer, "tokenizer", tokenizer).decode  # a processor holds its tokenizer
    lines = []
    for value, row, column in zip(
        kl[is_bad][:SHOWN_POSITIONS].tolist(), rows[is_bad].tolist(), columns[is_bad].tolist(), strict=False
    ):
        before = batch["input_ids"][row, max(0, column + 1 - SHOWN_TOKENS) : column + 1].tolist()
        token = labels[row, column + 1].item()
        lines.append(
            f"  row {row}, position {column + 1}: KL is {value} at {decode([token])!r} (token {token}) "
            f"after {decode(before)!r}"
        )
    raise NonFiniteDivergenceError(
        f"{found}: KL is not finite at {int(is_bad.sum())} of {len(kl)} positions. In float16 this is mostly an "
        "overflow (train in bfloat16 or float32); else the policy or the reference has broken weights.\n"
        + "\n".join(lines)
    )
