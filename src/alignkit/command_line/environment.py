"""What a bug report needs to say of the machine and its packages. No variable that could hold a secret is read."""

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from alignkit._version import __version__
from alignkit.provenance import git_commit, installed_version, package_versions
from alignkit.versions import ALLOW_UNTESTED_TRL, is_tested, requirements, tested_ranges, untested_packages

# Of these the content says how numbers came about, and none is a place where people keep tokens.
VARIABLES = (
    ALLOW_UNTESTED_TRL,
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "WORLD_SIZE",
)
ACCELERATE_KEYS = ("distributed_type", "num_machines", "num_processes", "mixed_precision", "use_cpu")


def environment() -> dict[str, str]:
    """Name -> what is installed or set. Imports torch, and says so where that fails."""
    rows = {
        "alignkit": f"{__version__}, commit {git_commit() or 'unknown: no checkout'}",
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    tested = tested_ranges()
    for name, version in package_versions().items():
        if name != "alignkit":
            rows[name] = with_range(version, tested.get(name))
    rows |= {f"extra {name}": text for name, text in extras().items()}
    rows |= {f"untested {name}": line for name, line in untested_packages().items()}
    rows["device"] = describe_device()
    rows |= torch_rows()
    rows["accelerate config"] = accelerate_default()
    return rows | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def environment_text() -> str:
    """The rows, one a line, names in a column."""
    rows = environment()
    width = max(map(len, rows))
    return "".join(f"{name:<{width}}  {value}\n" for name, value in rows.items())


def with_range(version: str, requirement: Requirement | None) -> str:
    """A version, and whether it is one of those that alignkit is tested with."""
    if requirement is None or not requirement.specifier or version == "not installed":
        return version
    if is_tested(version, requirement):
        return f"{version} (tested: {requirement.specifier})"
    return f"{version} OUTSIDE OF WHAT IS TESTED: {requirement.specifier}"


def extras() -> dict[str, str]:
    """Extra -> `installed`, or the packages that it lacks."""
    described = {}
    for extra in sorted(metadata.metadata("alignkit").get_all("Provides-Extra") or []):
        of_extra = [one for one in requirements() if one.marker and one.marker.evaluate({"extra": extra})]
        missing = [one.name for one in of_extra if installed_version(one.name) == "not installed"]
        described[extra] = f"lacks {', '.join(missing)}" if missing else "installed"
    return described


def describe_device() -> str:
    """The NVIDIA GPUs that the driver reports, else the CPU."""
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return "; ".join(answer.stdout.splitlines())
        return f"nvidia-smi failed with exit code {answer.returncode}: {' '.join(answer.stdout.split())}"
    return f"cpu, {platform.machine()}, {os.cpu_count()} cores"


def torch_rows() -> dict[str, str]:
    """What torch was built for, and which devices it can use."""
    try:
        import torch
    except (ImportError, OSError) as error:  # an OSError: a library of CUDA's that is missing
        return {"torch devices": f"torch cannot be imported: {' '.join(str(error).split())}"}
    found = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "torch built for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU",
        "torch devices": "; ".join(found) or "cpu",
        "torch threads": str(torch.get_num_threads()),
    }


def accelerate_default() -> str:
    """The configuration that `accelerate launch` uses without another, but for addresses and accounts."""
    try:
        from accelerate.commands.config.config_args import default_config_file
    except (ImportError, OSError) as error:
        return f"accelerate cannot be imported: {' '.join(str(error).split())}"
    path = Path(default_config_file)
    if not path.is_file():
        return "none"
    import yaml

    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return f"{path} is no YAML"
    known = content if isinstance(content, dict) else {}
    return ", ".join(f"{key} {known[key]}" for key in ACCELERATE_KEYS if key in known) or "empty"


def print_environment() -> None:
    """Print all rows."""
    sys.stdout.write(environment_text())
