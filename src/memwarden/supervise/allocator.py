"""What the command's memory allocator is told by environment: the one cure for fragmentation from outside.

Measured on CPython 3.12 (research: pressure, section 3.3; MiB left of a 314 MiB peak after 99.5 % / 99.95 %
of small objects were freed): default 294 / 294; malloc + trim 63 / 16 at +35 % time for JSON; jemalloc with
its default decay keeps 315, with no decay 51, at -24 % time for JSON. What the user set is never overwritten.
"""

from __future__ import annotations

import os

from memwarden.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PRESETS = ("default", "lean", "malloc", "jemalloc")
HELP = (
    "lean: few malloc arenas, early trim; malloc: lean, and Python's objects on malloc, so that "
    "freed memory goes back (slower); jemalloc: the same on an installed jemalloc that gives back at once"
)

# Dask's nanny sets these two (distributed.yaml, nanny.pre-spawn-environ).
_LEAN = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "65536"}
_MALLOC = {**_LEAN, "PYTHONMALLOC": "malloc"}
_JEMALLOC = {"PYTHONMALLOC": "malloc", "MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0"}
_LOADER_CACHE = "/etc/ld.so.cache"
_FOLDERS = ("/usr/local/lib", "/usr/lib", "/lib", "/usr/lib64")  # where musl, which has no cache, looks


def variables(preset: str, environ: Mapping[str, str], *, root: str = "") -> tuple[tuple[str, str], ...]:
    """The variables to add for a preset. Raises ConfigError where jemalloc is not installed."""
    if preset == "jemalloc":
        return _jemalloc(environ, root)
    wanted = {"default": {}, "lean": _LEAN, "malloc": _MALLOC}[preset]
    return _unset(wanted, environ)


def _unset(wanted: Mapping[str, str], environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in wanted.items() if name not in environ)


def _jemalloc(environ: Mapping[str, str], root: str) -> tuple[tuple[str, str], ...]:
    loaded = environ.get("LD_PRELOAD", "")
    if "jemalloc" in loaded:
        return _unset(_JEMALLOC, environ)
    library = find_jemalloc(root=root)
    if library is None:
        raise ConfigError(
            "no libjemalloc for this machine was found",
            where="--allocator jemalloc",
            mend="install it (Debian: libjemalloc2, Fedora and Alpine: jemalloc) or use --allocator malloc",
        )
    return (("LD_PRELOAD", f"{loaded}:{library}" if loaded else library), *_unset(_JEMALLOC, environ))


def find_jemalloc(*, root: str = "") -> str | None:
    """The path of a libjemalloc that programs like this interpreter can load. Nothing is run to find it."""
    ours = _architecture(f"{root}/proc/self/exe")
    for path in (*_cached(root), *_listed(root)):
        if ours is not None and _architecture(f"{root}{path}") == ours:
            return path
    return None


def _cached(root: str) -> Iterable[str]:
    """ld.so.cache ends in a table of NUL-terminated strings, with the full paths (glibc elf/cache.c)."""
    try:
        with open(f"{root}{_LOADER_CACHE}", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return ()
    return [os.fsdecode(word) for word in words if word.startswith(b"/") and b"/libjemalloc.so" in word]


def _listed(root: str) -> Iterable[str]:
    for folder in _FOLDERS:
        try:
            names = os.listdir(f"{root}{folder}")
        except OSError:
            continue
        yield from (f"{folder}/{name}" for name in sorted(names) if name.startswith("libjemalloc.so"))


def _architecture(path: str) -> bytes | None:
    """Class, byte order and machine of an ELF file (its bytes 4, 5, 18 and 19)."""
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError:
        return None
    return head[4:6] + head[18:20] if head[:4] == b"\x7fELF" and len(head) == 20 else None
