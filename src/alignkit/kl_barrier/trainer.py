"""`KLBarrierTrainer`: TRL's SFT trainer with a hinge on how far the policy moves away from a reference.

Differences from TRL's `SFTTrainer` (1.16):
1. NLL, KL, entropy and accuracy come from one pass over the vocabulary; the reference runs first, without gradient.
2. The barrier has the divisor of the whole optimiser step: it is the same for any split into micro-batches and ranks.
3. Metrics of the barrier are sums and counts over all micro-batches and ranks since the last log.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.sft_trainer import SFTTrainer

from alignkit._compat import keep_cpu_4bit_gradients_right, shown_to_parent
from alignkit.fused_head.modeling import HeadInput, add_reference_head, causal_lm_of
from alignkit.kl_barrier import checkpoints
from alignkit.kl_barrier.barrier import (
    Barrier,
    StepShape,
    batch_barrier,
    pooled_barrier,
    rank_global_barrier,
    sequence_barrier,
    step_barrier,
)
from alignkit.kl_barrier.checks import refuse_what_cannot_work
from alignkit.kl_barrier.config import KLBarrierConfig
from alignkit.kl_barrier.evaluation import BarrierEvaluation, BarrierReport
from alignkit.kl_barrier.faults import StepDivergences
from alignkit.kl_barrier.policy import AgainstReference
from alignkit.kl_barrier.reference_states import ReferenceStates
from alignkit.kl_barrier.rows import DatasetReport, prepare_rows
from alignkit.kl_barrier.sequences import add_positions, sequences_of
from alignkit.kl_barrier.strength import BarrierStrength
from alignkit.kl_barrier.training_metrics import StepMonitor, can_measure_pressure, pressure
from alignkit.kl_barrier.window import StepWindow, look_ahead
from alignkit.metrics import count_real_rows, gather_around
from alignkit.reference import ReferenceManager
from alignkit.reference.checkpoints import SeveralAdapters
from alignkit.reliability.not_finite import NonFiniteError
from alignkit.reliability.process_count import check_process_count
from alignkit.reliability.trainer import ReliableTraining
from alignkit.row_checks import refuse_empty
from alignkit.steps import StepCallback, share_done


class KLBarrierTrainer(SeveralAdapters, ReliableTraining, SFTTrainer):
    r"""
    Trainer for supervised fine-tuning under a barrier: loss = NLL + barrier_weight · relu(D − tau_nats), where D
    aggregates the full-vocabulary KL between policy and reference over the positions that have a label.

    Example:

    ```python
    >>> from alignkit import KLBarrierConfig, KLBarrierTrainer
    >>> from peft import LoraConfig

    >>> trainer = KLBarrierTrainer(
    ...     model="Qwen/Qwen2.5-0.5B",
    ...     args=KLBarrierConfig(barrier_weight=0.3, tau_nats=0.5, aggregate="cvar95"),
    ...     train_dataset=dataset,
    ...     peft_config=LoraConfig(),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy, as in [`~trl.SFTTrainer`].
        args ([`KLBarrierConfig`], *optional*):
            Configuration.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference as an object, in place of `args.ref`. Its vocabulary must be the policy's.
        **kwargs:
            Everything else [`~trl.SFTTrainer`] takes.

    Attributes:
        reference ([`~alignkit.reference.ReferenceManager`]): which weights are the reference.
        evaluation_report ([`~alignkit.kl_barrier.evaluation.BarrierReport`]): of the last evaluation, or None.
        evaluation_reports (`dict`): those of the last evaluation under each metric prefix.
        data_report (`dict`): per split, the rows that `max_length` cut and dropped; see [`alignkit.kl_barrier.rows`].

    Raises:
        ValueError: settings that cannot work together, with the value and the fix.
        NonFiniteDivergenceError: KL is NaN or infinite, with the tokens where.
    """

    _tag_names = ["trl", "alignkit", "kl-barrier-trainer"]
    _name = "fine-tuning under a KL barrier"

    args: KLBarrierConfig
    model: Any  # a PreTrainedModel or a PeftModel, which share no typed interface

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: KLBarrierConfig | None = None,
        *arguments: Any,
        ref_model: PreTrainedModel | None = None,
        **kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = KLBarrierConfig(f"{name.split('/')[-1]}-KLBarrier")
        elif not isinstance(args, KLBarrierConfig):
            raise TypeError(f"args is a {type(args).__name__}; give a KLBarrierConfig, which has all its fields")
        check_process_count(args.device, args.world_size)
        refuse_empty(kwargs.get("train_dataset", (*arguments, None, None)[1]), "train")
        self.data_report: dict[str, DatasetReport] = {}
        with shown_to_parent(args, enable_jit_checkpoint=False):
            super().__init__(model, args, *arguments, **kwargs)
        refuse_what_cannot_work(self)
        keep_cpu_4bit_gradients_right(self.model)
        self.reference = ReferenceManager(self.model, args.ref, ref_model=ref_model, ema_decay=args.ema_decay)
        add_reference_head(causal_lm_of(self.model))
        self._states = ReferenceStates(self.reference, self.accelerator, precompute=args.precompute_ref is not None)
        self._strength = BarrierStrength(args)
        self.evaluation_reports: dict[str, BarrierReport] = {}
        self._record: BarrierEvaluation | None = None
        self._has_pressure = can_measure_pressure(self)
        # Of the optimiser step: set by `get_batch_samples`, read by `compute_loss`.
        self._step = StepShape(n_micro_batches=1, n_ranks=1, n_sequences=1)
        self._batches: list[dict[str, Any]] = []
        self._window: StepWindow | None = None
        self._micro_batch = 0
        self._kept_kl = StepDivergences(self.processing_class, at_once=self.is_deepspeed_enabled)
        self.begin_monitoring()
        self.add_callback(StepCallback(self.begin_monitoring, self.after_step))

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        arguments = dataset, processing_class, args, packing, formatting_func, dataset_name
        prepared, self.data_report[dataset_name] = prepare_rows(super()._prepare_dataset, *arguments)
        return prepared

    # ---- Schedules ----

    @property
    def progress(self) -> float:
        """Share of the training's optimiser steps that is done."""
        return share_done(self.state)

    @property
    def barrier_weight(self) -> float:
        """λ at this step."""
        return self._strength.weight(self.progress)

    @property
    def tau_nats(self) -> float:
        """τ at this step."""
        return self._strength.tau_nats(self.progress)

    # ---- The optimiser step ----

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of a step and their tokens, as in the parent; also counts the step's sequences."""
        if self._states.wait_for_disk:
            self._find_states()
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro_batch, self._window = 0, None
        self._kept_kl.begin(self.state.global_step + 1)
        if not batches or self.barrier_weight == 0:
            return batches, num_items
        add_positions(batches)
        n_sequences: Tensor | int = 0
        if self.args.aggregate_scope == "sequence":
            counts = torch.stack([sequences_of(batch).n_labelled for batch in batches])
            n_sequences = self.accelerator.reduce(counts.sum().to(device), "sum") / self.get_tp_size()
        self._step = StepShape(len(batches), self.accelerator.num_processes // self.get_tp_size(), n_sequences)
        self._batches = batches if self.args.aggregate_scope == "step" else []
        return batches, num_items

    def _find_states(self) -> None:
        """Find the reference's hidden states of the training set, when the model is wrapped and before it moves."""
        folder = Path(self.args.ref_cache_dir or Path(str(self.args.output_dir)) / "reference_hidden")
        # Not `get_eval_dataloader`, which with persistent workers would keep this one for the next evaluation.
        rows: Any = self.train_dataset
        batches = map(self._prepare_inputs, self.get_test_dataloader(rows))
        self._states.keep_on_disk(folder, self.model_wrapped, batches, self.compute_loss_context_manager())

    def _look_ahead(self, batches: list[dict[str, Any]]) -> StepWindow:
        def compare(batch: Mapping[str, Any]) -> tuple[Tensor, Any]:
            inputs = self._prepare_inputs(dict(batch))
            with self.compute_loss_context_manager():
                against = self._states.of_training_batch(self.model_wrapped, inputs)
                output = self.model_wrapped(**inputs, against=against, kl_direction=self.args.kl_direction)
            return output.kl, against.hidden  # not its head: FSDP2 puts a whole one together for each micro-batch

        return look_ahead(batches, compare, self.accelerator, how=self.args.aggregate, tau_nats=self.tau_nats)

    # ---- Loss ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        training = self.model.training
        if not training:
            return self._evaluation_loss(model, inputs, return_outputs)
        if self.barrier_weight == 0:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        micro_batch, self._micro_batch = self._micro_batch, self._micro_batch + 1
        if self._batches:  # not before: a resumed run sets the random state between the batches and their losses
            self._window, self._batches = self._look_ahead(self._batches), []
        policy = AgainstReference(model, self._against(model, inputs, micro_batch), self.args.kl_direction)
        result = super().compute_loss(policy, inputs, return_outputs, num_items_in_batch)
        nll, outputs = result if return_outputs else (result, None)
        window = self._window if policy.against is None else None  # then no KL has a gradient in this step
        kl = policy.output.kl if window is None else window.kl[micro_batch]
        barrier = self.compute_barrier(kl, inputs, micro_batch)
        # Where the parent had no count of the step's tokens, the Trainer divides by the number of micro-batches.
        scale = self._step.n_micro_batches if num_items_in_batch is None else 1
        term = barrier.value * (self.barrier_weight * scale)
        self._measure(nll, term, kl, barrier, policy.output, micro_batch)
        loss = nll + term + self._kept_kl.keep(kl, inputs)
        return (loss, outputs) if return_outputs else loss

    def _agree_to_go_on(self, model):
        try:
            super()._agree_to_go_on(model)
        except NonFiniteError as error:
            self._kept_kl.check(str(error))  # a divergence that is no number is shown with its tokens
            raise

    def _against(self, model: Any, inputs: Mapping[str, Any], micro_batch: int) -> HeadInput | None:
        """The reference at a micro-batch's labelled positions; None when the whole step's gate is known to be shut."""
        window = self._window
        if window is None:
            return self._states.of_training_batch(model, inputs)
        window.random_states[micro_batch].restore()
        return self._states.with_hidden(model, window.ref_hidden[micro_batch]) if window.is_open else None

    def compute_barrier(self, kl: Tensor, inputs: Mapping[str, Any], micro_batch: int) -> Barrier:
        """What is weighted and added to the NLL, from the divergences `(N,)` of a micro-batch. Override it at will.

        Args:
            kl (`(N,)`): of the positions whose next token has a label, in row-major order, nats.
            inputs: the collated micro-batch.
            micro_batch: its number in the optimiser step.
        """
        how, tau_nats, step = self.args.aggregate, self.tau_nats, self._step
        if self.args.aggregate_scope == "sequence":
            return sequence_barrier(kl, sequences_of(inputs), how, tau_nats, step)
        if self.args.aggregate_scope == "micro_batch":
            return pooled_barrier(kl, how, tau_nats, step)
        if self.args.aggregate_scope == "rank_global":
            return rank_global_barrier(kl, gather_around(self.accelerator, kl.detach()), how, tau_nats, step)
        window: Any = self._window
        return step_barrier(kl, window.weights[micro_batch], window.divergence, tau_nats, step)

    def _evaluation_loss(self, model: Any, inputs: Mapping[str, Any], return_outputs: bool) -> Any:
        """NLL and barrier of a batch. Its sequences count alike; every other scope is that of one micro-batch."""
        policy = AgainstReference(model, self._states.of_batch(model, inputs), "both")
        result = super().compute_loss(policy, inputs, return_outputs)
        nll, outputs = result if return_outputs else (result, None)
        args, output, sequences = self.args, policy.output, sequences_of(inputs)
        kl = output.reverse_kl if args.kl_direction == "reverse" else output.forward_kl
        barrier = batch_barrier(kl, sequences, args.aggregate, args.aggregate_scope, self.tau_nats)
        if self._record is not None:
            is_packed = args.packing if args.eval_packing is None else args.eval_packing
            # A row that only fills the last batch of a rank is not told from the others once it is packed.
            n_real = None if is_packed else count_real_rows(self.accelerator, sequences.count)
            self._record.add(output, inputs, n_real=n_real)
        loss = nll + barrier.value * self.barrier_weight
        return (loss, outputs) if return_outputs else loss

    # ---- Metrics ----

    def _measure(self, nll: Tensor, term: Tensor, kl: Tensor, barrier: Barrier, output: Any, micro_batch: int) -> None:
        """Add a micro-batch to the log, and measure the pressure of the barrier where it is due."""
        weight, tau_nats = self.barrier_weight, self.tau_nats
        self._monitor.add(kl, barrier.divergence, output, weight=weight, tau_nats=tau_nats)
        every = self.args.pressure_steps
        if self._has_pressure and every > 0 and micro_batch == 0 and self.state.global_step % every == 0:
            self._monitor.metrics.add_pressure(pressure(term, nll, self.model.parameters()))

    def begin_monitoring(self) -> None:
        """Forget what a training that was broken off has left of its last step and of its log."""
        self._monitor = StepMonitor(self.accelerator, self._strength.dual)

    def after_step(self) -> None:
        """What follows every optimiser step: a moving reference, and the dual weight or the watch on the gate."""
        self.reference.update()
        self._monitor.end_step(self.tau_nats)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training or "train_runtime" in logs:  # the last log of a run may follow an evaluation
            logs.update(self._monitor.metrics.pop(self.accelerator))
        else:  # the report has them over tokens; the parent would put means of batch means in their place
            for name in ("entropy", "mean_token_accuracy"):
                self._metrics["eval"].pop(name, None)
        super().log(logs, start_time)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        self._record = BarrierEvaluation(self.args.kl_direction)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        record, self._record = self._record, None
        report = record.assemble(self.processing_class, aggregate=self.args.aggregate, tau_nats=self.tau_nats)
        self.evaluation_reports.pop(metric_key_prefix, None)  # so that the last entry is the last evaluation
        self.evaluation_reports[metric_key_prefix] = report
        return output._replace(metrics={**(output.metrics or {}), **report.flat(metric_key_prefix)})

    @property
    def evaluation_report(self) -> BarrierReport | None:
        return next(reversed(self.evaluation_reports.values()), None)

    # ---- Checkpoints ----

    def save_own_state(self, folder: Path) -> None:
        checkpoints.save_state(folder, self._strength.dual, self.reference, should_save=self.args.should_save)

    def load_own_state(self, checkpoint: Path) -> None:
        checkpoints.load_state(checkpoint, self._strength.dual, self.reference)
