"""`manifest.json`: the sizes and hashes of a checkpoint's files, the last file to be written.

A checkpoint whose manifest fits is as it was saved. The manifest holds a hash of its own contents too, so that damage
to it is not blamed on the files it names.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.storage import digest, read_json, sync, write_json

MANIFEST = "manifest.json"
FORMAT = 1


class DamagedCheckpointError(ValueError):
    """A checkpoint is not what was saved, or was not saved to its end. The message names the file."""


def write_manifest(folder: Path, *, world_size: int) -> None:
    """Sync every file of a folder to the disk, then describe them in its manifest.

    Args:
        world_size: number of processes of the training, each of which has random states of its own.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sync(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest(path)}
    body = {"format": FORMAT, "world_size": world_size, "files": files}
    for directory in (path for path in folder.rglob("*") if path.is_dir()):
        sync(directory)
    write_json(folder / MANIFEST, {**body, "sha256": _hash_of(body)})


def check_manifest(folder: Path) -> dict[str, Any]:
    """Compare every file with the manifest, and return the manifest. Files that it does not name are not looked at.

    Raises:
        DamagedCheckpointError: the manifest cannot be read, or a file is missing, has another size or other contents.
        FileNotFoundError: there is no manifest.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except ValueError as error:  # text that is no UTF-8, too
        raise DamagedCheckpointError(f"{path} is damaged: {error}") from error
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != _hash_of(body):
        raise DamagedCheckpointError(f"{path} is damaged: its contents do not have the hash that it states")
    if manifest["format"] != FORMAT:
        raise DamagedCheckpointError(
            f"{path} has format {manifest['format']}, of a newer alignkit than this one, which reads format {FORMAT}"
        )
    for name, stated in manifest["files"].items():
        _check_file(folder / name, stated)
    return manifest


def _check_file(path: Path, stated: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise DamagedCheckpointError(f"{path} is missing; the checkpoint was saved with it")
    size = path.stat().st_size
    if size != stated["bytes"]:
        raise DamagedCheckpointError(f"{path} has {size} bytes; it was saved with {stated['bytes']}")
    if digest(path) != stated["sha256"]:
        raise DamagedCheckpointError(f"{path} is not what was saved: its SHA-256 differs from that in {MANIFEST}")


def _hash_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
