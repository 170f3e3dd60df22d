"""What `ScheduledDPOTrainer` refuses, once its parent has settled everything."""

from typing import Any

from datasets import Dataset, IterableDataset
from torch.distributed.tensor import DTensor

from alignkit.dpo.config import SORTING_LOSSES, ScheduledDPOConfig
from alignkit.row_checks import check_fills_a_batch, check_token_ids


def refuse_what_cannot_work(trainer: Any, *, has_own_collator: bool) -> None:
    """Refuse settings under which a part would be wrong.

    Args:
        trainer: a `ScheduledDPOTrainer` after its parent's `__init__`.
        has_own_collator: whether the user gave a data collator.

    Raises:
        ValueError: with the setting, the reason and the way out.
    """
    args, parallelism = trainer.args, trainer.accelerator.parallelism_config
    if trainer._is_vision_dataset:
        raise ValueError("ScheduledDPOTrainer takes text; for images use TRL's DPOTrainer")
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ValueError("context and sequence parallelism cut sequences over ranks, and completions with them")
    is_zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    if is_zero3 and args.kl_steps > 0:
        raise ValueError(
            "DeepSpeed ZeRO-3 shows the output head to its own forward only; set kl_steps=0, or use FSDP2"
        )
    if args.precompute_ref_log_probs:
        if isinstance(trainer.train_dataset, IterableDataset):
            raise ValueError(
                "precompute_ref_log_probs needs a training set of fixed rows, not a stream; set it to False"
            )
        if has_own_collator:
            raise ValueError(
                "precompute_ref_log_probs knows rows by keys that data_collator does not make; leave it out"
            )
    check_fills_a_batch(args, trainer.train_dataset)
    sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"eval": trainer.eval_dataset}
    for split, dataset in {"train": trainer.train_dataset, **sets}.items():
        ids = ["prompt_ids", "chosen_ids", "rejected_ids"]
        check_token_ids(dataset, ids, trainer.model, trainer.processing_class, split)
    columns = trainer.train_dataset.column_names or ()
    check_beta_column(args, columns)
    has_betas = has_own_collator and "beta" in columns
    if has_betas and "beta" not in trainer.data_collator([next(iter(trainer.train_dataset))]):
        raise ValueError("data_collator leaves out the column `beta` of the train dataset; let it pass the column on")


def check_beta_column(args: ScheduledDPOConfig, columns: Any) -> None:
    """Refuse a column `beta` beside settings that cannot have one β per row.

    Raises:
        ValueError: with the setting.
    """
    if "beta" not in columns:
        return
    sorting = [loss for loss in args.loss_type if loss in SORTING_LOSSES]
    if sorting:
        raise ValueError(
            f"loss_type {sorting[0]!r} sorts the pairs of a batch, so the column `beta` has no meaning there"
        )
    if args.target_kl is not None:
        raise ValueError(f"target_kl={args.target_kl} moves one beta for all rows; remove the column `beta`")


def refuse_to_find(trainer: Any, dataset: Any, name: str) -> None:
    """Refuse to look for log-probabilities that could not be kept, or would be those of weights not yet loaded.

    Raises:
        ValueError: a stream, or a model that FSDP2 has not sharded yet.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(f"precompute_ref_log_probs needs fixed rows, and the {name} set is a stream; set it to False")
    if trainer.accelerator.is_fsdp2 and not any(isinstance(weight, DTensor) for weight in trainer.model.parameters()):
        raise ValueError("under FSDP2 log-probabilities are precomputed once training has begun; call train() first")
