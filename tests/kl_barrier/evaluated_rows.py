"""Texts with made-up statistics of their labelled tokens, and the two ways a batch of them is laid out."""

from types import SimpleNamespace

import torch

from alignkit.kl_barrier.evaluation_report import DIRECTIONS
from alignkit.tasks.toy import byte_tokenizer

TOKENIZER = byte_tokenizer()


class Row:
    """A text whose last tokens are labelled, and statistics of these that depend on the text alone."""

    def __init__(self, text: str, n_prompt: int, **changes: float):
        self.ids = TOKENIZER(text)["input_ids"]
        self.labels = [-100] * n_prompt + self.ids[n_prompt:]
        n = sum(label != -100 for label in self.labels[1:])
        generator = torch.Generator().manual_seed(sum(self.ids))
        names = ("log_probs", "entropy", *DIRECTIONS)
        self.statistics = {name: torch.randn(n, generator=generator).exp() for name in names}
        self.statistics["log_probs"].neg_()
        self.statistics["is_top1"] = torch.rand(n, generator=generator) < 0.5
        for place, value in changes.items():
            self.statistics["reverse_kl"][int(place.removeprefix("at"))] = value


def padded(rows: list[Row]) -> tuple[SimpleNamespace, dict[str, torch.Tensor]]:
    width = max(len(row.ids) for row in rows)

    def pad(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (width - len(values))

    batch = {
        "input_ids": torch.tensor([pad(row.ids, TOKENIZER.pad_token_id) for row in rows]),
        "labels": torch.tensor([pad(row.labels, -100) for row in rows]),
        "attention_mask": torch.tensor([pad([1] * len(row.ids), 0) for row in rows]),
    }
    return statistics_of(rows), batch


def padding_free(rows: list[Row]) -> tuple[SimpleNamespace, dict[str, torch.Tensor]]:
    """All rows in one, as TRL's collator lays them out."""
    lengths = [len(row.ids) for row in rows]
    batch = {
        "input_ids": torch.tensor([[token for row in rows for token in row.ids]]),
        "labels": torch.tensor([[label for row in rows for label in [-100, *row.labels[1:]]]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": torch.tensor([0, *lengths]).cumsum(0).int(),
    }
    return statistics_of(rows), batch


def statistics_of(rows: list[Row]) -> SimpleNamespace:
    return SimpleNamespace(**{name: torch.cat([row.statistics[name] for row in rows]) for name in rows[0].statistics})


def some_rows() -> list[Row]:
    texts = ["Sold: flour.", "Received tea, two crates.", "Paid.", "Rope and lamp oil; due at Tarn.", "Beans, barley"]
    return [Row(text, n_prompt) for text, n_prompt in zip(texts, (3, 0, 5, 9, 4), strict=True)]
