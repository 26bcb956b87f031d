"""What a memory-aware job is: a function or class, its figures, and where its items come from."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import threading

from memwarden.errors import ConfigError, JobError
from memwarden.facts import Fact
from memwarden.jobs.profiles import Profile, profiles_from, short_text, whole
from memwarden.units import parse_bool, parse_bytes, parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Protocol, TypedDict, TypeVar, Unpack, overload

    from memwarden.jobs.sources import Splittable

    _C = TypeVar("_C")

    class _Decorator(Protocol):
        @overload
        def __call__(self, function: type[_C], /) -> type[_C]: ...  # type: ignore[overload-overlap]  # it is callable
        @overload
        def __call__(self, function: Callable[..., Any], /) -> Job: ...

    class _Options(TypedDict, total=False):
        items: Callable[..., Any] | None
        limit: str | int | None
        chunk: int | None
        split: bool | None
        type: str
        name: str | None
        bytes_per_item: str | int | None
        sized: Callable[..., int | None] | None
        reduce: Callable[[Any, Any], Any] | None
        sink: Any
        retries: int
        backoff: str | float
        timeout: str | float | None
        keep: str | float


__all__ = ["Job", "find", "job", "job_of", "settings", "store_folder"]

NAME_CHARACTERS = 200
# Of a job's id, and as high as a part or an attempt is ever numbered: a message with them must still be one.
ID_CHARACTERS, _MOST = 24, 10**9
_registry: dict[str, Job] = {}
_lock = threading.Lock()
# Where a class has its job.
_OF_CLASS = "__memwarden_job__"
# Whoever makes an engine for a job has loaded this by then: in another process it may be a copy of a fork.
LOADED_IN = os.getpid()


class Job:
    """A function or class made memory-aware by `@job`. Engines run it by its `name`; calling it calls the function.

    With `items`, a function is a handler: it is called as `function(chunk, ...)` for each chunk, a list of items, and
    the loop, the cursor, the stop and the split are not its business. Without, the function is the whole body, and
    `run.check()` and `run.each()` are its safe points. Either gets those of the job's arguments that it names, and the
    `Run` where it has a parameter `run`.

    A class stays the class that it is, and `job_of` gives its job. One is made for each attempt, with the job's
    arguments; its method `handle` is then what the function is above. Its methods `items`, `sized`, `sink` and
    `reduce`, where it has them, are what the decorator's would be.
    Coroutine functions are awaited.
    """

    def __init__(self, function: Callable[..., Any], *, name: str, items: Callable[..., Any] | None,
                 given: Mapping[str, Any], reduce: Callable[[Any, Any], Any] | None, sink: Any,
                 sized: Callable[..., int | None] | None) -> None:  # fmt: skip
        self.is_class = inspect.isclass(function)
        functools.update_wrapper(self, function, updated=() if self.is_class else ("__dict__",))
        self.function = function
        self.name = name
        self.items = items
        self.reduce = reduce
        self.sink = sink
        self.sized = sized
        self.given = given
        self.type: str = given["type"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The plain function."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<job {self.name}>"

    @property
    def profile(self) -> Profile:
        """Its figures: the decorator's, then its type's, then the settings'. Raises ConfigError."""
        profiles = settings()
        known = profiles.get(self.type)
        if known is None:
            names = ", ".join(sorted(filter(None, profiles)))
            mend = f"known are {names}; others get a table [tool.memwarden.jobs.{self.type}]"
            raise ConfigError(f"there is no job type {self.type!r}", where=f"job {self.name!r}", mend=mend)
        given = {key: self.given[key] for key in ("limit_bytes", "chunk", "split") if self.given[key] is not None}
        if not profiles[""].split:  # switched off for all
            given.pop("split", None)
        return known.replace(**given)

    def options(self) -> dict[str, Any]:
        """What the ledger keeps of them with each submitted job."""
        kept = {key: self.given[key] for key in ("retries", "backoff_s", "timeout_s", "keep_s", "bytes_per_item")}
        return {**kept, "reduce": self.has("reduce")}

    def has(self, name: str) -> bool:
        """Whether it has `items`, `sized`, `sink` or `reduce`, from the decorator or as a method of its class."""
        return getattr(self, name) is not None or (self.is_class and hasattr(self.function, name))

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All by name, as the ledger keeps them. Raises JobError where nobody takes them, or where one is missing."""
        if not hasattr(kwargs, "keys"):
            what = f"its arguments are a {type(kwargs).__name__}"
            raise JobError(what, where=f"job {self.name!r}", mend="give a dictionary of them by their names")
        own = _parameters(self.function)
        own.pop("run", None)
        if self.items is not None and not self.is_class:
            own.pop(next(iter(own), ""), None)  # the chunk
        if len(args) > len(own):
            raise JobError(f"takes at most {len(own)} arguments", where=f"job {self.name!r}")
        given = {**kwargs, **dict(zip(own, args, strict=False))}
        known = own | {
            name: each for part in (self.items, self.sink, self.sized) if inspect.isroutine(part)
            for name, each in _parameters(part).items()
        }  # fmt: skip
        unknown = sorted(set(given) - set(known), key=str)
        if unknown and not any(each.kind is each.VAR_KEYWORD for each in known.values()):
            raise JobError(f"takes no argument {unknown[0]!r}", where=f"job {self.name!r}")
        for name, each in known.items():
            free = each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
            if not free and each.default is each.empty and name not in given:
                raise JobError(f"needs the argument {name!r}", where=f"job {self.name!r}")
        return given

    def bind(self, arguments: Mapping[str, Any]) -> Bound:
        """With its arguments, for one attempt; the instance of a class is made here. Raises what that raises."""
        return Bound(self, arguments)


class Bound:
    """A job with its arguments, in the process that does it: what the frame around it calls."""

    def __init__(self, job: Job, arguments: Mapping[str, Any]) -> None:
        self._job, self._arguments = job, arguments
        self._owner = job.function(**taken_by(job.function, arguments)) if job.is_class else None
        handler = job.function if self._owner is None else self._owner.handle
        self._handler = handler
        self._given = taken_by(handler, arguments)
        self._wants_run = "run" in _parameters(handler)
        self.is_async = inspect.iscoroutinefunction(handler)
        self.reduce: Callable[[Any, Any], Any] | None = self._part("reduce")
        if self._part("sink") is not None and self._part("items") is None:
            raise _no_chunks(job.name, JobError)

    def call(self, *chunk: Any, run: Any) -> Any:
        """The handler with a chunk, or the body with none; a coroutine where it is one."""
        given = {**self._given, "run": run} if self._wants_run else self._given
        return self._handler(*chunk, **given)

    def source(self) -> Splittable | None:
        """Its items; None where it has none. Raises JobError."""
        items = self._part("items")
        if items is None:
            return None
        from memwarden.jobs.sources import source_of

        return source_of(self._called(items), job=self._job.name)

    def sink(self) -> Any:
        """Its own database; None where it has none."""
        sink = self._part("sink")
        return self._called(sink) if callable(sink) and not hasattr(sink, "connect") else sink

    @property
    def has_size(self) -> bool:
        """Whether it says by itself how many items it has."""
        return self._job.has("sized")

    def size(self) -> int | None:
        """How many items it says that it has."""
        sized = self._part("sized")
        found: int | None = None if sized is None else self._called(sized)
        return found

    def _part(self, name: str) -> Any:
        given = getattr(self._job, name)
        if given is not None or self._owner is None:
            return given
        found = getattr(self._owner, name, None)
        if found is not None and name != "sink" and not callable(found):
            where = f"job {self._job.name!r}"
            raise JobError(f"its `{name}` is a {type(found).__name__}", where=where, mend="make it a method")
        return found

    def _called(self, function: Callable[..., Any]) -> Any:
        return function(**taken_by(function, self._arguments))


def _no_chunks(name: str, kind: type[ConfigError | JobError]) -> ConfigError | JobError:
    what = "has a sink and no items: there is no chunk that it could be committed with"
    return kind(what, where=f"job {name!r}", mend="give it items=..., or have its body open its own connection")


def taken_by(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function names; all where it takes any."""
    parameters = _parameters(function)
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return dict(arguments)
    return {name: value for name, value in arguments.items() if name in parameters}


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


