"""Where the time of a run goes. The clock is always in exactly one phase, so that the phases add up to the whole."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

TIMING_FILE = "time_breakdown.json"

Phase = Literal["setup", "noise", "generate", "reward", "update", "eval", "checkpoint"]
PHASES: tuple[Phase, ...] = get_args(Phase)
ONE_TIME: tuple[Phase, ...] = ("setup",)


class Stopwatch:
    """Seconds of each phase. It starts in `"setup"`.

    `"update"` is everything from the rewards of a step to the noise of the next: shaping, the estimate, the optimiser,
    the log and the callbacks. `"checkpoint"` is all that is written besides.
    """

    def __init__(self) -> None:
        self.phase: Phase = "setup"
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._since: float | None = time.perf_counter()

    def enter(self, phase: Phase) -> None:
        """The clock is in this phase from now on; it runs again if it was stopped."""
        self._take()
        self.phase = phase
        self._since = time.perf_counter()

    def stop(self) -> None:
        """No phase is running, as between the trainer's making and its training."""
        self._take()
        self._since = None

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Within the context the clock is in this phase, and back where it was after it."""
        before, was_running = self.phase, self._since is not None
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)
            if not was_running:
                self.stop()

    def seconds(self) -> dict[Phase, float]:
        """Seconds of each phase until now."""
        if self._since is not None:
            self.enter(self.phase)
        return dict(self._seconds)

    def _take(self) -> None:
        if self._since is not None:
            self._seconds[self.phase] += time.perf_counter() - self._since


def write_breakdown(folder: Path, seconds: Mapping[Phase, float], *, steps: int) -> None:
    """Write `time_breakdown.json`: the whole, and the seconds, share and kind of each phase."""
    whole = sum(seconds.values())
    phases: dict[str, dict[str, Any]] = {
        phase: {
            "seconds": value,
            "share": value / whole,
            "kind": "once" if phase in ONE_TIME else "per step",
        }
        for phase, value in seconds.items()
    }
    breakdown = {"wall_s": whole, "steps": steps, "phases": phases}
    (folder / TIMING_FILE).write_text(json.dumps(breakdown, indent=2) + "\n", encoding="utf-8")
