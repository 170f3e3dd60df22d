"""The two settings of every trainer here whose default differs from that of `transformers.TrainingArguments`."""

from dataclasses import dataclass, field


@dataclass
class ReliableArguments:
    """Stands before the parent's configuration in the bases.

    Parameters:
        logging_nan_inf_filter (`bool`, *optional*, defaults to `False`):
            The parent's default shows a step whose loss is NaN as the mean of the steps before it, at first as 0, and
            waits for the device twice in a micro-batch to do so.
        enable_jit_checkpoint (`bool`, *optional*, defaults to `True`):
            After a SIGTERM the step is finished, a checkpoint saved, and the process ends with code 143. Not where
            `save_strategy` is `"no"`, nor in a process that has a handler of its own.
    """

    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Whether to hide NaN and infinite losses from the log."}
    )
    enable_jit_checkpoint: bool = field(
        default=True, metadata={"help": "Whether a SIGTERM ends the training with a checkpoint."}
    )
