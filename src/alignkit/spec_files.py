"""YAML files that describe a run, checked key by key before anything is loaded."""

import dataclasses
import difflib
import enum
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")
LINE_BREAKS = re.compile("[\r\x85\u2028\u2029]")
MOST_NODES = 1_000_000
IN_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", NoneType: "nothing"}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 5e-5 as a string and takes the last of two equal keys; this loader does neither.

    Nor does it take aliases that would grow beyond `MOST_NODES`, or a scalar that its tag does not fit.
    """

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _count_nodes(node, {})
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str):
                value.encode()
        except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:  # of constructors
            reason = "half of a surrogate pair" if isinstance(error, UnicodeEncodeError) else error
            raise ValueError(
                f"line {node.start_mark.line + 1}: {node.value[:40]!r} cannot be read: {reason}"
            ) from error
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {key.start_mark.line + 1}: a key is a list or a mapping; write a word")
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: {key.value} is given twice; remove one of them")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _count_nodes(node: Any, known: dict[int, int]) -> int:
    """Nodes below a node when every alias is written out.

    Raises:
        ValueError: more than `MOST_NODES`, or an anchor that holds itself.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    line = node.start_mark.line + 1
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError(f"line {line}: an anchor holds an alias of itself; write the values out")
        return known[id(node)]
    known[id(node)] = 0
    children = [each for pair in node.value for each in (pair if isinstance(pair, tuple) else (pair,))]
    total = 1 + sum(_count_nodes(child, known) for child in children)
    if total > MOST_NODES:
        raise ValueError(f"line {line}: aliases make {total} values of it, and {MOST_NODES} are the most")
    known[id(node)] = total
    return total


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


class _Dumper(yaml.SafeDumper):
    """Puts a text in quotes that `_Loader` would not read as one, or not as it is."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # What is written bare of these line breaks is read as a blank.
        style = '"' if LINE_BREAKS.search(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
_Dumper.add_representer(str, _Dumper.represent_text)


def to_yaml(values: Mapping[str, Any]) -> str:
    """A file that [`read_spec_file`] reads as these values, in their order."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_value(text: str) -> Any:
    """A value as it stands in a file: `5e-5` is a number, `[a, b]` a list, `true` a truth value.

    Raises:
        ValueError: no YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r:.200} is no YAML: {error}") from error
    except RecursionError:
        raise ValueError(f"{text!r:.60} ... is nested too deeply") from None


def read_spec_file(path: Path, build: Callable[[Any], T]) -> T:
    """What `build` makes of the content of a YAML file.

    Raises:
        ValueError: no YAML or no UTF-8, a key that is given twice, or what `build` raises; the message names the file.
        OSError: the file cannot be read.
    """
    try:
        return build(yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def of_file_or_flag(path: Path | str | None) -> Iterator[None]:
    """Let an error in values that a file and flags gave together name the file, where there is one."""
    try:
        yield
    except ValueError as error:
        if path is None:
            raise
        raise ValueError(f"{path}, or a flag: {error}") from error


def known_mapping(value: Any, where: str, keys: Collection[str]) -> dict[str, Any]:
    """The mapping under a key, all of whose keys are known; nothing there is an empty one.

    Raises:
        ValueError: no mapping, or an unknown key; names the nearest one.
    """
    if value is None and where:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{where or 'the file'} holds {value!r:.60} where keys with values should be")
    for key in value:
        check_known(key, _name(where, key), keys)
    return dict(value)


def check_known(key: Any, name: str, keys: Collection[str]) -> None:
    """Raise a ValueError with the nearest key unless the key is among the known ones; `name` is what it is called."""
    if key not in keys:
        nearest = difflib.get_close_matches(str(key), keys, n=1, cutoff=0.0)
        raise ValueError(f"{name} is no known key; the nearest is {nearest[0]!r}")


def required(values: Mapping[str, Any], keys: Sequence[str], what: str) -> None:
    """Raise a ValueError that names the first key without a value."""
    missing = [key for key in keys if values.get(key) is None]
    if missing:
        raise ValueError(f"{missing[0]} is missing; {what} needs {', '.join(keys)}")


def construct(kind: Callable[..., T], where: str, values: Mapping[str, Any]) -> T:
    """`kind(**values)`, whose complaints become a ValueError that names the key."""
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:  # a TypeError, too, comes of what is in the file
        raise ValueError(f"{where}: {error}") from error


def fitted(kind: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values for fields of a dataclass, each of the type that the field is declared with.

    Whole numbers become floats where the field is one, lists become tuples where it is one. A class that YAML cannot
    write fits no value.

    Raises:
        ValueError: names the key, its value and what it must be.
    """
    hints = get_type_hints(kind)
    return {name: fitted_value(value, hints[name], _name(where, name)) for name, value in values.items()}


def fitted_value(value: Any, hint: Any, name: str) -> Any:
    """A value of the type that the hint names; see [`fitted`]."""
    options = _options(hint)
    if not any(_fits(value, option) for option in options):
        words = " or ".join(dict.fromkeys(_in_words(option) for option in options if option is not NoneType))
        raise ValueError(f"{name} is {value!r:.200}; it must be {words}")
    if isinstance(value, int) and not isinstance(value, bool) and float in options and int not in options:
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"{name} has more than 300 digits; give a smaller number") from error
    if isinstance(value, list) and not any(get_origin(option) is list or option is list for option in options):
        return tuple(value)
    return value


def check_number(name: str, value: Any, *, whole: bool = False) -> None:
    """Raise a ValueError that names the key unless its value is a number."""
    fitted_value(value, int if whole else float, name)


def field_names(kind: Any, left_out: Collection[str] = ()) -> list[str]:
    """Fields of a dataclass that its constructor takes, but for those that are set elsewhere."""
    return [field.name for field in dataclasses.fields(kind) if field.init and field.name not in left_out]


def _name(where: str, key: Any) -> str:
    """A key as messages call it; at the top of a file `where` is empty."""
    return f"{where}.{key}" if where else str(key) or "''"


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    container = origin or hint
    if hint is Any:
        return True
    if hint is float or hint is int:
        return isinstance(value, int | float if hint is float else int) and not isinstance(value, bool)
    if isinstance(container, type) and container not in (str, bytes) and issubclass(container, Mapping):
        return isinstance(value, Mapping)
    if isinstance(container, type) and container not in (str, bytes) and issubclass(container, Collection):
        items = inner[:1] if inner else (Any,)
        return isinstance(value, list) and all(_fits(item, items[0]) for item in value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    return isinstance(hint, type) and isinstance(value, hint)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {list(get_args(hint))}"
    container = get_origin(hint) or hint
    if container in IN_WORDS:
        return IN_WORDS[container]
    if isinstance(container, type) and issubclass(container, enum.Enum):
        return f"one of {[member.value for member in container]}"
    if isinstance(container, type) and issubclass(container, Mapping):
        return "keys with values"
    return "a list" if isinstance(container, type) and issubclass(container, Collection) else f"a {container}"
