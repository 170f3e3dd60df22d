"""`MultiHeadRewardTrainer`: TRL's reward trainer with N heads and a head-indexed loss.

Differences from TRL's `RewardTrainer` (1.16):
1. The loss is divided by the weight of the whole optimiser step, not per micro-batch.
2. Texts are pooled by the attention mask, not by looking for the pad token; `score` is float32, under QLoRA too.
3. Evaluation metrics are computed once from all raw scores, not averaged over batches.
4. A text that is too long is an error unless `overflow` says otherwise; what is dropped is counted and reported.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.reward_trainer import RewardTrainer

from alignkit._compat import keep_cpu_4bit_gradients_right, seen_as_single_label, shown_to_parent
from alignkit.metrics import MetricSums, gather_ragged
from alignkit.reliability.process_count import check_process_count
from alignkit.reliability.trainer import ReliableTraining
from alignkit.reward_model.batching import ComparisonCollator
from alignkit.reward_model.card import reward_model_card
from alignkit.reward_model.config import MultiHeadRewardConfig
from alignkit.reward_model.data import ENCODED_FEATURES
from alignkit.reward_model.evaluation import EvaluationRecord
from alignkit.reward_model.export import check_base_has_name, write_adapter_files
from alignkit.reward_model.loading import check_special_tokens, load_for_training, take_in_model
from alignkit.reward_model.losses import LossOutput, head_weight_vector, positive_weights, reward_objective
from alignkit.reward_model.metrics import EvaluationReport
from alignkit.reward_model.modeling import prepare_to_share, settings_of, upcast_score
from alignkit.reward_model.preparation import DataPreparation, DataSettings
from alignkit.reward_model.training_metrics import add_step, named_metrics
from alignkit.row_checks import check_fills_a_batch

HEAD_KEY_FACTOR = 1_000_003


class MultiHeadRewardTrainer(ReliableTraining, RewardTrainer):
    r"""
    Trainer for reward models with N Bradley-Terry heads on one backbone. Every comparison belongs to one head.

    Example:

    ```python
    >>> from alignkit import MultiHeadRewardConfig, MultiHeadRewardTrainer

    >>> trainer = MultiHeadRewardTrainer(
    ...     model="Qwen/Qwen2.5-0.5B",
    ...     args=MultiHeadRewardConfig(head_names=["helpful", "harmless"]),
    ...     train_dataset=dataset,  # prompt, chosen, rejected, head
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Name or path of any causal language model or reward model, or a `*ForSequenceClassification` with one row
            of `score` per head, or such a model under PEFT. Heads that a checkpoint already has are kept, else
            `score` is drawn from N(0, 1/(H+1)) with `args.seed`.
        args ([`MultiHeadRewardConfig`], *optional*):
            Configuration.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows of any mixture of the formats in [`alignkit.reward_model.rows`].
        eval_dataset (*optional*):
            Held-out rows, or a dict of datasets.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer, by default that of the model.
        negatives ([`~datasets.Dataset`], *optional*):
            `text`, `tier`, `heads`: what rows of the form (`text`, `head`) are compared with.
        eval_negatives ([`~datasets.Dataset`], *optional*):
            Negatives of evaluations, by default those of training.
        **kwargs:
            Everything else [`~trl.RewardTrainer`] takes: `peft_config`, `callbacks`, `optimizers`, ...

    Attributes:
        head_names (`list[str]`): names of the heads.
        data_report (`dict`): per split, what was read, dropped, trimmed or in conflict; plain data.
        evaluation_report ([`EvaluationReport`]): tables of the last evaluation, or None.
        evaluation_reports (`dict[str, EvaluationReport]`): those of the last evaluation under each metric prefix.

    Raises:
        ValueError: bad data or settings, with the split and row, the value, and the fix.
    """

    _tag_names = ["trl", "alignkit", "multi-head-reward-trainer"]
    _name = "multi-head reward modelling"

    args: MultiHeadRewardConfig
    model: Any  # a PreTrainedModel or a PeftModel, which share no typed interface
    processing_class: Any  # a tokenizer

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: MultiHeadRewardConfig | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        negatives: Dataset | None = None,
        eval_negatives: Dataset | None = None,
        **kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = MultiHeadRewardConfig(f"{name.split('/')[-1]}-MultiHeadReward")
        check_process_count(args.device, args.world_size)
        if isinstance(model, str):
            model, processing_class = load_for_training(
                model, args, processing_class, quantization_config=kwargs.pop("quantization_config", None)
            )
        if processing_class is not None:
            check_special_tokens(processing_class)
        self.head_names = take_in_model(model, args, kwargs.get("peft_config"))
        self.evaluation_reports: dict[str, EvaluationReport] = {}
        self._tier_weights: dict[str, float] = dict(args.tier_weights)  # type: ignore[arg-type]  # a dict once checked
        self._data = DataPreparation(self.head_names, negatives, eval_negatives)
        self._record: EvaluationRecord | None = None
        self._sums = MetricSums()
        # The parent does this for a streamed train set only; dispatching cannot join batches of different shapes.
        args.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]  # an AcceleratorConfig by now
        with seen_as_single_label(model.config, args), shown_to_parent(args, enable_jit_checkpoint=False):
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **kwargs,
            )
        splits = {"train": self.train_dataset, "eval": self.eval_dataset}
        self._data.check_tokens(splits, self.model, self.processing_class)
        check_fills_a_batch(args, self.train_dataset)
        is_zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
        if self.is_fsdp_enabled or is_zero3:
            check_base_has_name(self.model)
        upcast_score(self.model)  # the parent casts every trainable weight of a quantised model to bfloat16
        keep_cpu_4bit_gradients_right(self.model)
        self._encoding: dict[str, Any] = {"encode_batch_size": args.encode_batch_size}
        if args.share_prefix and prepare_to_share(self.model):
            self._encoding.update(share_prefix=True, max_packed_tokens=args.max_packed_tokens)
        if data_collator is None:
            # The parent has made a number of "auto".
            multiple: int | None = args.pad_to_multiple_of  # type: ignore[assignment]
            self.data_collator = ComparisonCollator(self.processing_class.pad_token_id, multiple)
        # Under "comparisons" the loss is already that of the whole step; under "active_heads" it is per micro-batch.
        self.loss_is_scaled_for_ga = args.reduction == "comparisons"
        data_weights = self.data_report["train"]["weight"]
        weights = head_weight_vector(args.head_weights, self.head_names, data_weights)
        self._head_weights = None if weights is None else weights.to(args.device)

    @property
    def data_report(self) -> dict[str, dict[str, Any]]:
        return self._data.report

    @property
    def evaluation_report(self) -> EvaluationReport | None:
        return next(reversed(self.evaluation_reports.values()), None)

    # ---- Data ----

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        settings = DataSettings(
            **{field.name: getattr(args, field.name) for field in dataclasses.fields(DataSettings)}
        )
        return self._data.prepare(dataset, processing_class, settings, dataset_name)

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns: list[str] = list(ENCODED_FEATURES)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """The micro-batches of a step, joined by the step's negatives, and the step's weight over all ranks."""
        batches: list[dict[str, Any]] = super().get_batch_samples(epoch_iterator, num_batches, device)[0]
        if not batches:
            return batches, None
        args = self.args
        if self._data.negatives is not None:
            step_negatives = self._data.negatives.draw(args.seed, self.state.global_step, args.negatives_per_tier)
            batches = [
                step_negatives.join(
                    batch,
                    tier_weights=self._tier_weights,
                    pairing=args.pairing,
                    on_conflict=args.on_conflict,
                    pad_token_id=self.processing_class.pad_token_id,
                )
                for batch in batches
            ]
        if args.reduction != "comparisons":
            return batches, None
        if args.regularizer is not None:
            self._weigh_positives(batches)
        total_weight = torch.stack([batch["comparisons"].weight.sum() for batch in batches]).sum().to(device)
        if self.accelerator.num_processes > 1:
            total_weight = self.accelerator.reduce(total_weight, reduction="sum")
        return batches, total_weight

    def _weigh_positives(self, batches: list[dict[str, Any]]) -> None:
        """Make every distinct (text, head) positive of the step, over all ranks, count once in the regularizer."""
        keys = [batch["text_key"][batch["positive"]] * HEAD_KEY_FACTOR + batch["positive_head"] for batch in batches]
        all_keys = gather_ragged(self.accelerator, torch.cat(keys))
        for batch, key in zip(batches, keys, strict=True):
            batch["positive_weight"] = positive_weights(key, all_keys)

    # ---- Loss ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, **self._encoding
        )
        if self.model.training:
            objective = self.compute_reward_loss(
                outputs.logits, inputs, total_weight=num_items_in_batch, positive_weight=inputs.get("positive_weight")
            )
            add_step(self._sums, outputs.logits, inputs["comparisons"], objective, inputs["attention_mask"])
            # Gradients are averaged over ranks; the sum over all comparisons is wanted.
            scale = self.accelerator.num_processes if self.args.reduction == "comparisons" else 1
            loss = objective.loss * scale
        else:
            if self._record is not None:
                self._record.add(inputs, outputs.logits)
            loss = outputs.logits.sum() * 0.0  # the loss of an evaluation is computed once, from all its scores
        return (loss, outputs) if return_outputs else loss

    def compute_reward_loss(self, scores: Tensor, batch: dict[str, Any], **step: Any) -> LossOutput:
        """What is trained, from the scores `(M, K)` of a batch. Override it for another loss.

        `batch` has `comparisons`, `positive` and `positive_head`: of a micro-batch, or of a whole evaluation set.
        `step` holds the divisors of the optimiser step, `total_weight` and `positive_weight`; none in an evaluation.
        """
        return reward_objective(
            scores,
            batch["comparisons"],
            batch["positive"],
            batch["positive_head"],
            reduction=self.args.reduction,
            head_weights=self._head_weights,
            regularizer=self.args.regularizer,
            regularizer_weight=self.args.regularizer_weight,
            center_coefficient=self.args.center_rewards_coefficient,
            **step,
        )

    # ---- Metrics ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training or "train_runtime" in logs:  # the last log of a run may follow an evaluation
            metrics = named_metrics(self._sums.pop(self.accelerator), self.head_names)
            if metrics:
                self._total_train_tokens += int(metrics["num_tokens"]) // self._tp_size
                logs.update(metrics, num_tokens=self._total_train_tokens)
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        self._record = EvaluationRecord()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        record, self._record = self._record, None
        evaluation = record.assemble(self._data.eval_negatives, tier_weights=self._tier_weights)
        report = evaluation.report(self.head_names, list(self._tier_weights))
        self.evaluation_reports.pop(metric_key_prefix, None)  # so that the last entry is the last evaluation
        self.evaluation_reports[metric_key_prefix] = report
        loss = self.compute_reward_loss(evaluation.scores, vars(evaluation)).loss.item()
        metrics = {**(output.metrics or {}), f"{metric_key_prefix}_loss": loss}
        return output._replace(metrics=metrics | report.flat(metric_key_prefix))

    # ---- Saving ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            write_adapter_files(model, str(output_dir or self.args.output_dir), with_base=False)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):  # type: ignore[override]  # TRL's
        if not self.is_world_process_zero():
            return
        args, output_dir, source = self.args, str(self.args.output_dir), self.model.config._name_or_path
        card = reward_model_card(
            path=args.hub_model_id or output_dir,
            model_name=model_name or Path(output_dir).name,
            base_model=source if source and not Path(source).is_dir() else None,
            dataset_name=dataset_name,
            tags=[*self._tag_names, *([tags] if isinstance(tags, str) else tags or ())],
            head_names=self.head_names,
            data_report=self.data_report,
            evaluations={name: report.heads for name, report in self.evaluation_reports.items()},
            step=self.state.global_step,
            score_softcap=settings_of(self.accelerator.unwrap_model(self.model).config).get("score_softcap"),
            args=args,
        )
        card.save(Path(output_dir) / "README.md")
