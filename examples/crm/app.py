"""A small CRM on Starlette and SQLite, guarded by memwarden.

    python -m uvicorn app:app          or        python serve.py --port 8000

Settings are environment variables: CRM_DIR (where the data is made, default .demo), CRM_CONTACTS (how
much of it), CRM_LEAK (off, slow or fast: the bug of transcripts.py), CRM_DEMO=1 (/leak and /burst exist).
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import time
from collections import deque
from contextlib import asynccontextmanager
from functools import wraps
from html import escape
from operator import itemgetter
from typing import TYPE_CHECKING

import anyio.to_thread
import data
import pages
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from suggestions import suggest
from transcripts import LEAKS, TranscriptCache

from memwarden import Level, Warden

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path
    from typing import Any

    from starlette.requests import Request

    from memwarden.facts import Reading

PER_PAGE = 50
THREADS = 8  # handlers at once: any of them may hold a whole export, so forty (the default) are too many
MIB = 1 << 20

COUNTS = """SELECT (SELECT count(*) FROM contacts), (SELECT count(*) FROM calls),
                   (SELECT count(*) FROM appointments)"""
RECENT = "SELECT calls.*, name FROM calls JOIN contacts ON contacts.id = contact_id ORDER BY at DESC LIMIT 8"
COMING = """SELECT appointments.*, name FROM appointments JOIN contacts ON contacts.id = contact_id
            WHERE at >= ? ORDER BY at LIMIT 8"""
CALLS_OF = "SELECT * FROM calls WHERE contact_id = ? ORDER BY at"
APPOINTMENTS_OF = "SELECT * FROM appointments WHERE contact_id = ? ORDER BY at"
SAID = """SELECT calls.*, name FROM calls JOIN contacts ON contacts.id = contact_id
          WHERE instr(lower(transcript), ?) ORDER BY at DESC LIMIT ?"""


class Crm:
    """What the handlers share: the database's path, the transcript cache and the warden."""

    def __init__(self, *, database: Path, leak: str) -> None:
        self.database = database
        self.cache = TranscriptCache(leak)
        self.warden = Warden()
        self.told: deque[dict[str, Any]] = deque(maxlen=50)
        self.request_ids = map("r{}".format, itertools.count(1))
        self.warden.on_change(self.level_changed)

    def level_changed(self, old: Level, new: Level, _reading: Reading) -> None:
        """A cache is the first thing to give up: drop it at CRITICAL, and return its bytes to the system."""
        why = "; ".join(reason.text for reason in self.warden.verdict.reasons)
        self.tell(f"{old.name} -> {new.name}{why and ': '}{why}", level=new.name)
        if new > old and new >= Level.CRITICAL:
            entries, held_bytes = self.cache.drop()
            self.tell(f"{entries:,} cached pages dropped, {pages.mib(held_bytes)}")
            self.warden.emergency_cleanup("the cache was dropped")

    def tell(self, what: str, **more: str) -> None:
        """Remember what happened."""
        self.told.append({"unix_s": time.time(), "what": what, **more})

    def events(self) -> list[dict[str, Any]]:
        """What happened of late, in order: changes of level, what we did about them, and what memwarden did."""
        acts = (
            {"unix_s": done.unix_s, "what": done.action, "freed_bytes": done.freed_bytes}
            for done in self.warden.outcomes
        )
        return sorted([*self.told, *acts], key=itemgetter("unix_s"))

    def memory(self) -> dict[str, Any]:
        """What is known about memory now, for people and for machines."""
        verdict = self.warden.verdict
        reading = verdict.reading
        return {
            "level": verdict.level.name,
            "used_bytes": reading.used_bytes,
            "limit_bytes": reading.limit_bytes,
            "limit_source": reading.limit_source,
            "limit_kind": self.warden.limit.kind,
            "rss_bytes": reading.rss_bytes,
            "cached": len(self.cache),
            "leak": self.cache.leak,
            "events": self.events(),
        }


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Make the data if this is the first start, and let the warden watch as long as the service runs."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    app.state.crm = crm = Crm(**settings(os.environ))
    with crm.warden:
        yield


