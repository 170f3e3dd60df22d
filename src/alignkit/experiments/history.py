"""What a record keeps of a training's log: rows for the curves, and the training loss at the end."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

MOST_ROWS = 200  # of the training; evaluations are all kept
KEPT = (
    *("loss", "logratio/chosen", "logratio/margin", "logratio/accuracy", "rewards/margins", "rewards/accuracies"),
    *("kl/reverse_on_data", "beta", "learning_rate", "grad_norm"),
)
EVAL = "eval_"

Row = Mapping[str, Any]


def trimmed(log_history: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows with step, epoch and the values of `KEPT`, those of evaluations under any set's name.

    Of more than `MOST_ROWS` rows of the training every k-th is kept, and the last.
    """
    rows = [_kept(row) for row in log_history]
    rows = [row for row in rows if set(row) - {"step", "epoch"}]
    training = [row for row in rows if not _is_evaluation(row)]
    stride = math.ceil(len(training) / MOST_ROWS) or 1
    chosen = {id(row) for row in (*training[::stride], *training[-1:])}
    return [row for row in rows if _is_evaluation(row) or id(row) in chosen]


def final_training_loss(log_history: Sequence[Row]) -> float | None:
    """Mean loss of a step over the last epoch, from the rows of the log; None if none was logged.

    A row holds the mean over the steps since the row before it, so it counts by their number. Unlike the Trainer's
    own `train_loss` it is the same after an interruption.
    """
    rows = [row for row in log_history if "loss" in row and "step" in row]
    if not rows:
        return None
    steps = [row["step"] - before for row, before in zip(rows, [0, *(row["step"] for row in rows)], strict=False)]
    start = math.ceil(rows[-1]["epoch"]) - 1
    last = [(row["loss"], n) for row, n in zip(rows, steps, strict=True) if row["epoch"] > start]
    return math.fsum(loss * n for loss, n in last) / sum(n for _, n in last)


def _kept(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key in ("step", "epoch") or _is_kept(key)}


def _is_kept(key: str) -> bool:
    if not key.startswith(EVAL):
        return key in KEPT
    # `eval_loss`, or `eval_<set>_loss` where the sets have names.
    rest = key.removeprefix(EVAL)
    return any(rest == name or rest.endswith(f"_{name}") for name in KEPT)


def _is_evaluation(row: Row) -> bool:
    return any(key.startswith(EVAL) for key in row)
