"""What is written beside the history: where the time went, and two pictures."""

from pathlib import Path

from alignkit.es_lora.history import HISTORY_FILE, read_history
from alignkit.es_lora.timing import Stopwatch, write_breakdown

EVOLUTION_PICTURE = "evolution.png"
TIMING_PICTURE = "time_breakdown.png"


def write_report(folder: Path, stopwatch: Stopwatch, steps: int) -> None:
    """Draw `evolution.png` from the history and `time_breakdown.png`, and write `time_breakdown.json` last."""
    with stopwatch.during("checkpoint"):
        # matplotlib is slow to load and needed here alone.
        from alignkit.es_lora.plots import save_evolution, save_time_breakdown

        save_evolution(folder / EVOLUTION_PICTURE, read_history(folder / HISTORY_FILE))
        save_time_breakdown(folder / TIMING_PICTURE, stopwatch.seconds())
        write_breakdown(folder, stopwatch.seconds(), steps=steps)
