"""`ScheduledDPOTrainer`: TRL's DPO trainer as an instrument for controlled experiments.

Differences from TRL's `DPOTrainer` (1.16):
1. β may change over the training, from row to row and from batch to batch; an evaluation has one β.
2. A prompt runs once for all its completions, and no projection sees it.
3. The reference is the policy as it is in memory, and leaves no hooks. Its log-probabilities are kept per token.
4. `logratio/*` and `kl/*` do not depend on β, are weighted by pairs and by tokens, and carry an evaluation set's name.
5. Prompts and completions are cut separately, and no pair is dropped for its length.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.dpo_trainer import DPOTrainer

from alignkit._compat import keep_cpu_4bit_gradients_right, shown_to_parent
from alignkit.dpo import checkpoints
from alignkit.dpo.batches import make_collator
from alignkit.dpo.checks import refuse_to_find, refuse_what_cannot_work
from alignkit.dpo.collator import cut_to_completions
from alignkit.dpo.config import ScheduledDPOConfig
from alignkit.dpo.control import BetaControl
from alignkit.dpo.hidden_states import HiddenStates, reverse_kl_of_completions
from alignkit.dpo.low_memory import add_low_memory_arguments
from alignkit.dpo.metrics import PairMetrics
from alignkit.dpo.pairs import check_pairs
from alignkit.dpo.policy import PairPolicy
from alignkit.dpo.reference_logps import ReferenceLogps, reference_folder, sum_completions
from alignkit.dpo.references import manage_reference, models_of, reference_for_parent
from alignkit.dpo.rows import prepare_checked
from alignkit.metrics import count_real_rows
from alignkit.reference.checkpoints import SeveralAdapters
from alignkit.reliability.process_count import check_process_count
from alignkit.reliability.trainer import ReliableTraining
from alignkit.row_checks import refuse_empty
from alignkit.steps import StepCallback, share_done


class ScheduledDPOTrainer(SeveralAdapters, ReliableTraining, DPOTrainer):
    r"""
    Trainer for direct preference optimisation with a β that may change, shared prompts, and metrics that can be
    compared between values of β.

    Example:

    ```python
    >>> from alignkit import ScheduledDPOConfig, ScheduledDPOTrainer
    >>> from peft import LoraConfig

    >>> trainer = ScheduledDPOTrainer(
    ...     model="Qwen/Qwen3-1.7B",
    ...     args=ScheduledDPOConfig(beta=0.05, beta_schedule="linear", beta_end=0.02, max_prompt_length=384),
    ...     train_dataset=dataset,  # prompt, chosen, rejected
    ...     peft_config=LoraConfig(),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy, as in [`~trl.DPOTrainer`].
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference as an object, in place of `args.ref`. Its vocabulary must be the policy's.
        args ([`ScheduledDPOConfig`], *optional*):
            Configuration.
        **kwargs:
            Everything else [`~trl.DPOTrainer`] takes. A dataset may have a column `beta`.

    Attributes:
        reference ([`~alignkit.reference.ReferenceManager`]): which weights are the reference.
        beta (`float` or `Tensor` `(B,)`): β at this step; of the rows of a micro-batch while its loss is computed.

    Raises:
        ValueError: settings or rows that cannot work, with the value and the fix.
    """

    _tag_names = ["trl", "alignkit", "scheduled-dpo-trainer"]
    _name = "direct preference optimisation with a scheduled beta"

    args: ScheduledDPOConfig
    model: Any  # a PreTrainedModel or a PeftModel, which share no typed interface
    data_collator: Any  # a PairCollator, unless the user gave another
    _signature_columns: Any

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        args: ScheduledDPOConfig | None = None,
        data_collator: Any = None,
        **kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = ScheduledDPOConfig(f"{name.split('/')[-1]}-ScheduledDPO")
        elif not isinstance(args, ScheduledDPOConfig):
            raise TypeError(f"args is a {type(args).__name__}; give a ScheduledDPOConfig, which has all its fields")
        check_process_count(args.device, args.world_size)
        refuse_empty(kwargs.get("train_dataset"), "train")
        if args.low_memory:
            add_low_memory_arguments(model, args, kwargs)
        # The parent does this for a streamed train set only; dispatching cannot join batches of different shapes.
        args.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]  # an AcceleratorConfig by now
        self._cuts_rows = data_collator is None
        self._control = BetaControl(args)
        self._batch_beta: float | Tensor | None = None
        copied = reference_for_parent(model, ref_model, adds_adapter=kwargs.get("peft_config") is not None)
        # Whose cache is one of sums.
        with shown_to_parent(args, precompute_ref_log_probs=False, enable_jit_checkpoint=False):
            super().__init__(model, copied, args, data_collator, **kwargs)
        refuse_what_cannot_work(self, has_own_collator=not self._cuts_rows)
        keep_cpu_4bit_gradients_right(self.model)
        had_adapter = isinstance(model, PeftModel) and ref_model is None
        self.reference = manage_reference(self, args, is_given=ref_model is not None, had_adapter=had_adapter)
        folder = reference_folder(args.ref_cache_dir) if args.precompute_ref_log_probs else None
        self._logps = ReferenceLogps(self.reference, self.accelerator, folder=folder)
        self._found: set[str] = set()  # datasets of which the reference's log-probabilities are known
        models = models_of(self)
        states = [HiddenStates(each) for each in models]
        self._policy_states, self._ref_states = states[0], states[-1]
        if self._cuts_rows:
            pad_token_id = self._tokenizer.pad_token_id
            self.data_collator = make_collator(args, models, pad_token_id, has_aux_loss=self.aux_loss_enabled)
        self._eval_metrics = PairMetrics()
        self._begin()
        self.add_callback(StepCallback(self._begin, self._after_step))

    # ---- β ----

    @property  # type: ignore[override]  # a number in the parent
    def beta(self) -> float | Tensor:
        if self._batch_beta is not None:
            return self._batch_beta
        return self._control.scheduled(share_done(self.state)) if self.model.training else self._control.evaluation()

    @beta.setter
    def beta(self, value: float) -> None:
        self._control.restart(value)

    def compute_beta(self, margin: Tensor, column: Tensor | None) -> float | Tensor:
        """β of a micro-batch, before its loss is computed. Override it for another rule.

        Args:
            margin (`(B,)`): log-ratio margins of its pairs, nats, without gradient.
            column (`(B,)`): what the dataset's column `beta` says, or None.
        """
        if not self.model.training:
            return self._control.evaluation()
        mean = self.accelerator.gather(margin.mean()).mean().item() if self._control.needs_margin else None
        return self._control.of_batch(share_done(self.state), column, mean)

    # ---- Loss ----

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of a step, as in the parent. Before the first, the reference's log-probabilities."""
        if self.args.precompute_ref_log_probs:
            self._find_reference_logps(self.train_dataset, "train dataset", self.args.per_device_train_batch_size)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch = dict(inputs)
        n_cut, row_keys, column = (batch.pop(name, None) for name in ("n_cut", "row_keys", "beta"))
        if batch.get("packed") is None or return_outputs:  # whose logits are those of whole rows
            batch.pop("packed", None)
        else:
            batch = cut_to_completions(batch)  # the parent hands `packed` on to the model
        measures_kl = self._measures_kl()
        ref_per_token, ref_hidden = self._reference_logps(model, batch, row_keys, measures_kl)
        mask = batch["completion_mask"]
        ref_logps = torch.stack(sum_completions(ref_per_token, mask, self.ld_alpha))  # (2, B)
        logratios = torch.empty(0)

        def receive(log_probs: Tensor) -> None:
            nonlocal logratios
            logratios = torch.stack(sum_completions(log_probs, mask, self.ld_alpha)) - ref_logps
            self._batch_beta = self.compute_beta(logratios[0] - logratios[1], column)

        pairs = {**batch, "ref_chosen_logps": ref_logps[0], "ref_rejected_logps": ref_logps[1]}
        self.precompute_ref_logps = True  # so that the parent takes those above
        try:
            with self._policy_states.kept(measures_kl):
                result = super().compute_loss(PairPolicy(model, receive), pairs, return_outputs, num_items_in_batch)
            self._measure(logratios, n_cut, ref_hidden, batch)
        finally:
            self.precompute_ref_logps = False
            self._batch_beta = None
        return result

    def _reference_logps(self, model, batch, row_keys, measures_kl) -> tuple[Tensor, Tensor | None]:
        """The reference's log-probabilities `(2B, T - 1)`, and its hidden states where the divergence is measured."""
        logps = None
        if row_keys is not None and self._logps.has(row_keys):
            logps = self._logps.of_rows(row_keys, batch["completion_mask"])
            if not measures_kl:
                return logps, None
        with self._ref_states.kept(measures_kl):
            fresh = self._logps.of_batch(model, batch)
        return fresh if logps is None else logps, self._ref_states.pop() if measures_kl else None

    def _find_reference_logps(self, dataset: Any, name: str, default_batch_size: int) -> None:
        """Run the reference over the pairs of a dataset that no file has yet, once the model is wrapped."""
        refuse_to_find(self, dataset, name)
        if dataset._fingerprint in self._found:
            return
        self._found.add(dataset._fingerprint)
        self._logps.find(
            self.model_wrapped,
            dataset,
            self.data_collator,
            name=name,
            batch_size=self.args.precompute_ref_batch_size or default_batch_size,
            computing=self.compute_loss_context_manager(),
            show_progress=not self.args.disable_tqdm,
        )

    # ---- Metrics ----

    def _measures_kl(self) -> bool:
        every, training = self.args.kl_steps, self.model.training
        return every > 0 and (not training or self.state.global_step % every == 0)

    def _measure(self, logratios: Tensor, n_cut: Tensor | None, ref_hidden: Tensor | None, batch: Any) -> None:
        """Add a micro-batch or an evaluation's batch to what is logged."""
        training, n_pairs = self.model.training, logratios.shape[1]
        metrics = self._train_metrics if training else self._eval_metrics
        n_real = n_pairs if training else count_real_rows(self.accelerator, n_pairs)
        metrics.add_pairs(logratios[0], logratios[1], n_real)
        if n_cut is not None:
            metrics.add_cut(n_cut, n_real)
        if training:
            metrics.add_beta(self.beta, logratios[0])
        if ref_hidden is None:
            return
        mask = batch["completion_mask"].clone()
        mask[n_real:n_pairs] = mask[n_pairs + n_real :] = 0
        hidden = self._policy_states.pop()
        kl = reverse_kl_of_completions(self.model, hidden, ref_hidden, batch["input_ids"], mask, self.reference)
        metrics.add_divergence(kl)
        if training and self._control.target is not None:
            self._divergences.append(torch.stack([kl.sum(), kl.new_tensor(len(kl))]))

    def _begin(self) -> None:
        """Forget what a training that was broken off has left of its last step and of its log."""
        self._train_metrics = PairMetrics()
        self._divergences: list[Tensor] = []
        self._metrics["train"].clear()

    def _after_step(self) -> None:
        """What follows every optimiser step: a moving reference, and a β that follows the divergence."""
        self.reference.update()
        target = self._control.target
        if target is not None and self._divergences:
            step, self._divergences = torch.stack(self._divergences).sum(0), []
            total, count = self.accelerator.reduce(step, "sum").tolist()
            target.update(total / count)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training or "train_runtime" in logs:  # the last log of a run may follow an evaluation
            logs.update(self._train_metrics.pop(self.accelerator))
        super().log(logs, start_time)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        if self.args.precompute_ref_log_probs:
            self._find_reference_logps(dataloader.dataset, metric_key_prefix, self.args.per_device_eval_batch_size)
        self._eval_metrics = PairMetrics()
        self._metrics["eval"].clear()  # of an evaluation that was broken off
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        # The parent logs its own under "eval_" whatever the set is called; the last set would hide the others.
        parents = {name: sum(values) / len(values) for name, values in self._metrics["eval"].items()}
        self._metrics["eval"].clear()
        own = self._eval_metrics.pop(self.accelerator)
        named = {f"{metric_key_prefix}_{name}": value for name, value in {**parents, **own}.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    # ---- Data and checkpoints ----

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        with shown_to_parent(args, max_length=None):  # by which the parent would drop rows
            prepared = prepare_checked(super()._prepare_dataset, dataset, processing_class, args, dataset_name)
        if isinstance(prepared, Dataset) and self._cuts_rows:  # a stream is read once, row by row
            limits = {"max_length": args.max_length, "max_prompt_length": args.max_prompt_length}
            check_pairs(prepared, f"{dataset_name} dataset", **limits)
        return prepared

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if "beta" not in self._signature_columns:
            self._signature_columns.append("beta")

    def save_own_state(self, folder: Path) -> None:
        checkpoints.save_state(folder, self._control, self.reference, should_save=self.args.should_save)

    def load_own_state(self, checkpoint: Path) -> None:
        checkpoints.load_state(checkpoint, self._control, self.reference)
