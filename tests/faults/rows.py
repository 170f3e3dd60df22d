"""A trainer of each method, and rows of its columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import IterableDataset
from transformers import Trainer

from alignkit import (
    ESLoRAConfig,
    ESLoRATrainer,
    KLBarrierConfig,
    KLBarrierTrainer,
    MultiHeadRewardConfig,
    MultiHeadRewardTrainer,
    ScheduledDPOConfig,
    ScheduledDPOTrainer,
)
from alignkit.tasks.toy import byte_tokenizer, tiny_sequence_classifier
from tests.dpo.conftest import QUIET as QUIET_DPO
from tests.es_lora.conftest import QUIET as QUIET_ES
from tests.es_lora.conftest import mean_code
from tests.kl_barrier.conftest import QUIET as QUIET_BARRIER
from tests.reward_model.conftest import QUIET as QUIET_REWARD
from tests.tiny_models import lively_lm

Row = dict[str, Any]
GOOD: dict[str, Row] = {
    "reward": {"prompt": "Say", "chosen": " yes", "rejected": " no"},
    "barrier": {"prompt": "Say", "completion": " yes"},
    "dpo": {"prompt": "Say", "chosen": " yes", "rejected": " no"},
    "es": {"prompt": "Say"},
}


def make(
    method: str, folder: Any, rows: Any, *, tokenizer: Any = None, eval_dataset: Any = None, **settings: Any
) -> Trainer:
    """A trainer of a tiny model for one step."""
    given: dict[str, Any] = {"train_dataset": rows, "processing_class": tokenizer or byte_tokenizer()}
    given["eval_dataset"] = eval_dataset
    if method == "reward":
        args: Any = MultiHeadRewardConfig(
            str(folder), head_names=["tidy"], **{**QUIET_REWARD, "max_steps": 1, **settings}
        )
        return MultiHeadRewardTrainer(tiny_sequence_classifier(["tidy"]), args, **given)
    if method == "barrier":
        args = KLBarrierConfig(str(folder), **{**QUIET_BARRIER, "max_steps": 1, **settings})
        return KLBarrierTrainer(lively_lm(1), args, **given)
    if method == "dpo":
        args = ScheduledDPOConfig(str(folder), **{**QUIET_DPO, "kl_steps": 0, "max_steps": 1, **settings})
        return ScheduledDPOTrainer(lively_lm(1), args=args, **given)
    args = ESLoRAConfig(str(folder), **{**QUIET_ES, "max_steps": 1, **settings})
    return ESLoRATrainer(lively_lm(1), mean_code, args, **given)


def four(method: str, **changes: Mapping[int, Any] | Sequence[Any]) -> dict[str, list[Any]]:
    """Columns of four good rows, with other values in some rows of a column, or in all."""
    columns = {name: [value] * 4 for name, value in GOOD[method].items()}
    for name, values in changes.items():
        columns[name] = (
            [values.get(n, columns[name][n]) for n in range(4)] if isinstance(values, Mapping) else list(values)
        )
    return columns


def stream(columns: Mapping[str, Sequence[Any]]) -> IterableDataset:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return IterableDataset.from_generator(lambda: iter(rows))
