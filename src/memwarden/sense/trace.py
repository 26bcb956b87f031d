"""Recorded memory from a file: the trace contract, and what memory_profiler and psrecord write.

A trace is CSV or NDJSON with `t_s` (or `unix_s`) and `rss_bytes`, or a JSON document {"samples": [...]};
any of them may be gzipped. What it is, is told from the content and never from the name. Lines that say
nothing sensible are skipped and counted. Times must not run backwards: small disorder (up to five sampling
intervals, as two writers make) is sorted, a larger step back is refused with its line, because it means two
recordings in one file.
"""

from __future__ import annotations

import errno
import os
import sys
from array import array
from itertools import chain, compress, pairwise
from math import inf, isnan, nan

from memwarden.errors import TraceError
from memwarden.units import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any, BinaryIO

    Row = dict[str, float]

SIZES = (
    "rss_bytes", "used_bytes", "limit_bytes", "anon_bytes", "uss_bytes", "python_blocks",
    "native_in_use_bytes", "gc_collected", "gc_uncollectable", "declared_cache_bytes", "work_done",
)  # fmt: skip
TIMES = ("t_s", "unix_s")
WANTED = frozenset(SIZES + TIMES)

# No line of a trace is longer; a file whose first megabyte has no line break is something else.
LONGEST_LINE = 1 << 20
# A JSON document is held in memory whole while it is read (about ten times its size); longer ones exist as
# NDJSON.
LONGEST_DOCUMENT = 256 << 20
# About 150 bytes each while they are judged: 750 MB, for two months at one sample a second.
MOST_SAMPLES = 5_000_000
# Larger than any address space, or than any clock: a mistake and no number.
LARGEST = float(1 << 60)
SORTABLE_INTERVALS = 5.0

MEND_COLUMNS = "give it columns t_s (or unix_s) and rss_bytes"
MEND_COPY = "copy or export the file again"
MEND_KIND = "give a CSV, NDJSON or JSON trace, an mprof .dat file or a psrecord log"


class Trace:
    """Columns of one recording, in order of time. Unknown values are NaN.

    `t_s` starts where the file's did, or at zero where it had Unix time only; `start_unix_s` is its first
    Unix time, None where it had none. `columns` holds the optional columns that have at least one value.
    """

    def __init__(self, source: str, kind: str) -> None:
        self.source = source
        self.kind = kind
        self.t_s = array("d")
        self.rss_bytes = array("d")
        self.columns: dict[str, array[float]] = {}
        self.start_unix_s: float | None = None
        self.skipped_lines = 0
        self.first_skipped = ""
        self.sorted_lines = 0
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.t_s)

    @property
    def duration_s(self) -> float:
        """From the first sample to the last."""
        return self.t_s[-1] - self.t_s[0] if self.t_s else 0.0

    def known(self, name: str = "rss_bytes") -> tuple[array[float], array[float]]:
        """The times and values of one column where it has a value; not to be written to."""
        column = self.rss_bytes if name == "rss_bytes" else self.columns.get(name)
        if column is None:
            return array("d"), array("d")
        if not any(map(isnan, column)):
            return self.t_s, column
        keep = [not isnan(value) for value in column]
        return array("d", compress(self.t_s, keep)), array("d", compress(column, keep))

    def warning(self) -> str:
        """What was not as it should be, in one line; empty where all was well."""
        words = []
        if self.skipped_lines:
            words.append(f"{self.skipped_lines} malformed lines skipped (the first: {self.first_skipped})")
        if self.sorted_lines:
            words.append(f"{self.sorted_lines} samples were out of order and have been sorted")
        words += self.notes
        return f"{self.source}: {'; '.join(words)}" if words else ""


def read_trace(path: str) -> Trace:
    """Read a trace file; `-` is standard input. Raises TraceError, and nothing else, for what is no trace."""
    if path == "-":
        if sys.stdin is None:
            raise TraceError("is closed", where="standard input", mend="name a file")
        return parse_trace(sys.stdin.buffer, source="standard input")
    try:
        with open(path, "rb") as file:
            return parse_trace(file, source=path)
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    except ValueError as exc:  # a NUL byte in the path
        raise TraceError(f"cannot be read ({exc})", where=repr(path), mend="check the path") from exc


