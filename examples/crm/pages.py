"""The CRM's pages as HTML. Everything that came from the database is escaped here."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881 }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem }
header { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: baseline }
header { border-bottom: 1px solid var(--line) }
h1 { font-size: 1.3rem; margin: .5rem 0 } h2 { font-size: 1rem; margin: 1.5rem 0 .5rem }
a { color: inherit; text-decoration-color: var(--line) }
.cards { display: grid; gap: .75rem; margin: 1rem 0 }
.cards { grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)) }
.card { background: var(--soft); border-radius: .5rem; padding: .75rem 1rem }
.card b { display: block; font-size: 1.6rem; font-weight: 600; font-variant-numeric: tabular-nums }
table { width: 100%; border-collapse: collapse } td, th { text-align: left; padding: .3rem .6rem .3rem 0 }
tr { border-bottom: 1px solid var(--line) } th { font-weight: 600; opacity: .7 }
meter { width: 100%; height: 1rem } .note { opacity: .7 }
.NORMAL { color: #2a9d6f } .WARNING { color: #d99a1c } .CRITICAL, .EMERGENCY { color: #cf3f3f }
details { border-bottom: 1px solid var(--line); padding: .3rem 0 } details p { margin: .2rem 0 .2rem 1rem }
"""


def page(title: str, *parts: str) -> str:
    """A whole page around its parts."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)} · CRM</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        '<header><h1>CRM</h1><a href="/">Dashboard</a><a href="/contacts">Contacts</a>'
        '<form action="/calls/search"><input name="q" placeholder="Search calls" aria-label="Search calls">'
        f"</form></header><h2>{escape(title)}</h2>{''.join(parts)}</html>"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>{body}</table>"


def cards(totals: Mapping[str, object]) -> str:
    """Totals, each with its name."""
    return f'<div class="cards">{"".join(_card(name, str(value)) for name, value in totals.items())}</div>'


def _card(name: str, value: str, note: str = "", kind: str = "") -> str:
    return f'<div class="card">{escape(name)}<b class="{kind}">{escape(value)}</b>{note}</div>'


def memory_box(memory: Mapping[str, Any]) -> str:
    """How full the container is, what memwarden makes of it, and what it did last."""
    used, limit = memory["used_bytes"], memory["limit_bytes"]
    meter = f'<meter min="0" max="{limit}" value="{used}"></meter>' if used and limit else ""
    source = f'<span class="note">{escape(memory["limit_source"])}</span>'
    boxes = (
        _card("Level", memory["level"], kind=memory["level"]),
        _card("Used", mib(used), meter),
        _card("Limit", mib(limit), source),
        _card("Cached transcripts", str(memory["cached"]), f"leak: {escape(memory['leak'])}"),
    )
    done = "".join(f"<li>{escape(in_words(event))}</li>" for event in memory["events"][-8:])
    return f'<h2>Memory</h2><div class="cards">{"".join(boxes)}</div><ul>{done}</ul>'


def in_words(event: Mapping[str, Any]) -> str:
    """A change of level, or an action with what it freed."""
    freed = f": {mib(event['freed_bytes'])} freed" if event.get("freed_bytes") else ""
    return f"{event['what']}{freed}"


def mib(size_bytes: int | None) -> str:
    """Bytes as MiB for a reader, "unknown" where nobody could say."""
    return "unknown" if size_bytes is None else f"{size_bytes / 2**20:,.1f} MiB"


def contact_link(row: sqlite3.Row) -> str:
    """The contact of a row that has `contact_id` and `name`."""
    return f'<a href="/contacts/{row["contact_id"]}">{escape(row["name"])}</a>'


def call_rows(calls: Iterable[sqlite3.Row]) -> Iterable[Sequence[str]]:
    """Calls of many contacts, one line each."""
    return ((row["at"], contact_link(row), escape(row["topic"]), f"{row['minutes']} min") for row in calls)


def snippet(transcript: str, wanted: str, around: int = 60) -> str:
    """Where the wanted words stand in the transcript."""
    found = max(0, transcript.lower().find(wanted.lower()))
    return escape(transcript[max(0, found - around) : found + len(wanted) + around])
