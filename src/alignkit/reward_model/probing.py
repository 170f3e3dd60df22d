"""What every head says at every token of one text, from one forward.

The score at position t is the score that the text would have if it stopped there, without an EOS of its own. Only the
last one is the text's reward; the others show where it came from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignkit.reward_model.data import encode_text
from alignkit.reward_model.modeling import head_names, token_scores
from alignkit.reward_model.rows import Text

if TYPE_CHECKING:
    from rich.table import Table

BLOCKS = "▁▂▃▄▅▆▇█"
UNFINISHED = "⋯"
LONGEST_CHARACTER = 4  # bytes of UTF-8


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """Scores of every head at every token.

    Args:
        tokens (`list[str]`): readable tokens: `␣` is a space, other blanks and control characters are escaped, and `⋯`
            is a piece of a character that a later token completes.
        token_ids (`list[int]`): what the model read.
        scores (`Tensor`, `(T, K)`): float32, on the CPU.
        head_names (`list[str]`): names of the K columns.
    """

    tokens: list[str]
    token_ids: list[int]
    scores: Tensor
    head_names: list[str]

    def points(self, n: int) -> list[int]:
        """`n` evenly spaced positions with the first and the last, all T if there are fewer; the last alone for n = 1.

        Raises:
            ValueError: n < 1.
        """
        if n < 1:
            raise ValueError(f"the number of points is {n}; ask for at least 1")
        last = len(self.tokens) - 1
        if n == 1:
            return [last]
        steps = min(n - 1, last)
        return [(2 * i * last + steps) // (2 * steps) for i in range(steps + 1)] if steps else [0]

    def summary(self) -> dict[str, dict[str, float]]:
        """Per head `first`, `last` (the reward), `change` = last - first, `min`, `max` and `mean` over the tokens."""
        summary = {}
        for name, column in zip(self.head_names, self.scores.double().T, strict=True):
            first, last = column[0].item(), column[-1].item()
            spread = {"min": column.min().item(), "max": column.max().item(), "mean": column.mean().item()}
            summary[name] = {"first": first, "last": last, "change": last - first, **spread}
        return summary

    def sparkline(self, head: str, width: int = 80) -> str:
        """One line: the scores at `points(width)` as blocks of eight heights from min to max, then `[min to max]`.

        Raises:
            ValueError: an unknown head.
        """
        column = self._column(head)
        low, high = column.min().item(), column.max().item()
        heights = [
            (value - low) / (high - low) if high > low else 0.5 for value in column[self.points(width)].tolist()
        ]
        blocks = "".join(BLOCKS[min(int(height * len(BLOCKS)), len(BLOCKS) - 1)] for height in heights)
        return f"{blocks} [{low:.3g} to {high:.3g}]"

    def table(self, n_points: int = 20) -> "Table":
        """A row for each of `points(n_points)`: position, token, and the score of every head."""
        from rich.table import Table
        from rich.text import Text

        table = Table()
        table.add_column("position", justify="right")
        table.add_column("token", no_wrap=True)
        for name in self.head_names:
            table.add_column(Text(name), justify="right", no_wrap=True)
        for position in self.points(n_points):
            scores = [f"{score:.3f}" for score in self.scores[position].tolist()]
            table.add_row(str(position), Text(self.tokens[position]), *scores)
        return table

    def to_json(self) -> dict:
        """All tokens, ids and scores, and the summary, as lists, strings and numbers."""
        columns = dict(zip(self.head_names, self.scores.T.tolist(), strict=True))
        return {
            "n_tokens": len(self.tokens),
            "head_names": self.head_names,
            "tokens": self.tokens,
            "token_ids": self.token_ids,
            "scores": columns,
            "summary": self.summary(),
        }

    def heatmap(self, path: str | PathLike[str]) -> None:
        """Write a picture of all scores, tokens by heads; the format is that of the suffix, such as `.png`."""
        from alignkit.reward_model.plots import save_heatmap

        save_heatmap(path, self.tokens, self.head_names, self.scores.double().numpy())

    def _column(self, head: str) -> Tensor:
        if head not in self.head_names:
            raise ValueError(f"there is no head {head!r}; the heads are {self.head_names}")
        return self.scores[:, self.head_names.index(head)].double()


@torch.no_grad()
def probe(model: nn.Module, tokenizer: PreTrainedTokenizerBase, text: Text) -> ProbeResult:
    """Score every head at every token of `text` in one forward, with dropout off.

    Args:
        model (`nn.Module`): a `*ForSequenceClassification`, or a `PeftModel` around one.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        text (`str` or chat messages): encoded as in training, so that the last score is the text's reward.

    Raises:
        ValueError: an empty text, or a score that is NaN or infinite.
    """
    if not text:
        raise ValueError("the text is empty; give it at least one character")
    names = head_names(model)  # type: ignore[arg-type]  # a PeftModel passes `config` on
    token_ids = encode_text(tokenizer, text)
    input_ids = torch.tensor([token_ids], device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        scores = token_scores(model, input_ids, torch.ones_like(input_ids))[0].float().cpu()
    finally:
        model.train(was_training)
    broken = (~scores.isfinite()).nonzero()
    if len(broken):
        position, head = broken[0].tolist()
        raise ValueError(
            f"the score of head {names[head]!r} at token {position} is {scores[position, head].item()}; the model "
            "diverged, or its dtype cannot hold the activations: load it in float32 or bfloat16"
        )
    return ProbeResult(list(_readable_tokens(tokenizer, token_ids)), token_ids, scores, names)


def _readable_tokens(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> Iterator[str]:
    """What each token adds to the text. Decoded beside the token before it: alone, many would lose their space."""

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    before, start = 0, 0  # where the tokens shown last begin, and where they end
    for end in range(1, len(token_ids) + 1):
        known = decode(token_ids[before:start])
        text = decode(token_ids[before:end])
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end - start < LONGEST_CHARACTER:
            yield UNFINISHED
            continue
        yield _visible(text[len(known) :]) or str(tokenizer.convert_ids_to_tokens(token_ids[end - 1]))
        before, start = start, end


def _visible(text: str) -> str:
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped).replace(" ", "␣")
