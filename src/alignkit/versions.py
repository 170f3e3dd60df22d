"""Whether the packages that are installed are among those that this version of alignkit is tested with.

TRL changes what its trainers call in one minor of four, and an override that is no longer called raises nothing: the
training goes on without it. So an untested TRL is an error, unless it is asked for; any other package is a warning.
"""

import os
import warnings
from functools import cache
from importlib import metadata

from packaging.requirements import Requirement

from alignkit._version import __version__
from alignkit.provenance import package_versions

ALLOW_UNTESTED_TRL = "ALIGNKIT_ALLOW_UNTESTED_TRL"


class UntestedVersionError(ImportError):
    """The trainers are not imported over a TRL that they were not tested with."""


@cache  # so that a process is warned once
def check_versions() -> None:
    """Refuse an untested TRL, and warn of any other package that is outside of its range. Imports none of them.

    Raises:
        UntestedVersionError: TRL is outside of the range, and `ALIGNKIT_ALLOW_UNTESTED_TRL` is not 1.
    """
    for name, line in untested_packages().items():
        if name != "trl":
            warnings.warn(line, stacklevel=2)
        elif os.environ.get(ALLOW_UNTESTED_TRL) != "1":
            raise UntestedVersionError(f"{line}, or set {ALLOW_UNTESTED_TRL}=1 to try this one", name=name)


def untested_packages() -> dict[str, str]:
    """Package -> one line that says what is installed, what is tested, and how to get it; empty where all is well."""
    tested = tested_ranges()
    return {
        name: f"{name} {version} is not among the versions that alignkit {__version__} is tested with: install one by "
        f"`pip install '{name}{tested[name].specifier}'`"
        for name, version in package_versions().items()
        if name in tested and not is_tested(version, tested[name])
    }


def is_tested(version: str, requirement: Requirement) -> bool:
    """Whether a version is one that `requirement` allows; a package that is not installed breaks no rule."""
    return version == "not installed" or requirement.specifier.contains(version, prereleases=True)


def tested_ranges() -> dict[str, Requirement]:
    """Package -> the versions that this version of alignkit is tested with."""
    return {requirement.name: requirement for requirement in requirements() if requirement.marker is None}


def requirements() -> list[Requirement]:
    """What alignkit says that it needs, its extras included; nothing for a copy that was not installed."""
    try:
        return [Requirement(text) for text in metadata.requires("alignkit") or []]
    except metadata.PackageNotFoundError:
        return []