def parse_trace(file: BinaryIO, *, source: str) -> Trace:
    """Read a trace from an open binary file; `source` is what errors and reports call it."""
    try:
        return _Reader(source, file).read()
    except OSError as exc:
        raise _unreadable(source, exc) from exc
    except EOFError as exc:
        raise TraceError("the gzip data ends early", where=source, mend=MEND_COPY) from exc
    except MemoryError as exc:
        raise TraceError("does not fit into memory", where=source, mend="split it") from exc


def _unreadable(source: str, exc: OSError) -> TraceError:
    if exc.errno == errno.ENOENT:
        return TraceError("no such file", where=source, mend="check the path")
    if exc.errno == errno.EISDIR:
        return TraceError("is a folder", where=source, mend="name a trace file in it")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return TraceError("may not be read by this user", where=source, mend="check its permissions")
    if exc.errno is None:  # gzip.BadGzipFile and zlib's complaints
        return TraceError(f"the gzip data is damaged ({exc})", where=source, mend=MEND_COPY)
    return TraceError(f"cannot be read ({os.strerror(exc.errno)})", where=source, mend="check the file")


class _Reader:
    """Turns the bytes of one file into a Trace."""

    def __init__(self, source: str, file: BinaryIO) -> None:
        self.source = source
        self.file = file
        self.line = 0

    def read(self) -> Trace:
        lines = self._lines()
        first = next((text for text in lines if text.strip()), None)
        if first is None:
            raise TraceError("is empty", where=self.source, mend=MEND_COLUMNS)
        kind, rows = self._rows(first, lines)
        return self._collect(Trace(self.source, kind), rows)

    def _plain(self) -> BinaryIO:
        import io

        buffered: Any = self.file if hasattr(self.file, "peek") else io.BufferedReader(self.file)
        if buffered.peek(2)[:2] == b"\x1f\x8b":
            import gzip

            return gzip.open(buffered)  # type: ignore[return-value]  # it reads bytes by lines
        return buffered  # type: ignore[no-any-return]  # open() knows its kind, we its use

    def _lines(self) -> Iterator[str]:
        import zlib

        plain = self._plain()
        while True:
            try:
                raw = plain.readline(LONGEST_LINE)
            except zlib.error as exc:
                raise OSError(f"{exc}") from exc
            if not raw:
                return
            self.line += 1
            if self.line == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if b"\0" in raw:
                raise self._error("holds binary data", mend=MEND_KIND)
            # A JSON document may be one long line; _document checks the total.
            if len(raw) >= LONGEST_LINE and self.line == 1 and not raw.lstrip().startswith((b"{", b"[")):
                raise self._error("has a line longer than a megabyte", mend=MEND_KIND)
            yield raw.decode("utf-8", "replace")

    def _error(self, what: str, *, mend: str, line: int | None = None) -> TraceError:
        return TraceError(what, where=f"{self.source}, line {line or self.line}", mend=mend)

    def _rows(self, first: str, lines: Iterator[str]) -> tuple[str, Iterator[Row | str]]:
        """What the file is, and its rows: a dict of numbers, or in words why a line is none."""
        start = first.strip()
        if start.startswith(("CMDLINE ", "MEM ", "CHLD ", "FUNC ")):
            return "mprof", self._mprof(chain([first], lines))
        if start.startswith("#") and "Elapsed time" in start and "Real (MB)" in start:
            return "psrecord", self._psrecord(lines)
        if start.startswith(("{", "[")):
            return self._json(first, lines)
        while start.startswith("#") or not start:
            following = next(lines, None)
            if following is None:
                raise self._error("holds comments only", mend=MEND_COLUMNS)
            start = following.strip()
        return "csv", self._csv(start, lines)

    def _json(self, first: str, lines: Iterator[str]) -> tuple[str, Iterator[Row | str]]:
        import json

        try:
            value = json.loads(first)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict) and "samples" not in value:
            self._need(value)
            return "ndjson", self._ndjson(chain([first], lines))
        if value is None and first.strip() not in {"{", "["} and first.rstrip().endswith("}"):
            return "ndjson", self._ndjson(chain([first], lines))  # its first line is damaged, not the file
        return "json", self._document(first, lines)

    def _need(self, names: Iterable[str]) -> None:
        have = set(names)
        missing = []
        if have.isdisjoint(TIMES):
            missing.append("t_s (or unix_s)")
        if "rss_bytes" not in have:
            missing.append("rss_bytes")
        if missing:
            shown = ", ".join(sorted(str(name)[:30] for name in have)[:8]) or "none"
            found = "".join(letter if letter.isprintable() else "?" for letter in shown)
            raise self._error(f"has no column {' and no '.join(missing)} (found: {found})", mend=MEND_COLUMNS)

    def _csv(self, header: str, lines: Iterator[str]) -> Iterator[Row | str]:
        mark = next((m for m in (",", ";", "\t") if m in header), ",")
        names = [name.strip() for name in _fields(header, mark)]
        self._need(names)
        wanted = [(i, name) for i, name in enumerate(names) if name in WANTED]
        for text in lines:
            if not text.strip() or text.startswith("#"):
                continue
            fields = _fields(text, mark)
            if len(fields) < len(names):
                yield f"{len(fields)} of {len(names)} fields"
            else:
                yield _row((name, fields[i]) for i, name in wanted)

    def _ndjson(self, lines: Iterable[str]) -> Iterator[Row | str]:
        import json

        for text in lines:
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                yield "not JSON"
                continue
            yield _record(value)

    def _document(self, first: str, lines: Iterator[str]) -> Iterator[Row | str]:
        import json

        parts, size = [first], len(first)
        for text in lines:
            parts.append(text)
            size += len(text)
            if size > LONGEST_DOCUMENT:
                raise self._error("is a JSON document above 256 MiB", mend="export it as NDJSON or CSV")
        try:
            value = json.loads("".join(parts))
        except (ValueError, RecursionError) as exc:
            raise TraceError(f"is not JSON ({exc})", where=self.source, mend=MEND_KIND) from exc
        samples = value.get("samples") if isinstance(value, dict) else value
        if not isinstance(samples, list) or not samples:
            raise TraceError("has no samples", where=self.source, mend='a JSON trace is {"samples": [...]}')
        self.line = 0
        shown = next((sample for sample in samples if isinstance(sample, dict)), {})
        self._need(shown)
        for self.line, sample in enumerate(samples, 1):
            yield _record(sample)

    def _mprof(self, lines: Iterable[str]) -> Iterator[Row | str]:
        """`MEM <MiB> <unix time>`, and `CHLD <pid> <MiB> <unix time>` lines of the same moment after it."""
        row: Row | None = None
        for text in lines:
            words = text.split()
            if not words or words[0] in {"CMDLINE", "FUNC"}:
                continue
            if words[0] == "MEM" and len(words) == 3:
                if row is not None:
                    yield row
                made = _row((("rss_bytes", words[1]), ("unix_s", words[2])), scale=MIB)
                row = made if isinstance(made, dict) else None
                if isinstance(made, str):
                    yield made
            elif words[0] == "CHLD" and len(words) == 4:
                child = _number(words[2], scale=MIB)
                if row is not None and "rss_bytes" in row and child >= 0:
                    row["rss_bytes"] = min(row["rss_bytes"] + child, LARGEST)
            else:
                yield "not a line of mprof"
        if row is not None:
            yield row

    def _psrecord(self, lines: Iterable[str]) -> Iterator[Row | str]:
        """Elapsed seconds, CPU, resident and virtual memory in MiB (psrecord divides by 1024 twice)."""
        for text in lines:
            words = text.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) < 3:
                yield f"{len(words)} of 4 fields"
            else:
                yield _row((("t_s", words[0]), ("rss_bytes", words[2])), scale=MIB)

    def _collect(self, trace: Trace, rows: Iterator[Row | str]) -> Trace:
        columns: dict[str, array[float]] = {}
        numbers = array("q")
        for row in rows:
            if isinstance(row, str):
                self._skip(trace, f"line {self.line}: {row}")
                continue
            for name in row.keys() - columns.keys():  # a column begins where it first has a value
                columns[name] = array("d", [nan]) * len(numbers)
            for name, column in columns.items():
                column.append(row.get(name, nan))
            numbers.append(self.line)
            if len(numbers) > MOST_SAMPLES:
                raise self._error(f"has more than {MOST_SAMPLES} samples", mend="split it, or record less often")
        return self._finish(trace, columns, numbers)

    def _skip(self, trace: Trace, why: str) -> None:
        trace.skipped_lines += 1
        trace.first_skipped = trace.first_skipped or why

    def _finish(self, trace: Trace, columns: dict[str, array[float]], numbers: Sequence[int]) -> Trace:
        unknown = array("d", [nan]) * len(numbers)
        own, unix = columns.pop("t_s", unknown), columns.pop("unix_s", unknown)
        clock = own if _mostly_known(own) else unix
        keep = [i for i, t in enumerate(clock) if not isnan(t)]
        for i, t in enumerate(clock):
            if isnan(t):
                self._skip(trace, f"line {numbers[i]}: no time")
        rss = columns.pop("rss_bytes", unknown)
        used = columns.get("used_bytes", unknown)
        if not any(rss[i] >= 0 or used[i] >= 0 for i in keep):
            why = f" ({trace.first_skipped})" if trace.first_skipped else ""
            raise TraceError(f"has no usable sample{why}", where=self.source, mend=MEND_COLUMNS)
        keep = self._in_order(trace, clock, keep, numbers)
        trace.start_unix_s = None if isnan(unix[keep[0]]) else unix[keep[0]]
        zero_s = clock[keep[0]] if clock is unix else 0.0
        trace.t_s = array("d", (clock[i] - zero_s for i in keep))
        trace.rss_bytes = array("d", (rss[i] for i in keep))
        trace.columns = {name: array("d", (column[i] for i in keep)) for name, column in columns.items()}
        return trace

    def _in_order(self, trace: Trace, clock: Sequence[float], keep: list[int], numbers: Sequence[int]) -> list[int]:
        back = [(a, b) for a, b in pairwise(keep) if clock[b] < clock[a]]
        if not back:
            return keep
        forward = sorted(clock[b] - clock[a] for a, b in pairwise(keep) if clock[b] > clock[a])
        usual_s = forward[len(forward) // 2] if forward else 0.0
        reached = -inf
        for i in keep:
            if clock[i] < reached - SORTABLE_INTERVALS * usual_s:
                raise self._error(
                    f"time runs back from {reached:g} s to {clock[i]:g} s",
                    mend="split the file: it seems to hold two recordings",
                    line=numbers[i],
                )
            reached = max(reached, clock[i])
        trace.sorted_lines = len(back)
        return sorted(keep, key=clock.__getitem__)


def _fields(text: str, mark: str) -> list[str]:
    text = text.rstrip("\r\n")
    if '"' not in text:
        return text.split(mark)
    import csv

    try:
        return next(csv.reader([text], delimiter=mark), [])
    except csv.Error:
        return []


def _record(value: object) -> Row | str:
    if not isinstance(value, dict):
        return "not an object"
    return _row((name, value[name]) for name in WANTED & value.keys())


def _row(cells: Iterable[tuple[str, object]], *, scale: int = 1) -> Row | str:
    """Numbers by name. A bad time or RSS spoils the row; any other bad or empty value is unknown."""
    row: Row = {}
    for name, cell in cells:
        if cell is None or cell == "":
            continue
        number = _number(cell, scale=scale if name == "rss_bytes" else 1)
        if not isnan(number):
            row[name] = number
        elif name in {"rss_bytes", "t_s", "unix_s"}:
            return f"{name} is {str(cell)[:40]!r}"
    return row


def _number(cell: object, *, scale: int = 1) -> float:
    """A usable number, not below zero; NaN for anything else."""
    if isinstance(cell, bool) or not isinstance(cell, (str, int, float)):
        return nan
    try:
        number = float(cell) * scale
    except (ValueError, OverflowError):
        return nan
    return number if 0 <= number <= LARGEST else nan


def _mostly_known(column: Sequence[float]) -> bool:
    return sum(map(isnan, column)) * 2 < len(column)
