"""A claim: a number, the limit and the target that it is compared with, and whether it holds."""

import math
import statistics
from dataclasses import dataclass, field
from typing import Any, Literal

MeasuredIn = Literal["CPU time", "wall time", "bytes", "row-steps", "gradient entries"]
NO_REASON = "not known: it held when the target was set"


@dataclass(frozen=True)
class Claim:
    """A number, what it is compared with, and whether it holds.

    Attributes:
        name (`str`): what is claimed, in words.
        measured_in (`str`): what the number is a ratio of.
        values (`list[float]`): the number, once per paired run; their median is the result.
        relation, target: how the median must stand to what.
        limit (`float`, *optional*): what no implementation can pass, and `limit_is` why.
        if_missed (`str`): the reason, where a miss is understood; recorded only when the target is missed.
        raw (`dict`): every time that was taken.
        also (`dict`): further numbers that are no claim.
    """

    name: str
    measured_in: MeasuredIn
    values: list[float]
    relation: Literal["<=", ">="]
    target: float
    limit: float | None
    limit_is: str
    setting: dict[str, Any]
    if_missed: str = NO_REASON
    raw: dict[str, Any] = field(default_factory=dict)
    also: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        median = statistics.median(self.values)
        if not math.isfinite(median):
            raise ValueError(f"{self.name}: the median of {self.values} is not a number")
        met = median <= self.target if self.relation == "<=" else median >= self.target
        return {
            "claim": self.name,
            "measured_in": self.measured_in,
            "target": f"{self.relation} {self.target}",
            "median": median,
            "met": met,
            "why_missed": None if met else self.if_missed,
            "min": min(self.values),
            "max": max(self.values),
            "runs": len(self.values),
            "limit": self.limit,
            "median_over_limit": median / self.limit if self.limit else None,
            "limit_is": self.limit_is,
            "setting": self.setting,
            "also": self.also,
            "raw": {"values": self.values, **self.raw},
        }

    def print(self) -> None:
        """One line: the number and its spread, the limit, their ratio, the target, whether it holds."""
        result = self.record()
        met = "met" if result["met"] else "MISSED"
        spread = f"({result['min']:.3g} to {result['max']:.3g})"
        limit = f"limit {self.limit:.4g}, of it {result['median_over_limit']:.3f}" if self.limit else ""
        print(f"{result['median']:7.3f} {spread:18} {limit:28} {result['target']:9} {met:6} {self.name}", flush=True)
