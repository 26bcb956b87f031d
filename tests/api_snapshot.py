"""The public names and their signatures, sorted: `python -m tests.api_snapshot` prints what `api.txt` holds.

Public is what can be imported from `memwarden` and from its modules one level down without a leading underscore,
the command line excepted: its contract is its options. A package's public names are its `__all__`.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING, Any

import memwarden
from memwarden.facts import Fact

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_NO_API = {"cli", "__main__"}
_SIMPLE = (int, float, str, bytes, bool, type(None))


class _Text:
    """Prints as the text itself: annotations are strings, and would be shown in quotes."""

    def __init__(self, text: object) -> None:
        self._text = text if isinstance(text, str) else getattr(text, "__name__", str(text))

    def __repr__(self) -> str:
        return self._text


def modules() -> Iterator[ModuleType]:
    """The package itself and the public modules one level down."""
    yield memwarden
    for found in pkgutil.iter_modules(memwarden.__path__):
        if not found.name.startswith("_") and found.name not in _NO_API:
            yield importlib.import_module(f"memwarden.{found.name}")


def names_of(module: ModuleType) -> list[str]:
    """`__all__`, or what the module itself defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    own = (
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", module.__name__) == module.__name__
    )
    return sorted(name for name in own if not inspect.ismodule(vars(module)[name]) and name not in _NOISE)


_NOISE = {"annotations", "TYPE_CHECKING"}


def _signature(thing: Any) -> str:
    if inspect.isbuiltin(thing):
        return "(...)"  # some Pythons know more about them than others
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return "(...)"
    words = [
        each.replace(
            annotation=each.annotation if each.annotation is each.empty else _Text(each.annotation),
            default=each.default if each.default is each.empty else _Text(_value(each.default)),
        )
        for each in found.parameters.values()
    ]
    end = found.return_annotation
    return str(found.replace(parameters=words, return_annotation=end if end is found.empty else _Text(end)))


def _value(value: object) -> str:
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    plain = isinstance(value, _SIMPLE) or value in ((), {})
    return repr(value) if plain else f"<{type(value).__name__}>"


def _fact(name: str, kind: type[Fact]) -> Iterator[str]:
    bases = [base for base in reversed(kind.__mro__) if "__annotations__" in vars(base)]
    types = {key: text for base in bases for key, text in vars(base)["__annotations__"].items()}
    fields = inspect.signature(kind.__init__).parameters
    for field in kind._fields:
        default = fields[field].default
        end = "" if default is inspect.Parameter.empty else f" = {_value(default)}"
        yield f"{name}.{field}: {types[field]}{end}"


def _class(name: str, kind: type) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in kind.__bases__ if base is not object)
    yield f"class {name}({bases})" if bases else f"class {name}"
    if issubclass(kind, enum.Enum):
        yield from (f"{name}.{key} = {member.value!r}" for key, member in kind.__members__.items())
        return
    if issubclass(kind, Fact):
        yield from _fact(name, kind)
    elif "__init__" in vars(kind) and not getattr(kind, "_is_protocol", False):
        yield f"{name}{_signature(kind)}"
    for key, member in sorted(vars(kind).items()):
        if key.startswith("_") or (issubclass(kind, Fact) and key in kind._fields):
            continue
        if isinstance(member, property):
            kinds = "property, settable" if member.fset else "property"
            yield f"{name}.{key}  [{kinds}]"
        elif inspect.isroutine(member):
            yield f"{name}.{key}{_signature(getattr(kind, key))}"
        elif isinstance(member, _SIMPLE):
            yield f"{name}.{key} = {member!r}"


def lines() -> Iterator[str]:
    """One line for each public thing."""
    for module in modules():
        for short in names_of(module):
            found, name = getattr(module, short), f"{module.__name__}.{short}"
            home = getattr(found, "__module__", None)
            if module is memwarden and inspect.isclass(found):
                yield f"{name} is {home}.{found.__name__}"
            elif inspect.isclass(found):
                yield from _class(name, found)
            elif callable(found):
                yield f"{name}{_signature(found)}"
            else:
                yield f"{name}: {type(found).__name__}{f' = {found!r}' if isinstance(found, _SIMPLE) else ''}"


def render() -> str:
    """The whole snapshot."""
    return "\n".join(lines()) + "\n"


if __name__ == "__main__":
    print(render(), end="")
