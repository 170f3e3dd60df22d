"""How well a model predicts texts: what a training should leave as it is, or what it is for.

The scores are those of each text, since a mean over the tokens of all texts is that of the longest ones.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from alignkit.evaluation.metrics.perplexity import text_likelihoods
from alignkit.evaluation.suites.data import Source, data_file, read_rows, take
from alignkit.evaluation.suites.outcome import outcome_of
from alignkit.evaluation.suites.suite import Subject, SuiteOutcome

SOURCE = Source("tinystories_1000", "tinystories_1000.json")


@dataclass(frozen=True)
class Perplexity:
    """Negative log-likelihood of texts; perplexity is exp of it.

    Args:
        data: a folder of `.txt` files, one text each; a `.txt` file; a file of rows with `text`; or a JSON list of
            texts. None: `$ALIGNKIT_DATA/tinystories_1000/tinystories_1000.json`.
        limit: that many texts, the same for every model.
        max_characters: texts are cut to so many; None: not at all.
        role: `"general"` where training should leave these texts as they are, `"task"` where it is for them.
    """

    data: Path | None = None
    limit: int | None = None
    max_characters: int | None = None
    role: Literal["task", "general"] = "general"
    name: ClassVar[str] = "perplexity"

    def __post_init__(self) -> None:
        if self.max_characters is not None and self.max_characters < 1:
            raise ValueError(f"max_characters={self.max_characters} must be at least 1, or None to cut nothing")

    def run(self, subject: Subject) -> SuiteOutcome:
        """Score every text. Nothing is generated; the prompt of an answer is the text.

        Metrics: `nll`, nats per token, comparable between models of one tokenizer; `bits_per_byte`, the whole text's
        negative log-likelihood over ln 2 and its bytes in UTF-8, comparable between all.
        """
        texts = take(self._texts(), self.limit)
        cut = [text[: self.max_characters] for _, text in texts]
        found = text_likelihoods(cut, subject.token_nlls(cut))
        scores = {"nll": found.item_nats_per_token(), "bits_per_byte": found.item_bits_per_byte()}
        return outcome_of(
            self.name,
            [item for item, _ in texts],
            cut,
            [""] * len(cut),
            scores,
            notes=[{"tokens": n} for n in found.n_tokens],
            role=self.role,
            units={"nll": "nats", "bits_per_byte": "bits"},
            lower_is_better=("nll", "bits_per_byte"),
        )

    def _texts(self) -> list[tuple[str, str]]:
        """(id, text) of all texts that are not blank."""
        if self.data is not None and self.data.is_dir():
            files = sorted(self.data.glob("*.txt"))
            if not files:
                raise FileNotFoundError(f"{self.data} has no .txt files; give a folder of texts, or one file")
            texts = [(file.stem, file.read_text(encoding="utf-8")) for file in files]
        else:
            path = data_file(self.data, SOURCE)
            assert path is not None  # the source is not on the hub
            texts = _of_file(path)
        return [(item, text) for item, text in texts if text.strip()]


def _of_file(path: Path) -> list[tuple[str, str]]:
    if path.suffix == ".txt":
        try:
            return [(path.stem, path.read_text(encoding="utf-8"))]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 at byte {error.start}; convert it") from error
    if path.suffix == ".json":
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            return [(f"{path.stem}-{number}", text) for number, text in enumerate(values)]
    rows = read_rows(path, {"text": str})
    return [(f"{path.stem}-{number}", row["text"]) for number, row in enumerate(rows)]
