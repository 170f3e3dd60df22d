"""What a training step adds to the log: sums and counts per head, named when they are read."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignkit.metrics import MetricSums
from alignkit.reward_model.comparisons import Comparisons
from alignkit.reward_model.losses import LossOutput

HEAD_PREFIX = "head/"


@torch.no_grad()
def add_step(
    sums: MetricSums, scores: Tensor, comparisons: Comparisons, objective: LossOutput, attention_mask: Tensor
) -> None:
    """Add a micro-batch: accuracy and margin (each pair or positive counts once), the loss per head, scores, tokens.

    Args:
        sums: where to add.
        scores (`(M, K)`): scores of the texts.
        comparisons: comparisons over them.
        objective: what the loss function returned for them.
        attention_mask (`(M, T)`): of the texts.
    """

    def per_head(values: Tensor) -> Tensor:
        return values.new_zeros(scores.shape[1]).index_add(0, comparisons.head, values)

    correct = (1 + objective.gap.sign()) / 2 + 0.0 * objective.gap  # the last term keeps NaN, which has no sign
    units = per_head(comparisons.unit)
    for name, values in (("accuracy", correct), ("margin", objective.gap)):
        totals = per_head(comparisons.unit * values)
        sums.add_mean(name, totals.sum()[None], units.sum()[None])
        sums.add_mean(f"{HEAD_PREFIX}{name}", totals, units)
    losses = per_head(comparisons.weight * objective.per_comparison)
    sums.add_mean(f"{HEAD_PREFIX}loss", losses, per_head(comparisons.weight))
    sums.add_mean("mean_reward", scores.sum()[None], scores.new_full((1,), scores.numel()))
    sums.add_extremes("reward", scores.amin()[None], scores.amax()[None])
    sums.add_total("num_tokens", attention_mask.sum()[None])


def named_metrics(metrics: Mapping[str, Sequence[float]], head_names: Sequence[str]) -> dict[str, float]:
    """Metrics under the names of the log: `<metric>`, and `<head>/<metric>` of the heads that had a comparison."""
    logs: dict[str, float] = {}
    for name, values in metrics.items():
        if not name.startswith(HEAD_PREFIX):
            logs[name] = values[0]
            continue
        metric = name.removeprefix(HEAD_PREFIX)
        logs |= {f"{head}/{metric}": value for head, value in zip(head_names, values, strict=True) if value == value}
    return logs