class _Settings(Fact):
    stamp: tuple[Any, ...]
    profiles: Mapping[str, Profile]


_settled: list[_Settings] = []


def settings() -> Mapping[str, Profile]:
    """The profiles of this process: read once for each working directory and environment. Raises ConfigError."""
    stamp = (
        os.getcwd(),
        tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(("MEMWARDEN_", "MEMORY_", "JOB_")))),
    )
    if not _settled or _settled[0].stamp != stamp:
        from memwarden.config import settle, table

        found, where = table("jobs", environ=os.environ)
        config = settle(environ=os.environ).config
        _settled[:] = [_Settings(stamp=stamp, profiles=profiles_from(config, found, where=where or "jobs"))]
    return _settled[0].profiles


def store_folder(folder: str | None) -> str | None:
    """Where the ledger's store is: this folder, else `dir` of the settings, else None: the usual one."""
    if folder is not None:
        return folder
    from memwarden.config import settle

    return settle(environ=os.environ).config.directory


if TYPE_CHECKING:

    @overload
    def job(function: type[_C], /) -> type[_C]: ...  # type: ignore[overload-overlap]  # a class is callable too
    @overload
    def job(function: Callable[..., Any], /) -> Job: ...
    @overload
    def job(function: None = None, /, **options: Unpack[_Options]) -> _Decorator: ...


