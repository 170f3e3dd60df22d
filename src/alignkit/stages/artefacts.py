"""What a stage leaves, under a name that follows from all that it was made from.

artefacts/<kind>-<fingerprint>/
    config.json     what the stage is to do
    log.txt         what its process prints
    trainer/        checkpoints, until the stage is done
    artefact/       the result, whole or not there: a model with its tokenizer, or scores and answers
        stage.json  the log of the training, tokens, seconds, versions
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit._version import __version__
from alignkit.experiments.run_folder import RunFolder
from alignkit.storage import digest, read_json

LENGTH = 16  # hexadecimal digits of a fingerprint
RECORD_FILE = "stage.json"


@dataclass(frozen=True)
class Node:
    """A stage with everything that its result follows from.

    Attributes:
        kind: `start`, `sft`, `reward`, `rl`, `es`, `dpo` or `evaluate`.
        config: what its process reads, paths included.
        fingerprint: of what the result follows from; paths and names are no part of it.
        inputs: stages whose artefacts it needs.
    """

    kind: str
    config: dict[str, Any]
    fingerprint: str
    inputs: tuple["Node", ...] = field(default=(), repr=False)

    @property
    def id(self) -> str:
        return f"{self.kind}-{self.fingerprint}"


def fingerprint(kind: str, facts: Mapping[str, Any]) -> str:
    """Digest of the kind of a stage, this package's version and the facts, whatever the order of their keys.

    Args:
        facts: settings, seed, digest of the rows, fingerprints of the inputs: plain values.

    Raises:
        ValueError: a value that JSON cannot hold, such as NaN or a date.
    """
    whole = {"kind": kind, "alignkit": __version__, **facts}
    try:
        text = json.dumps(whole, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the settings of {kind} cannot be written down: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def model_digest(model: str) -> str:
    """What a model that no stage made is known by: the content of its folder, or its name on the hub."""
    folder = Path(model)
    if not folder.is_dir():
        return f"hub:{model}"
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name} {digest(path)}\n".encode())
    return total.hexdigest()


@dataclass(frozen=True)
class StageFolder(RunFolder):
    """The folder of a stage."""

    @property
    def artefact(self) -> Path:
        return self.path / "artefact"

    @property
    def is_done(self) -> bool:
        return self.artefact.exists()

    def record(self) -> dict[str, Any]:
        """What the stage noted of itself when it was done."""
        return read_json(self.artefact / RECORD_FILE)


def folder_of(root: Path, node: Node) -> StageFolder:
    """Where a stage has its files, below the output folder of a pipeline."""
    return StageFolder(root / "artefacts" / node.id)
