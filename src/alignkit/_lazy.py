"""Public names of a package, imported on first use (PEP 562)."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_names(package: str, module_of: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: its name.
        module_of: the module in which each public name is found.
    """
    names = vars(sys.modules[package])

    def get(name: str) -> object:
        if name not in module_of:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; its public names are {names['__all__']}"
            )
        names[name] = getattr(import_module(module_of[name]), name)  # the next access does not come here
        return names[name]

    def list_names() -> list[str]:
        return sorted({*names, *module_of})

    return get, list_names