def settings(environ: Mapping[str, str]) -> dict[str, Any]:
    """The service's settings from its environment, and its data. Raises ValueError with what to mend."""
    contacts, leak = environ.get("CRM_CONTACTS", str(data.CONTACTS)), environ.get("CRM_LEAK", "off")
    folder = environ.get("CRM_DIR", ".demo")
    if not contacts.isascii() or not contacts.isdigit() or not 1 <= int(contacts[:8]) == int(contacts):
        raise ValueError(f"CRM_CONTACTS: {contacts!r} is no number of contacts; give a whole number from 1")
    if leak not in LEAKS:
        raise ValueError(f"CRM_LEAK: {leak!r} is not known; give one of {', '.join(LEAKS)}")
    try:
        return {"database": data.database_in(folder, contacts=int(contacts)), "leak": leak}
    except (OSError, sqlite3.Error) as error:
        raise ValueError(f"CRM_DIR: no data in {folder!r}: {error}; name a folder that can be written") from error


def dashboard(request: Request) -> Response:
    """Totals, the latest calls, the next appointments, and how memory is."""
    crm: Crm = request.app.state.crm
    with data.connect(crm.database) as db:
        totals = zip(("Contacts", "Calls", "Appointments"), db.execute(COUNTS).fetchone(), strict=True)
        calls = db.execute(RECENT).fetchall()
        coming = db.execute(COMING, (data.TODAY.isoformat(" ", "minutes"),)).fetchall()
    meetings = ((row["at"], pages.contact_link(row), row["purpose"]) for row in coming)
    return HTMLResponse(
        pages.page(
            "Dashboard",
            pages.cards({name: f"{count:,}" for name, count in totals}),
            pages.memory_box(crm.memory()),
            "<h2>Recent calls</h2>",
            pages.table(("When", "Contact", "Topic", "Length"), pages.call_rows(calls)),
            "<h2>Next appointments</h2>",
            pages.table(("When", "Contact", "Purpose"), meetings),
        )
    )


def contacts(request: Request) -> Response:
    """All contacts, fifty to a page."""
    number = _whole(request.query_params.get("page", "1"))
    with data.connect(request.app.state.crm.database) as db:
        rows = db.execute(
            "SELECT *, id AS contact_id FROM contacts WHERE id > ? ORDER BY id LIMIT ?",
            ((number - 1) * PER_PAGE, PER_PAGE),  # ids have no gaps: this is a key, not an OFFSET
        ).fetchall()
    cells = ((pages.contact_link(row), row["company"], row["email"], row["city"]) for row in rows)
    more = f'<p><a href="/contacts?page={number + 1}">Next page</a></p>' if len(rows) == PER_PAGE else ""
    listing = pages.table(("Name", "Company", "Mail", "City"), cells)
    return HTMLResponse(pages.page(f"Contacts, page {number}", listing, more))


def contact(request: Request) -> Response:
    """One contact with every call, word for word."""
    crm: Crm = request.app.state.crm
    who, calls, _ = _contact(crm, request.path_params["contact_id"])
    request_id = request.headers.get("x-request-id") or next(crm.request_ids)
    said = crm.cache.rendered(who["id"], calls, request_id=request_id)
    where = escape(f"{who['company']}, {who['city']} · {who['email']}")
    ahead = f'<a href="/contacts/{who["id"]}/suggestions">What next?</a>'
    return HTMLResponse(pages.page(who["name"], f"<p>{where} · {ahead}</p>", said))


def contact_suggestions(request: Request) -> Response:
    """What to do next with one contact."""
    who, calls, appointments = _contact(request.app.state.crm, request.path_params["contact_id"])
    said = ((call["at"], call["transcript"]) for call in reversed(calls))
    todo = suggest(said, ((each["at"], each["purpose"]) for each in appointments)) or ["Nothing to do"]
    items = "".join(f"<li>{escape(text)}</li>" for text in todo)
    return HTMLResponse(pages.page(f"What next with {who['name']}?", f"<ol>{items}</ol>"))


def _contact(crm: Crm, contact_id: int) -> tuple[sqlite3.Row, list[sqlite3.Row], list[sqlite3.Row]]:
    """A contact, its calls and its appointments in order of time; 404 where there is none."""
    with data.connect(crm.database) as db:
        who = db.execute("SELECT * FROM contacts WHERE id = ?", (contact_id,)).fetchone()
        calls = db.execute(CALLS_OF, (contact_id,)).fetchall()
        coming = db.execute(APPOINTMENTS_OF, (contact_id,)).fetchall()
    if who is None:
        raise HTTPException(404, f"there is no contact {contact_id}")
    return who, calls, coming


