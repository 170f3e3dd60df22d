"""Settings as points: what is gained on the task, and what in general capability."""

from collections.abc import Sequence
from dataclasses import dataclass

from alignkit.evaluation.comparison import Change, Measure
from alignkit.evaluation.results import PROPORTION
from alignkit.evaluation.statistics import Interval
from alignkit.evaluation.verdicts import Comparison


@dataclass(frozen=True)
class Point:
    """Gains of a setting over the baseline, in percentage points for proportions; more is better in both.

    Attributes:
        number: of the setting.
        on_front: no other setting is better in one and at least as good in the other.
    """

    number: int
    general: float
    task: float
    general_interval: Interval | None
    task_interval: Interval | None
    on_front: bool


def pareto_points(
    task: Measure, task_changes: Sequence[Change], general: Measure, general_changes: Sequence[Change]
) -> list[Point]:
    """The gains of every setting that was compared with a baseline on both measures."""
    gains = []
    by_number = {change.setting.number: change.comparison for change in general_changes}
    for change in task_changes:
        other = by_number.get(change.setting.number)
        if change.comparison and other:
            gains.append((change.setting.number, _gain(general, other), _gain(task, change.comparison)))
    points = []
    for number, (x, x_interval), (y, y_interval) in gains:
        beaten = any(a >= x and b >= y and (a, b) != (x, y) for _, (a, _), (b, _) in gains)
        points.append(Point(number, x, y, x_interval, y_interval, not beaten))
    return points


def _gain(measure: Measure, comparison: Comparison) -> tuple[float, Interval | None]:
    """The difference such that more is better, in percentage points for a proportion."""
    factor = (100 if measure.unit == PROPORTION else 1) * (1 if measure.higher_is_better else -1)
    interval = comparison.interval
    low_high = None if interval is None else sorted((factor * interval[0], factor * interval[1]))
    return factor * comparison.difference, None if low_high is None else (low_high[0], low_high[1])
