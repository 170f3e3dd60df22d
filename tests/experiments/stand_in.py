"""A run that trains nothing, for tests of what starts runs: how it ends follows from its learning rate.

1: it crashes;  2: it is killed the first time;  3: it is killed each time;  4: it takes a minute
5: it ends without a word;  6: it crashes the first time
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from alignkit.evaluation.results import Result, append_result


def main(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    attempts = folder / "attempts"
    before = int(attempts.read_text()) if attempts.exists() else 0
    attempts.write_text(str(before + 1))
    (folder / "began").write_text(str(time.time()))
    kind = config["training"].get("learning_rate", 0)
    if kind == 1 or (kind == 6 and before == 0):
        raise RuntimeError("out of luck")
    if kind == 3 or (kind == 2 and before == 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == 4:
        time.sleep(60)
    if kind == 5:
        return
    time.sleep(0.2)
    beta = config["training"].get("beta", 0.1)
    record = Result(
        **{"run": config["run"], "kind": config["kind"], "item_set": "held_out", "metric": "margin", "role": "task"},
        **{"higher_is_better": True, "unit": "nats", "items": {"a": -((beta - 0.3) ** 2)}, "seed": config["seed"]},
        **{"commit": None, "versions": {}, "device": "cpu", "wall_time_s": 0.0},
    )
    append_result(Path(config["results"]), record)
    (folder / "ended").write_text(str(time.time()))
    if config["kind"] == "run":
        (Path(config["cache"]) / "ready").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
