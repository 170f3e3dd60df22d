"""From the user's datasets to encoded ones: rows, negatives, the checks between them, and the report of it all."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from accelerate import PartialState
from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from alignkit.reward_model.data import ENCODED_FEATURES, EncodedStream, RowEncoder, encode_dataset
from alignkit.reward_model.negatives import NegativePool
from alignkit.reward_model.report import count_negatives, count_row, loss_summary, new_report
from alignkit.row_checks import check_token_ids, check_tokens, rows_of

logger = logging.get_logger(__name__)

MAX_EVALUATION_COMPARISONS = 50_000_000  # each takes a few hundred bytes at the peak of the metrics


@dataclass
class DataSettings:
    """What preparing data depends on; the fields are those of [`MultiHeadRewardConfig`]."""

    max_length: int | None
    overflow: Literal["raise", "drop", "truncate_prompt"]
    on_conflict: Literal["raise", "drop"]
    use_margin_magnitude: bool
    tier_weights: dict[str, float]
    dataset_num_proc: int | None
    dataloader_num_workers: int
    stream_retries: int


@dataclass
class DataPreparation:
    """Prepares the splits of one trainer. Negatives are encoded when the first split needs them.

    Attributes:
        report (`dict`): per split, the counts of [`alignkit.reward_model.report`].
        negatives, eval_negatives ([`NegativePool`], *optional*): encoded negatives of training and of evaluation.
    """

    head_names: list[str]
    negatives_dataset: Dataset | None = None
    eval_negatives_dataset: Dataset | None = None
    report: dict[str, dict[str, Any]] = field(default_factory=dict)
    negatives: NegativePool | None = None
    eval_negatives: NegativePool | None = None

    def prepare(
        self,
        dataset: Dataset | IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        settings: DataSettings,
        split: str,
    ) -> Dataset | EncodedStream:
        """Encode a split, unless it is encoded already. An evaluation split gets the negatives as further texts.

        Raises:
            ValueError: a bad row, missing negatives, a head without data, or nothing left; see the message.
        """
        if isinstance(dataset, EncodedStream):
            return dataset
        is_train = split == "train" and split not in self.report
        while split in self.report:  # an evaluation set called "train", or another one passed to `evaluate`
            split = f"{split}_again"
        if not isinstance(dataset, Dataset | IterableDataset):
            raise TypeError(f"{split} is a {type(dataset).__name__}; make it a datasets.Dataset or IterableDataset")
        if "text_key" in (dataset.column_names or ()):
            if is_train:
                raise ValueError("train is encoded already, by another trainer; give this one the rows it was made of")
            return dataset
        encoder = RowEncoder(
            tokenizer, self.head_names, split, settings.max_length, settings.overflow, settings.use_margin_magnitude
        )
        report = self.report[split] = new_report(self.head_names)
        self._encode_negatives(encoder, settings)
        pool = self.negatives if is_train else self.eval_negatives
        if isinstance(dataset, IterableDataset):
            if settings.dataloader_num_workers:
                raise ValueError(
                    f"{split} is a stream and dataloader_num_workers={settings.dataloader_num_workers}: what workers "
                    "drop, trim or find in conflict would not be counted; set it to 0"
                )
            return self._stream(dataset, encoder, settings, report, pool)
        with PartialState().main_process_first():
            encoded = encode_dataset(dataset, encoder, settings.dataset_num_proc)
        member_weights = _member_weights(pool, self.head_names, settings)
        for row in rows_of(encoded.remove_columns(["input_ids", "text_key"])):
            count_row(report, row, self.head_names, member_weights)
        encoded = encoded.filter(lambda dropped: not dropped, input_columns="dropped")
        members = _members(rows_of(encoded.select_columns(["text_key", "member", "member_head"])))
        self._check(split, encoded, members, pool, settings)
        if members and pool is not None:
            pool = pool.without_conflicts(members, on_conflict=settings.on_conflict)
            self.check_members(
                f"{split} has a row that", {head for _, head in members}, pool.heads_met(settings.tier_weights)
            )
            count_negatives(report, pool)
            if is_train:
                self.negatives = pool
            else:
                check_evaluation_size(split, len(members), pool)
                encoded = concatenate_datasets(
                    [encoded, Dataset.from_list(pool.encoded_rows(), features=ENCODED_FEATURES)]
                )
        if summary := loss_summary(report):
            logger.warning(f"{split}: {report['rows']} rows; {summary}")
        return encoded

    def _stream(
        self,
        dataset: IterableDataset,
        encoder: RowEncoder,
        settings: DataSettings,
        report: dict[str, Any],
        pool: NegativePool | None,
    ) -> EncodedStream:
        """A stream that is counted and checked row by row, as it is read."""
        if pool is not None:
            count_negatives(report, pool)
        return EncodedStream(
            dataset,
            encoder,
            retries=settings.stream_retries,
            on_row=_StreamRows(self, encoder.split, settings, report, pool),
            then=pool.encoded_rows() if pool is not None and encoder.split != "train" else (),
        )

    def check_tokens(self, datasets: dict[str, Any], model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse tokens for which the model has no embedding, in encoded data sets and in the negatives.

        Raises:
            ValueError: names the row and the token.
        """
        for split, dataset in datasets.items():
            for name, part in dataset.items() if isinstance(dataset, dict) else [(split, dataset)]:
                check_token_ids(part, ["input_ids"], model, tokenizer, name, numbers="row")
        for pool in filter(None, (self.negatives, self.eval_negatives)):
            for row, ids in zip(pool.rows, pool.input_ids, strict=True):
                check_tokens(ids, model.get_input_embeddings().num_embeddings, tokenizer, f"{pool.name} row {row}")

    def _encode_negatives(self, encoder: RowEncoder, settings: DataSettings) -> None:
        if self.negatives is None and self.negatives_dataset is not None:
            self.negatives = self._encode_pool(self.negatives_dataset, "negatives", encoder, settings)
        if self.eval_negatives is None and encoder.split != "train":
            if self.eval_negatives_dataset is None:
                self.eval_negatives = self.negatives
            else:
                self.eval_negatives = self._encode_pool(
                    self.eval_negatives_dataset, "eval_negatives", encoder, settings
                )

    def _encode_pool(self, dataset: Dataset, name: str, encoder: RowEncoder, settings: DataSettings) -> NegativePool:
        # A negative has no prompt to shorten, so under "truncate_prompt" one that is too long is an error.
        pool = NegativePool.from_dataset(
            dataset, RowEncoder(encoder.tokenizer, self.head_names, name, settings.max_length, settings.overflow)
        )
        weights = settings.tier_weights
        unknown = sorted({*pool.rows_of_tier} - {*weights})
        if unknown:
            raise ValueError(f"{name}: tier {unknown[0]!r} has no weight; add it to tier_weights, which is {weights}")
        missing = [tier for tier, weight in weights.items() if weight > 0 and tier not in pool.rows_of_tier]
        if missing:
            raise ValueError(
                f"{name}: tier {missing[0]!r} has weight {weights[missing[0]]} but no text "
                f"({pool.dropped.get(missing[0], 0)} dropped for their length); add texts of that tier, or leave it "
                "out of tier_weights"
            )
        return pool

    def _check(
        self,
        split: str,
        encoded: Dataset,
        members: list[tuple[int, int]],
        pool: NegativePool | None,
        settings: DataSettings,
    ) -> None:
        report = self.report[split]
        if len(encoded) == 0:
            raise ValueError(
                f"{split}: all {report['rows']} rows were dropped because a text is longer than "
                f"max_length={settings.max_length}; raise max_length, or shorten the texts"
            )
        self.check_members(f"{split} has a row that", {head for _, head in members}, _heads_met(pool, settings))
        if split != "train":
            return
        if pool is not None and not members:
            raise ValueError("`negatives` is given but no row of train has the form (text, head); leave it out")
        for name in self.head_names:
            if not report["weight"][name]:
                raise ValueError(
                    f"head {name!r} has no comparison of weight above 0 in the training data, so it cannot learn; add "
                    f"rows for it, or take it out of head_names {self.head_names}"
                )

    def check_members(self, where: str, heads: Iterable[int], met: set[str] | None) -> None:
        """Raise unless positives of the form (text, head) of these heads have negatives to meet: None without any."""
        for name in [self.head_names[head] for head in heads]:
            if met is None:
                raise ValueError(
                    f"{where} is of the form (text, head), for head {name!r}; such rows need the trainer argument "
                    "`negatives`, a dataset with the columns text, tier and heads"
                )
            if name not in met:
                raise ValueError(
                    f"{where} is a positive of head {name!r}, against which no negative may be used, so it compares "
                    f"nothing; add {name!r} to the 'heads' of some negatives, in a tier of weight above 0"
                )


