"""The task's data on disk, made once for all runs of an experiment.

A dataset that lies in a folder has its map cache there too, so that the first run tokenises for all of them.
"""

import hashlib
import json
import shutil
from pathlib import Path

from datasets import Dataset, load_from_disk

from alignkit.experiments.locks import locked
from alignkit.storage import read_json, whole_folder, write_json

DIGESTS_FILE = "data.json"


def materialise(datasets: dict[str, Dataset], folder: Path) -> None:
    """Write the datasets into the folder, or check that they are those that are there. Waits for others who do so.

    Raises:
        ValueError: the folder has others; names the set.
    """
    digests = {name: rows_digest(dataset) for name, dataset in datasets.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "data.lock"):
        if (folder / DIGESTS_FILE).exists():
            _compare(read_json(folder / DIGESTS_FILE), digests, folder)
            return
        for name, dataset in datasets.items():
            shutil.rmtree(folder / name, ignore_errors=True)  # of an attempt that was killed
            with whole_folder(folder / name) as partial:
                dataset.save_to_disk(partial)
        write_json(folder / DIGESTS_FILE, digests)


def load_datasets(folder: Path) -> dict[str, Dataset]:
    """What `materialise` wrote, by name."""
    return {name: load_from_disk(folder / name) for name in read_json(folder / DIGESTS_FILE)}


def rows_digest(dataset: Dataset) -> str:
    """SHA-256 of the rows in their order, whatever files they lie in."""
    total = hashlib.sha256()
    for row in dataset:
        total.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return total.hexdigest()


def _compare(before: dict[str, str], now: dict[str, str], folder: Path) -> None:
    changed = [name for name in (*before, *now) if before.get(name) != now.get(name)]
    if changed:
        raise ValueError(
            f"the task's {changed[0]} set is not the one that {folder.parent} was started with; runs on different "
            "data cannot be compared: give another output_dir, or make the task give the same rows each time"
        )