def job(
    function: Callable[..., Any] | None = None,
    /,
    *,
    items: Callable[..., Any] | None = None,
    limit: str | int | None = None,
    chunk: int | None = None,
    split: bool | None = None,
    type: str = "",  # noqa: A002  row J1 calls it so
    name: str | None = None,
    bytes_per_item: str | int | None = None,
    sized: Callable[..., int | None] | None = None,
    reduce: Callable[[Any, Any], Any] | None = None,
    sink: Any = None,
    retries: int = 3,
    backoff: str | float = 1.0,
    timeout: str | float | None = None,
    keep: str | float = "7d",
) -> Any:
    """Make a function or a class a memory-aware job: `@job` or `@job(limit="256M", chunk=50, items=...)`.

    `items(**arguments)` gives the splittable input: a sequence, a path of a file (its lines), a SQLAlchemy statement
    with its engine (`Rows`, or the two as a tuple), or a `Splittable`. `limit`, `chunk` and `split` come from the
    `type`'s profile where they are not given. `bytes_per_item` is what an item keeps in memory until the job ends; it
    is learned where it is not given. `reduce(so_far, result)` folds what the handler returns, chunk after chunk, then
    part after part; results are JSON, and without it what a handler returns is not kept. `sink` is the database that
    the handler writes to by `run.connection`, so that chunk and cursor are committed together: a SQLAlchemy engine, the
    path of a SQLite file, or a function that gives either for the arguments that it names. `retries`, `backoff`
    (seconds before the first) and `timeout` are of one part's attempt; `keep` is how long results are kept.
    """
    given = {
        "type": short_text(type, "type", least=0),
        "limit_bytes": None if limit is None else parse_bytes(limit, where="limit"),
        "chunk": None if chunk is None else whole(chunk, "chunk"),
        "split": None if split is None else parse_bool(split, where="split"),
        "bytes_per_item": None if bytes_per_item is None else parse_bytes(bytes_per_item, where="bytes_per_item"),
        "retries": whole(retries, "retries", least=0),
        "backoff_s": parse_duration(backoff, where="backoff"),
        "timeout_s": None if timeout is None else _above_zero(timeout, "timeout"),
        "keep_s": parse_duration(keep, where="keep"),
    }
    for value, where in ((items, "items"), (reduce, "reduce"), (sized, "sized")):
        if value is not None and not callable(value):
            raise ConfigError(f"{value!r} is no function", where=where, mend="give a function")

    _check_sink(sink)

    def make(function: Callable[..., Any]) -> Any:
        full = _name_of(function, name)
        _check_function(function, full)
        if sink is not None and items is None and not inspect.isclass(function):
            raise _no_chunks(full, ConfigError)
        made = Job(function, name=full, items=items, given=given, reduce=reduce, sink=sink, sized=sized)
        with _lock:
            _registry[full] = made
        if made.is_class:
            setattr(function, _OF_CLASS, made)
            return function
        return made

    return make if function is None else make(function)


def _above_zero(time: str | float, where: str) -> float:
    seconds = parse_duration(time, where=where)
    if not seconds:
        raise ConfigError(f"{time!r} leaves no time at all", where=where, mend="give more, or leave it out")
    return seconds


