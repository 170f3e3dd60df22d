"""A threshold that is measured: what D is in training without a barrier, on the data and on token loops.

tau means something else for every aggregate, scope, model and dataset: a mean of 0.5 nats may be a collapse where a
maximum of 5 is nothing. Two short runs of the real trainer with its gate held shut answer for all five aggregates at
once: one on the data, and one on the same data with every completion turned into a loop of its first four tokens,
which is how a policy that has come loose from its reference ends. tau is then the D that a chosen share of the data
exceeds, and an aggregate is worth its name if loops exceed it far more often.
"""

import copy
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from alignkit.kl_barrier.aggregation import AGGREGATES, Aggregate, aggregate_positions
from alignkit.kl_barrier.barrier import AggregateScope, Barrier
from alignkit.kl_barrier.config import KLBarrierConfig
from alignkit.kl_barrier.evaluation_report import markdown_table
from alignkit.kl_barrier.sequences import IGNORED_LABEL, sequences_of
from alignkit.kl_barrier.trainer import KLBarrierTrainer
from alignkit.metrics import gather_around

FloatArray = npt.NDArray[np.float64]
Measured = dict[Aggregate, FloatArray]
LOOP_TOKENS = 4
CAUGHT_SHARE = 0.5
QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True, eq=False)
class TauCalibration:
    """Result of `calibrate_tau`.

    Attributes:
        normal, loop (`dict`): by aggregate, every D `(n,)` of all steps of training on the data and on token loops,
            also of the first steps, in which no policy has moved far. What one D spans is the scope's: a sequence, a
            micro-batch or a step.
        open_share (`float`): share of `normal` that is to exceed tau.
        aggregate_scope (`str`), kl_direction (`str`): of the configuration; tau holds for these alone.
    """

    normal: Measured
    loop: Measured
    open_share: float
    aggregate_scope: AggregateScope
    kl_direction: str

    @property
    def tau_nats(self) -> dict[Aggregate, float]:
        """By aggregate, the smallest D of training on the data that at most `open_share` of them exceed."""
        return {how: self._tau(how) for how in AGGREGATES}

    def normal_share(self, how: Aggregate) -> float:
        """Share of D above the proposed tau in training on the data: `open_share`, or less where D are equal."""
        return float((self.normal[how] > self._tau(how)).mean())

    def caught_share(self, how: Aggregate) -> float:
        """Share of D above the proposed tau in training on token loops."""
        return float((self.loop[how] > self._tau(how)).mean())

    def separation(self, how: Aggregate) -> float:
        """Median D on token loops over median D on the data."""
        usual = float(np.median(self.normal[how]))
        return float(np.median(self.loop[how])) / usual if usual > 0 else math.nan

    def separates(self, how: Aggregate) -> bool:
        """Whether the proposed tau opens the gate for at least half of the token loops."""
        return self.caught_share(how) >= CAUGHT_SHARE

    def to_markdown(self) -> str:
        """The proposed thresholds with what they catch, and the distributions behind them."""
        proposals = [
            [how, f"{self._tau(how):.4g}", f"{self.separation(how):.3g}", f"{self.normal_share(how):.1%}"]
            + [f"{self.caught_share(how):.1%}", "yes" if self.separates(how) else "**no**"]
            for how in AGGREGATES
        ]
        header = ["aggregate", "tau_nats", "loop / data (medians)", "open on data", "open on loops", "separates"]
        distributions = [
            [how, name, str(len(values[how]))]
            + [f"{value:.4g}" for value in np.quantile(values[how], QUANTILES, method="inverted_cdf")]
            for how in AGGREGATES
            for name, values in (("data", self.normal), ("loops", self.loop))
        ]
        columns = ["aggregate", "trained on", "n", *(f"{q:.0%}" for q in QUANTILES[:-1]), "max"]
        parts = [
            f"tau for {self.kl_direction} KL and the scope {self.aggregate_scope}, such that {self.open_share:.1%} of "
            "D exceed it in training without a barrier; it holds for this model, data and training alone.",
            markdown_table(header, proposals, n_left=1),
        ]
        blind = [how for how in AGGREGATES if not self.separates(how)]
        if blind:
            parts.append(
                f"{', '.join(blind)} cannot tell token loops from the data here: at the proposed tau the gate is open "
                f"for fewer than {CAUGHT_SHARE:.0%} of the loops."
            )
        parts += ["D in nats, over all steps:", markdown_table(columns, distributions, n_left=2)]
        return "\n\n".join(parts) + "\n"

    def _tau(self, how: Aggregate) -> float:
        ordered = np.sort(self.normal[how])
        return float(ordered[len(ordered) - 1 - math.floor(len(ordered) * self.open_share)])