@dataclass
class _StreamRows:
    """Counts and checks the rows of a stream as they are read: what a `Dataset` has counted and checked beforehand."""

    preparation: DataPreparation
    split: str
    settings: DataSettings
    report: dict[str, Any]
    pool: NegativePool | None
    n_losses: int = 0

    def __post_init__(self):
        self.met = _heads_met(self.pool, self.settings)
        self.member_weights = _member_weights(self.pool, self.preparation.head_names, self.settings)
        self.negative_keys = set() if self.pool is None else {*self.pool.keys}

    def __call__(self, row: dict[str, Any]) -> None:
        if row["row"] < self.report["rows"]:  # a later pass over the stream
            return
        count_row(self.report, row, self.preparation.head_names, self.member_weights)
        lost = row["dropped"] or row["trimmed_tokens"] > 0
        if not row["dropped"]:
            self.preparation.check_members(f"{self.split} row {row['row']}", row["member_head"], self.met)
            lost |= self._drop_conflicts(_members([row]))
        self.n_losses += lost
        if lost and self.n_losses & (self.n_losses - 1) == 0:  # the 1st, 2nd, 4th, ... : a stream may have no end
            logger.warning(f"{self.split}: {self.report['rows']} rows so far; {loss_summary(self.report)}")

    def _drop_conflicts(self, members: list[tuple[int, int]]) -> bool:
        """Take texts that have turned out to be positives out of the negatives; whether there were any."""
        if self.pool is None or not any(key in self.negative_keys for key, _ in members):
            return False
        self.pool = self.pool.without_conflicts(members, on_conflict=self.settings.on_conflict)
        self.met = _heads_met(self.pool, self.settings)
        if self.split == "train":
            self.preparation.negatives = self.pool
        counts = self.report["negatives_in_conflict"]
        for tier, count in self.pool.conflicts.items():
            counts[tier] = counts.get(tier, 0) + count
        return bool(self.pool.conflicts)


def check_evaluation_size(split: str, n_members: int, pool: NegativePool) -> None:
    """Raise a `ValueError` if every positive meeting every negative is more than an evaluation can hold."""
    if n_members * len(pool.keys) > MAX_EVALUATION_COMPARISONS:
        raise ValueError(
            f"{split}: {n_members} positives times {len(pool.keys)} negatives are more comparisons than the "
            f"{MAX_EVALUATION_COMPARISONS} an evaluation holds in memory; evaluate on fewer, with select(range(n))"
        )


def _member_weights(pool: NegativePool | None, head_names: list[str], settings: DataSettings) -> list[float]:
    return [0.0] * len(head_names) if pool is None else pool.member_weights(settings.tier_weights)


def _heads_met(pool: NegativePool | None, settings: DataSettings) -> set[str] | None:
    return None if pool is None else pool.heads_met(settings.tier_weights)


def _members(encoded: Iterable[dict[str, Any]]) -> list[tuple[int, int]]:
    """(text key, head) of every positive of the form (text, head)."""
    return [
        (row["text_key"][text], head)
        for row in encoded
        for text, head in zip(row["member"], row["member_head"], strict=True)
    ]
