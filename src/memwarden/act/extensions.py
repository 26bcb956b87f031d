"""What is known to end the process when an allocation is refused, and which programs are servers: plain data.

Every name in CRASHES was seen to abort, crash or exit in `python -m benchmarks.extensions` (versions and date are in
docs/explanation/extensions-under-refusal.md). `--fence auto` leaves a process alone that has one of them loaded.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

# The module, and a part of the path of its shared object. Nearly all are written in Rust, whose answer to a failed
# allocation is to abort, or do not look at what malloc returned.
CRASHES = {
    "blake3": "/blake3/",
    "cramjam": "/cramjam/",
    "google._upb": "/google/_upb/",
    "jiter": "/jiter/",
    "msgspec": "/msgspec/",
    "orjson": "/orjson/",
    "polars": "/_polars_runtime",
    "pyarrow": "/pyarrow/",
    "pydantic_core": "/pydantic_core/",
    "rapidjson": "/rapidjson.",
    "rpds": "/rpds/",
    "tokenizers": "/tokenizers/",
}

# Their own defence is to refuse requests, and a request that is refused in the middle is an error for somebody else.
SERVERS = (
    "gunicorn",
    "uvicorn",
    "hypercorn",
    "granian",
    "daphne",
    "waitress-serve",
    "uwsgi",
    "mod_wsgi-express",
    "runserver",
    "flask",
    "fastapi",
    "streamlit",
)
# Loaded by servers only: they give one away that is started from a script (`uvicorn.run(app)`).
SERVER_PARTS = {"uvloop": "/uvloop/", "httptools": "/httptools/"}
_SERVER_MODULES = ("gunicorn", "uvicorn", "hypercorn", "granian", "daphne", "waitress", "uwsgi", "mod_wsgi")


def why_not_mapped(maps: bytes) -> str:
    """Why a process with these mappings (/proc/PID/maps) had better not be refused memory; empty for no reason."""
    for name, part in CRASHES.items():
        if part.encode() in maps:
            return _crash(name)
    for name, part in SERVER_PARTS.items():
        if part.encode() in maps:
            return f"{name} is loaded: it is taken for a server"
    return ""


def why_not_imported(modules: Container[str]) -> str:
    """The same for this process, by what it has imported."""
    for name in CRASHES:
        if name in modules:
            return _crash(name)
    for name in _SERVER_MODULES:
        if name in modules:
            return f"{name} is imported: it is taken for a server"
    return ""


def _crash(name: str) -> str:
    return f"{name} is loaded: it ends the process when an allocation is refused"


def server_in(words: tuple[str, ...]) -> str:
    """The known server that a command line starts, by the names of its first words; empty for none."""
    for word in words[:4]:  # python -X opt -m gunicorn
        name = word.rpartition("/")[2]
        if name in SERVERS:
            return name
    return ""