def calibrate_tau(
    model: str | PreTrainedModel | PeftModel,
    dataset: Any,
    *,
    args: KLBarrierConfig,
    processing_class: Any = None,
    peft_config: Any = None,
    ref_model: PreTrainedModel | None = None,
    open_share: float = 0.1,
    max_steps: int | None = None,
) -> TauCalibration:
    r"""Propose `tau_nats` for each aggregate from two trainings on NLL alone.

        tau = the (1 - open_share) quantile of D over all steps of training on the data, per aggregate

    Both trainings are `KLBarrierTrainer`'s with everything in `args` but the barrier: same data order, learning rate
    and reference. For the second one the labelled tokens of every document are its first four of them, over and over.
    They run on copies, one after the other: the weights of `model` are neither changed nor wrapped, and for as long as
    a training lasts there is memory for one more model.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): policy, as for the trainer.
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): training set, as for the trainer.
        args ([`KLBarrierConfig`]): the configuration that will be trained with. `kl_direction`, `aggregate_scope` and
            `ref` decide what D is; `barrier_weight`, `tau_nats`, `aggregate`, their schedules and `target_kl` are not
            read. Nothing is saved, reported or evaluated.
        processing_class, peft_config, ref_model (*optional*): as for the trainer.
        open_share (`float`): share of D that may exceed tau while training on the data, in (0, 1).
        max_steps (`int`, *optional*): optimiser steps of each training. Default: as many as `args` has. With fewer, D
            and tau are smaller.

    Raises:
        ValueError: an `open_share` outside (0, 1), a dataset that is not made of tokens (images), or a policy that
            does not move.
        NonFiniteDivergenceError: the training without a barrier diverges.
    """
    if not 0 < open_share < 1:
        raise ValueError(f"open_share is {open_share}; it is a share of the divergences, above 0 and below 1")
    found: list[Measured] = []
    for on_loops in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            recorder = _Recorder(
                model if isinstance(model, str) else _untouched(model),
                _without_barrier(args, folder, max_steps),
                scope=args.aggregate_scope,
                train_dataset=dataset,
                processing_class=processing_class,
                peft_config=copy.deepcopy(peft_config),
                ref_model=ref_model,
            )
            if on_loops:
                prepared: Any = recorder.train_dataset
                recorder.train_dataset = prepared.map(looped)
            recorder.train()
            found.append(recorder.measured())
            del recorder  # before the next copy is made
    calibration = TauCalibration(found[0], found[1], open_share, args.aggregate_scope, args.kl_direction)
    still = [how for how, tau in calibration.tau_nats.items() if tau == 0]
    if still:
        raise ValueError(
            f"at most {open_share:.1%} of the divergences under {', '.join(still)} are above 0: the policy hardly "
            f"moved; train for more steps than {max_steps or 'args has'}, or with a higher learning rate than "
            f"{args.learning_rate}"
        )
    return calibration


def looped(row: Mapping[str, Any]) -> dict[str, list[int]]:
    """A tokenised row in which the labelled tokens of every document are its first four of them, over and over.

    Args:
        row: `input_ids` and `labels` `(T,)`, -100 where there is none; `seq_lengths` of the documents of a packed row.

    Raises:
        ValueError: a row without these columns.
    """
    if not {"input_ids", "labels"} <= row.keys():
        raise ValueError(f"calibrate_tau needs a dataset of text; after preparation its columns are {sorted(row)}")
    tokens, labels = list(row["input_ids"]), list(row["labels"])
    start = 0
    for length in row.get("seq_lengths") or [len(tokens)]:
        # The first token of a document is not predicted.
        places = [place for place in range(start + 1, start + length) if labels[place] != IGNORED_LABEL]
        for number, place in enumerate(places):
            tokens[place] = labels[place] = tokens[places[number % LOOP_TOKENS]]
        start += length
    return {"input_ids": tokens, "labels": labels}


