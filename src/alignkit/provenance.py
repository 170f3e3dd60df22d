"""Where a number comes from: the commit of this package, the versions below it, the device."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit._version import __version__

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")


def package_versions() -> dict[str, str]:
    """Version of alignkit and of every package it stands on; "not installed" for one that is missing."""
    return {"alignkit": __version__, **{name: installed_version(name) for name in PACKAGES}}


def installed_version(package: str) -> str:
    """Version of an installed package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def device_name(device: "torch.device") -> str:
    """Name of the GPU, or the kind of another device and the machine it is in, such as `cpu, x86_64`."""
    if device.type != "cuda":
        return f"{device.type}, {platform.machine()}"
    import torch  # here, because `alignkit env` reads the versions without loading any of the packages

    return torch.cuda.get_device_name(device)


def git_commit() -> str | None:
    """The commit of the checkout that this package is part of; a `-dirty` behind it says that files were changed."""
    folder = str(Path(__file__).parent)
    try:
        # An environment may lie inside a repository that is not ours: the package must be among its tracked files.
        subprocess.run(["git", "-C", folder, "ls-files", "--error-unmatch", "."], capture_output=True, check=True)
        command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