def _check_sink(sink: Any) -> None:
    """Raises ConfigError where it is no database that each process of a part can open for itself."""
    if sink is None or isinstance(sink, (str, os.PathLike)):
        return
    if hasattr(sink, "execute"):
        mend = "give a function that opens one: each part runs in a process of its own"
        raise ConfigError(f"a {type(sink).__name__} is one connection of one process", where="sink", mend=mend)
    if not callable(sink) and not hasattr(sink, "connect"):
        mend = "give a SQLAlchemy engine, the path of a SQLite file, or a function that gives either"
        raise ConfigError(f"{sink!r:.60} is no database", where="sink", mend=mend)


def _name_of(function: Any, name: str | None) -> str:
    """Raises ConfigError for what cannot be called, and for a name that no ledger or message takes."""
    if not callable(function):
        raise ConfigError(f"{function!r:.60} is no function or class", where="job", mend="decorate one with @job")
    if name is None and not hasattr(function, "__qualname__"):
        raise ConfigError(f"a {type(function).__name__} has no name of its own", where="job", mend="give name=")
    full = f"{function.__module__}:{function.__qualname__}" if name is None else name
    if not isinstance(full, str) or not 0 < len(full) <= NAME_CHARACTERS or not full.isprintable():
        raise ConfigError(f"{full!r:.60}... is no name", where="name", mend="give up to 200 printable characters")
    if not _fits_into_a_message(full):
        what = f"{full[:30]!r}... is too long for a message: ASCII has up to 12 bytes for a character of it"
        raise ConfigError(what, where="name", mend="give a shorter one, or name= with ASCII letters")
    return full


def _check_function(function: Any, name: str) -> None:
    """Raises ConfigError for what could be called and would never do its work."""
    body = getattr(function, "handle", None) if inspect.isclass(function) else function
    if not callable(body):
        mend = "give it handle(self, chunk) with items, or handle(self) without"
        raise ConfigError(f"the class {name!r} has no method `handle`", where="job", mend=mend)
    if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
        what = "is a generator: called, it does nothing until somebody asks it for values, and nobody would"
        mend = "have it return its result; run.each(items) has a safe point before each item"
        raise ConfigError(what, where=f"job {name!r}", mend=mend)
    if body is function and _is_method(function):
        mend = "decorate the class, whose method `handle` does the work, or a function"
        raise ConfigError("is a method: nobody would give it its object", where=f"job {name!r}", mend=mend)


def _is_method(function: Any) -> bool:
    """Whether it stands in the body of a class and wants an object of it."""
    inside = getattr(function, "__qualname__", "").rpartition(".")[0]
    if not inside or inside.endswith("<locals>") or not inspect.isfunction(function):
        return False
    return next(iter(_parameters(function)), "") in ("self", "cls")


def _fits_into_a_message(name: str) -> bool:
    from memwarden.jobs.port import Message

    try:
        Message(job=name, root="0" * ID_CHARACTERS, part=_MOST, attempt=_MOST).encode()
    except JobError:
        return False
    return True


def job_of(found: Job | type) -> Job:
    """The job that this is, or that this class was made. Raises JobError."""
    made = vars(found).get(_OF_CLASS) if isinstance(found, type) else found  # a class below it is none
    if not isinstance(made, Job):
        name = getattr(found, "__qualname__", repr(found))
        raise JobError("is no job", where=f"{name[:60]}", mend="decorate it with @job")
    return made


def find(name: str) -> Job:
    """The job of that name, its module imported if need be. Raises JobError where it is not known."""
    found = _registry.get(name)
    if found is None and ":" in name and "<locals>" not in name:
        module = name.partition(":")[0]
        if module not in sys.modules:
            try:
                importlib.import_module(module)
            except Exception as error:
                raise JobError(
                    f"its module cannot be imported here ({type(error).__name__}: {error})", where=f"job {name!r}",
                    mend="start the worker where the submitter's modules can be imported",
                ) from error  # fmt: skip
        found = _registry.get(name)
    if found is None:
        mend = "import the module that has it before the worker starts"
        raise JobError("is not known here", where=f"job {name!r}", mend=mend)
    return found