def heavy(handler: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """A handler that may need much: watched as an operation, and its MemoryError ends only its request."""

    @wraps(handler)
    def guarded(request: Request) -> Response:
        warden: Warden = request.app.state.crm.warden
        try:
            with warden.operation(handler.__name__):
                return handler(request)
        except MemoryError:
            pass  # answered below, when the traceback is gone that holds every row of the failed export
        warden.emergency_cleanup(f"no memory for {handler.__name__}")
        return no_memory()

    return guarded


@heavy
def search(request: Request) -> Response:
    """The latest calls in which some words were said."""
    wanted = request.query_params.get("q", "").strip()[:100]
    with data.connect(request.app.state.crm.database) as db:
        rows = db.execute(SAID, (wanted.lower() or None, PER_PAGE)).fetchall()
    cells = ((row["at"], pages.contact_link(row), pages.snippet(row["transcript"], wanted)) for row in rows)
    return HTMLResponse(pages.page(f"Calls with “{wanted}”", pages.table(("When", "Contact", "Said"), cells)))


@heavy
def export(request: Request) -> Response:
    """Every call as one JSON document, built whole in memory: rows, dicts, text and bytes, all at once."""
    with data.connect(request.app.state.crm.database) as db:
        calls = [dict(row) for row in db.execute("SELECT * FROM calls ORDER BY id").fetchall()]
        text = json.dumps({"calls": calls}, ensure_ascii=False)
        return Response(text.encode(), media_type="application/json")


async def stream(request: Request) -> Response:
    """Every call as a line of JSON: a chunk of them in memory at a time, however many there are."""
    from repository import Calls

    calls = Calls(request.app.state.crm.database)

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for call in calls.everything():
                yield json.dumps(call, ensure_ascii=False).encode() + b"\n"
        finally:
            await calls.close()

    return StreamingResponse(lines(), media_type="application/x-ndjson")


async def health(request: Request) -> Response:
    """Whether the service is alive. It says how memory is, but its answer does not depend on it."""
    crm: Crm = request.app.state.crm
    return JSONResponse({"status": "ok", "pid": os.getpid(), **crm.memory()})


async def leak(request: Request) -> Response:
    """Switch the bug on or off while the service runs."""
    mode = request.path_params["mode"]
    if mode not in LEAKS:
        raise HTTPException(404, f"{mode!r} is not known; one of {', '.join(LEAKS)}")
    request.app.state.crm.cache.leak = mode
    return JSONResponse({"leak": mode})


@heavy
def burst(request: Request) -> Response:
    """Fill so many MiB in one go: a single call into C, during which no other Python thread can run."""
    block = b"\xff" * (request.path_params["mib"] * MIB)
    return JSONResponse({"filled_bytes": len(block)})


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) == int(text):
        raise HTTPException(400, "a page is a whole number from 1")
    return int(text)


def no_memory(*_asked: object) -> Response:
    """A MemoryError is one request's failure and not the service's: say so and go on."""
    return JSONResponse({"error": "not enough memory for this request"}, 503, {"retry-after": "5"})


async def refused(_request: Request, error: Exception) -> Response:
    """What was wrong with the request, as JSON."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    return JSONResponse({"error": str(getattr(error, "detail", error))}, status_code=status)


class LoopbackOnly:
    """Lets only this machine reach the switches of the demo."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        app = self.app if (scope.get("client") or ("",))[0] in {"127.0.0.1", "::1"} else _forbidden
        await app(scope, receive, send)


_forbidden = JSONResponse({"error": "only from this machine"}, status_code=403)

routes = [
    Route("/", dashboard),
    Route("/contacts", contacts),
    Route("/contacts/{contact_id:int}", contact),
    Route("/contacts/{contact_id:int}/suggestions", contact_suggestions),
    Route("/calls/search", search),
    Route("/export", export),
    Route("/export/stream", stream),
    Route("/health", health),
]
if os.environ.get("CRM_DEMO") == "1":
    from starlette.middleware import Middleware

    local = [Middleware(LoopbackOnly)]
    routes.append(Route("/leak/{mode}", leak, methods=["POST"], middleware=local))
    routes.append(Route("/burst/{mib:int}", burst, methods=["POST"], middleware=local))

app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={MemoryError: no_memory, HTTPException: refused})
