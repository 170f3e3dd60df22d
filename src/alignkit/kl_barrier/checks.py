"""What the trainer of the KL barrier refuses, once its parent has settled everything."""

from typing import Any

from datasets import IterableDataset
from peft.utils import TrainableTokensWrapper

from alignkit.fused_head.modeling import causal_lm_of
from alignkit.row_checks import check_fills_a_batch, check_token_ids


def refuse_what_cannot_work(trainer: Any) -> None:
    """Refuse settings under which a part of the barrier would be wrong.

    Args:
        trainer: a `KLBarrierTrainer` after its parent's `__init__`.

    Raises:
        ValueError: with the setting, the reason and the way out.
    """
    args, parallelism = trainer.args, trainer.accelerator.parallelism_config
    if trainer.compute_loss_func is not None:
        raise ValueError("compute_loss_func needs logits, which are never built; override compute_barrier instead")
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ValueError("context and sequence parallelism cut sequences over ranks, and D with them; use FSDP2")
    if args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3:
        raise ValueError("DeepSpeed ZeRO-3 shows the output head to its own forward only; use FSDP2 or ZeRO-2")
    checkpointing: Any = args.gradient_checkpointing_kwargs or {}  # the name that every allowed transformers has
    if args.pressure_steps > 0 and checkpointing.get("use_reentrant"):
        raise ValueError(
            "reentrant checkpointing has no gradient norms of a part of the loss; set use_reentrant to False, or "
            "pressure_steps to 0"
        )
    if isinstance(causal_lm_of(trainer.model).get_output_embeddings(), TrainableTokensWrapper):
        raise ValueError(
            "trainable_token_indices with tied embeddings also changes the output head, which is read as one weight; "
            "leave it out, or untie the embeddings"
        )
    if args.precompute_ref is not None and isinstance(trainer.train_dataset, IterableDataset):
        raise ValueError("precompute_ref needs a training set of fixed rows, not a stream; set it to None")
    if args.precompute_ref is not None and {"image", "images"} & set(trainer.train_dataset.column_names):
        raise ValueError(
            "precompute_ref knows a row by its tokens, and rows of equal tokens may have different images; set it to "
            "None"
        )
    if args.precompute_ref is not None and args.dataloader_drop_last:
        raise ValueError(
            "precompute_ref goes through every row, which dataloader_drop_last=True leaves out some of; set one of "
            "them to its default"
        )
    check_fills_a_batch(args, trainer.train_dataset)
    sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"eval": trainer.eval_dataset}
    for split, dataset in {"train": trainer.train_dataset, **sets}.items():
        check_token_ids(dataset, ["input_ids"], trainer.model, trainer.processing_class, split)