class _Recorder(KLBarrierTrainer):
    """The trainer with its gate held shut, which writes down every D under all aggregates."""

    def __init__(self, *arguments: Any, scope: AggregateScope, **kwargs: Any):
        super().__init__(*arguments, **kwargs)
        self._scope = scope
        self._tables: list[Tensor] = []  # (n, 5) each
        self._of_step: list[Tensor] = []

    def compute_barrier(self, kl: Tensor, inputs: Mapping[str, Any], micro_batch: int) -> Barrier:
        divergences = self._divergences(kl.detach(), inputs)
        self._tables.append(divergences)
        return Barrier(kl.new_zeros(()), divergences[:, 0])

    def after_step(self) -> None:
        self.reference.update()  # without the parent's watch, which would say that the gate is never open
        if self._of_step:
            self._tables.append(self._pooled(torch.cat(self._of_step)))
            self._of_step = []

    def _divergences(self, kl: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Every D that is complete with a micro-batch, under all aggregates `(n, 5)`."""
        if self._scope == "sequence":
            sequences = sequences_of(inputs)
            index, count = sequences.index, sequences.count
            columns = [aggregate_positions(kl, how, index, n_sequences=count) for how in AGGREGATES]
            return torch.stack(columns, dim=1)[index.unique()]
        if self._scope == "step":
            self._of_step.append(kl)
            return kl.new_zeros(0, len(AGGREGATES))
        return self._pooled(kl)

    def _pooled(self, kl: Tensor) -> Tensor:
        """D of all positions together `(1, 5)`, on one of the ranks that know it; `(0, 5)` elsewhere. Collective."""
        if self._scope in ("rank_global", "step"):
            before, after = gather_around(self.accelerator, kl)
            kl = torch.cat([before, kl, after])
        is_known_elsewhere = self._scope != "micro_batch" and not self.accelerator.is_main_process
        if not len(kl) or is_known_elsewhere:
            return kl.new_zeros(0, len(AGGREGATES))
        return torch.stack([aggregate_positions(kl, how) for how in AGGREGATES])[None]

    def measured(self) -> Measured:
        """Every D of the training, over all ranks. Collective.

        Raises:
            ValueError: no token of the training has a label.
        """
        tables = gather_object([table.cpu().double().numpy() for table in self._tables])
        everything = np.concatenate([np.zeros((0, len(AGGREGATES))), *tables])
        if not len(everything):
            raise ValueError("no token of the training set has a label, so there is no divergence to measure")
        return dict(zip(AGGREGATES, everything.T, strict=True))


def _without_barrier(args: KLBarrierConfig, folder: str, max_steps: int | None) -> KLBarrierConfig:
    args = copy.deepcopy(args)
    args.output_dir, args.report_to, args.push_to_hub = folder, [], False
    args.save_strategy, args.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    args.eval_on_start = args.load_best_model_at_end = False
    # A weight above 0, so that the reference runs; a scope that needs no second pass.
    args.barrier_weight, args.aggregate_scope, args.pressure_steps = 1.0, "sequence", 0
    args.tau_nats = math.inf
    args.barrier_schedule = args.tau_schedule = "constant"
    args.barrier_weight_end = args.tau_nats_end = args.target_kl = args.precompute_ref = None
    if max_steps is not None:
        args.max_steps = max_steps
    return args


def _untouched(model: PreTrainedModel | PeftModel) -> Any:
    duplicate: Any = copy.deepcopy(model)
    causal_lm = duplicate.get_base_model() if isinstance(model, PeftModel) else duplicate
    # A forward that an earlier trainer patched into the instance would run the original's weights.
    causal_lm.__dict__.pop("forward", None)
    return duplicate
