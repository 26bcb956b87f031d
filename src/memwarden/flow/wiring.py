"""What a factory wants: its parameters, by their type hints, as keys of a container.

Loaded with the first factory that is wired: it needs `inspect`, which a container of ready instances does not.
"""

from __future__ import annotations

import inspect

from memwarden.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["CONTAINER", "Need", "is_generator", "is_makeable", "needs_of"]

# The key that stands for the container itself.
CONTAINER = object()
_EMPTY = inspect.Parameter.empty
_STARS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Need:
    """One parameter: its key, whether it may be left out (`optional`), and whether it then is None (`nullable`)."""

    __slots__ = ("key", "name", "nullable", "optional", "positional")

    def __init__(self, name: str, key: Any, *, optional: bool, nullable: bool, positional: bool) -> None:
        self.name = name
        self.key = key
        self.optional = optional
        self.nullable = nullable
        self.positional = positional


def needs_of(factory: Callable[..., Any], known: Iterable[Any], container: type) -> list[Need]:
    """The parameters of a factory. `known` are keys that a name in a text annotation may mean.

    Raises ConfigError for a parameter that nothing can be found for: no type, no default.
    """
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # made in C: it says nothing of what it takes
        return []
    wanted = [each for each in parameters if each.kind not in _STARS]
    names = {getattr(key, "__name__", key): key for key in known}
    alone = len([each for each in wanted if each.default is _EMPTY]) == 1
    found = []
    for each in wanted:
        key = _key_of(factory, each, names, container, alone=alone)
        if key is None:  # nothing to go by, and it has a default
            continue
        inner, nullable = _without_none(key)
        found.append(
            Need(
                each.name, _named(inner), optional=each.default is not _EMPTY, nullable=nullable,
                positional=each.kind is inspect.Parameter.POSITIONAL_ONLY,
            )
        )  # fmt: skip
    return found


def _key_of(factory: Any, parameter: inspect.Parameter, names: dict[Any, Any], container: type, *, alone: bool) -> Any:
    hint = parameter.annotation
    if isinstance(hint, str):
        hint = _resolved(factory, hint, names)
    if hint is container or (hint is _EMPTY and (parameter.name == "container" or alone)):
        return CONTAINER if parameter.default is _EMPTY else None
    if hint is _EMPTY or isinstance(hint, str):
        if parameter.default is not _EMPTY:
            return None
        why = "has no type" if hint is _EMPTY else f"has a type that cannot be found here, {hint!r}"
        raise ConfigError(
            f"its parameter {parameter.name!r} {why}", where=name_of(factory),
            mend="give it a type that is registered, a default, or a factory that takes the container",
        )  # fmt: skip
    return hint


def _resolved(factory: Any, text: str, names: dict[Any, Any]) -> Any:
    """What a text annotation means where the factory was written; else a key of that name; else the text."""
    while hasattr(factory, "func") and hasattr(factory, "keywords"):  # functools.partial
        factory = factory.func
    function = inspect.unwrap(vars(factory).get("__init__", factory) if isinstance(factory, type) else factory)
    function = getattr(function, "__func__", function)
    if not hasattr(function, "__globals__"):  # an object that can be called
        function = inspect.getattr_static(type(factory), "__call__", function)
    try:
        return eval(text, getattr(function, "__globals__", {}))  # noqa: S307  its own annotation
    except Exception:  # noqa: BLE001  an annotation may be anything
        return names.get(text, text)


def _without_none(hint: Any) -> tuple[Any, bool]:
    """(the type, whether None would do as well)."""
    arguments = getattr(hint, "__args__", ())
    kind = type(hint).__name__
    if kind in ("UnionType", "_UnionGenericAlias", "Union") and type(None) in arguments:
        rest = [each for each in arguments if each is not type(None)]
        if len(rest) == 1:
            return rest[0], True
    return hint, False


def _named(hint: Any) -> Any:
    """Annotated[Database, "replica"] asks for the key "replica"."""
    for each in getattr(hint, "__metadata__", ()):
        if isinstance(each, str):
            return each
    return hint


def is_makeable(key: Any) -> bool:
    """Whether a class can be made by calling it with what it wants: no built-in one, no abstract one."""
    return isinstance(key, type) and key.__module__ != "builtins" and not inspect.isabstract(key)


def is_generator(factory: Any) -> bool:
    """Whether it is a generator function of either kind."""
    return inspect.isgeneratorfunction(factory) or inspect.isasyncgenfunction(factory)


def name_of(what: Any) -> str:
    """A key or a factory, for people."""
    return what if isinstance(what, str) else str(getattr(what, "__qualname__", None) or repr(what))
