"""Which members of its parents a trainer overrides or uses, found in its classes and their source."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# What Python itself puts into a class.
OF_EVERY_CLASS = {"__annotations__", "__dict__", "__doc__", "__module__", "__parameters__", "__weakref__"}


def our_classes(trainer_class: type) -> list[type]:
    """The trainer and our mixins among its bases."""
    return [base for base in trainer_class.__mro__ if base.__module__.startswith("alignkit.")]


def overridden(trainer_class: type, parent: type) -> set[str]:
    """Members that one of our classes defines and the parent has as well."""
    ours = {name for base in our_classes(trainer_class) for name in vars(base)}
    return {name for name in ours - OF_EVERY_CLASS if hasattr(parent, name)}


def used(trainer_class: type, parent: Any) -> set[str]:
    """Members of `parent`, a trainer, that our classes read or set and do not define.

    They are looked for as `self.NAME` in our classes, and as `trainer.NAME` in the modules beside them.
    """
    named = set()
    for base in our_classes(trainer_class):
        named |= attributes_of("self", textwrap.dedent(inspect.getsource(base)))
    for path in Path(inspect.getfile(our_classes(trainer_class)[0])).parent.glob("*.py"):
        named |= attributes_of("trainer", path.read_text(encoding="utf-8"))
    return {name for name in named - overridden(trainer_class, type(parent)) if hasattr(parent, name)}


def attributes_of(variable: str, source: str) -> set[str]:
    """Every NAME of `variable.NAME` in the source."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == variable
    }


def signature_of(owner: Any, name: str) -> str | None:
    """Names of the parameters, such as `self, model, *args`; None for what is not a function."""
    member = getattr(owner, name, None)
    if not inspect.isroutine(member):
        return None
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return ", ".join(stars.get(each.kind, "") + name for name, each in inspect.signature(member).parameters.items())


def takes_all_of(ours: Callable[..., Any], parents: Callable[..., Any]) -> bool:
    """Whether ours can be called with every parameter of the parent's, by position and by name."""
    names = [each.name for each in inspect.signature(parents).parameters.values() if each.kind not in (2, 4)]
    try:
        inspect.signature(ours).bind(*names)
        inspect.signature(ours).bind(names[0], **dict.fromkeys(names[1:]))
    except TypeError:
        return False
    return True


def noting_callers(trainer_class: type, names: Iterable[str], *, stop_at: str) -> tuple[type, dict[str, set[str]]]:
    """A subclass that notes which package each of the named members is called by, and its notes.

    Every call goes on to the member, but for that of `stop_at`.
    """
    callers: dict[str, set[str]] = {name: set() for name in names}

    def noting(name: str) -> Callable[..., Any]:
        def method(self, *args, **kwargs):
            callers[name].add(sys._getframe(1).f_globals["__name__"].split(".")[0])
            return None if name == stop_at else getattr(trainer_class, name)(self, *args, **kwargs)

        return method

    return type("Spy", (trainer_class,), {name: noting(name) for name in callers}), callers
