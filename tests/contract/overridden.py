"""Members of a parent that a trainer overrides."""

import inspect
from collections.abc import Iterable


def parameters_of(owner: type, name: str) -> list[str]:
    return list(inspect.signature(getattr(owner, name)).parameters)


def counting_calls(trainer_class: type, names: Iterable[str]) -> tuple[type, dict[str, int]]:
    """A subclass that counts the calls of the named members, and its counts."""
    calls = dict.fromkeys(names, 0)

    def counted(name):
        def method(self, *args, **kwargs):
            calls[name] += 1
            return getattr(trainer_class, name)(self, *args, **kwargs)

        return method

    return type("Spy", (trainer_class,), {name: counted(name) for name in calls}), calls
