"""`memwarden monitor`: how memory is and was, line by line, of a process, a tree, a name, or the machine.

Samples are taken at fixed times after the start, so that a slow terminal does not make the record drift. It ends
with its duration, with the process it watches, or by SIGINT, SIGTERM or SIGHUP: each time cleanly, with the export
written and exit code 0, because ending a monitor is how one uses it.
"""

from __future__ import annotations

import sys
from collections import deque
from contextlib import ExitStack
from math import floor
from typing import TYPE_CHECKING, Any

from memwarden.cli import _alerting, _table
from memwarden.cli._export import Outlet, Recorder, open_export
from memwarden.cli._stop import stopped_by_signals
from memwarden.cli._targets import Ended, Group, OneProcess, Surroundings, lines_here
from memwarden.errors import ConfigError
from memwarden.facts import Level
from memwarden.facts import Surroundings as Around
from memwarden.findings import Findings
from memwarden.judge import History, Judge
from memwarden.sense import Machine, SystemClock
from memwarden.units import format_bytes, format_duration, format_ratio, parse_bytes, parse_duration, parse_ratio

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from memwarden.cli._queues import Queues
    from memwarden.cli._rich import RichTable
    from memwarden.cli._targets import Sample, Target
    from memwarden.facts import Finding, Reading
    from memwarden.ports import Clock
    from memwarden.ports import Machine as MachinePort

FINDING = 1
FORMATS = ("table", "json", "ndjson", "csv")
# A look at one process costs 60 us and at a group milliseconds: closer samples would measure the monitor.
SHORTEST_S = 0.01
# Growth is that of the last minute; the first seconds of anything are no growth.
GROWTH_WINDOW_S = 60.0
GROWTH_BUCKETS = 40
GROWTH_AFTER_S = 2.0
GROWTH_EVERY_S = 0.5
# As the recordings of real programs that the leak verdict was fitted on; and the window of spikes.
LEAK_SHORTEST_S = 0.25
FINDINGS_WINDOW_S = 1800.0
# Findings that the summary lists: a spike every ten minutes for most of a day.
TOLD = 100
FAIL_ON = ("threshold", "leak", "growth", "spike")

DESCRIPTION = (
    "How memory is, line by line. Without --pid or --match it is that of the container we are in, or of the machine "
    "where there is none. `used %` is what counts against the limit: of the process itself with --limit, else of its "
    "container or machine, which then has a column of its own."
)
EPILOG = (
    "examples: memwarden monitor --pid 4242 | memwarden monitor --match gunicorn --limit 1G | "
    "memwarden monitor --pid 4242 --tree --export run.csv.gz --quiet | memwarden analyze run.csv.gz. "
    "exit codes: 0, also after Ctrl-C; 1 with --fail where the threshold was reached, or with --fail-on where that was "
    "found; 2 wrong usage"
)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `monitor`."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add("--pid", metavar="PID", type=int, help="this process")
    add("--tree", action="store_true", help="with --pid: and all it started, with their sum")
    add("--match", metavar="NAME", help="all processes whose name or command line holds it (a regular expression)")
    add("--pss", action="store_true", help="with --tree or --match: split shared pages; walks their page tables")
    add("--interval", metavar="TIME", default="1s", help="from sample to sample (default 1s)")
    add("--duration", metavar="TIME", help="end after 30s, 5m, ... (default: unlimited)")
    add("--threshold", metavar="RATIO", default="80%", help="mark samples at or above it with ! (default 80%%)")
    add("--fail", action="store_true", help="exit 1 when the threshold was ever reached")
    add(
        "--fail-on", choices=FAIL_ON, action="append", default=[],
        help="exit 1 when the threshold was ever reached, a leak is suspected at the end or was confirmed, memory grew "
        "rapidly, or a spike was seen; may be repeated",
    )  # fmt: skip
    add("--limit", metavar="SIZE", help="judge by this limit where it is the tightest: 512M")
    add("--jobs", action="store_true", help="with the queues of memory-aware jobs: waiting, running, failed")
    add("--format", choices=FORMATS, default="table", help="on standard output (default table)")
    add("--export", "--output-file", metavar="FILE", help="record to .csv, .ndjson or .json, also with .gz")
    add("--quiet", action="store_true", help="no table and no remarks: the export and the exit code")
    add("--verbose", action="store_true", help="say why the level is what it is, and every limit there is")
    add("--rich", action="store_true", help="on a terminal, draw the table with rich")
    _alerting.add_arguments(parser)


def run(args: Namespace) -> int:
    """Watch until the end. Raises MemwardenError (one line, exit code 2) for what cannot be watched or written."""
    plan = _Plan(args)
    machine, clock = Machine(), SystemClock()
    target = _target(args, machine, clock, plan.limit_bytes)
    judge = Judge(lines_here(machine))
    with ExitStack() as stack:
        stop = stack.enter_context(stopped_by_signals())
        watch = Watch(target, judge, clock, plan)
        try:
            watch.open(args)
            watch.run(stop)
        finally:
            watch.finish()
    wanted = {*args.fail_on, *(("threshold",) if args.fail else ())}
    return FINDING if wanted & watch.found() else 0


class _Plan:
    """The checked numbers of the command line. Raises ConfigError."""

    def __init__(self, args: Namespace) -> None:
        if args.pid is not None and args.match is not None:
            raise ConfigError("both given", where="--pid and --match", mend="choose one")
        if args.pid is not None and args.pid <= 0:
            raise ConfigError(f"{args.pid} is no pid", where="--pid", mend="give the pid of a running process")
        if args.tree and args.pid is None:
            raise ConfigError("needs a root", where="--tree", mend="add --pid PID")
        if args.pss and not (args.tree or args.match is not None):
            raise ConfigError("is for several processes", where="--pss", mend="add --tree or --match")
        if args.rich and args.format != "table":
            raise ConfigError("draws a table", where="--rich", mend=f"leave out --format {args.format}")
        self.interval_s = parse_duration(args.interval, where="--interval")
        if self.interval_s < SHORTEST_S:
            raise ConfigError(
                f"{args.interval} is too short", where="--interval", mend=f"{format_duration(SHORTEST_S)} or more"
            )
        self.duration_s = None if args.duration is None else parse_duration(args.duration, where="--duration")
        if self.duration_s == 0:
            raise ConfigError("0 is no duration", where="--duration", mend="leave it out for unlimited")
        self.threshold = parse_ratio(args.threshold, where="--threshold")
        self.limit_bytes = None if args.limit is None else parse_bytes(args.limit, where="--limit")
        self.verbose: bool = args.verbose
        self.quiet: bool = args.quiet
        self.jobs: bool = args.jobs


def _target(args: Namespace, machine: MachinePort, clock: Clock, limit_bytes: int | None) -> Target:
    if args.match is not None:
        return Group(machine, clock, pattern=args.match, cap_bytes=limit_bytes, pss=args.pss)
    if args.pid is None:
        return Surroundings(machine, clock, cap_bytes=limit_bytes)
    if args.tree:
        return Group(machine, clock, pid=args.pid, cap_bytes=limit_bytes, pss=args.pss)
    return OneProcess(machine, clock, args.pid, cap_bytes=limit_bytes)


class Watch:
    """The loop: look, judge, show, record; at fixed times until the end."""

    def __init__(self, target: Target, judge: Judge, clock: Clock, plan: _Plan) -> None:
        self._target, self._judge, self._clock, self._plan = target, judge, clock, plan
        self._table: _table.Table | RichTable | None = None
        self._recorders: list[Recorder] = []
        self._alerting: _alerting.Alerting | None = None
        self._history = History(GROWTH_WINDOW_S, buckets=GROWTH_BUCKETS)
        self._growth: float | None = None
        self._level = Level.NORMAL
        self._growth_due_s = 0.0
        self._findings = Findings(
            clock=clock,
            pid=target.pid or 0,
            leak_s=max(plan.interval_s, LEAK_SHORTEST_S),
            window_s=FINDINGS_WINDOW_S,
            columns=dict,
        )
        self.told: deque[Finding] = deque(maxlen=TOLD)
        self._found: set[str] = set()
        self._start_s = clock.monotonic()
        self._last_s = self._start_s
        self._sum = 0
        self._known = 0
        self._peak: int | None = None
        self.samples = 0
        self.above = 0
        self.ended = "failed"
        self._queues: Queues | None = None
        if plan.jobs:
            from memwarden.cli._queues import Queues

            self._queues = Queues()

    # --- outputs -------------------------------------------------------------------------------------------------

    def open(self, args: Namespace) -> None:
        """The table, the recorders and the alerts that the command line asks for. Raises MemwardenError."""
        self._alerting = _alerting.Alerting.of(args, target=self._target.title, threshold=self._plan.threshold)
        if args.export is not None:
            self._recorders.append(open_export(args.export, args.format, self._about()))
        if args.format != "table":
            self._recorders.append(Recorder(Outlet(), args.format, self._about()))
        elif not self._plan.quiet:
            self._table = self._make_table(rich=args.rich)

    def _make_table(self, *, rich: bool) -> _table.Table | RichTable:
        fine = self._plan.interval_s < 1
        terminal = _table.on_terminal()
        if rich and terminal:
            from memwarden.cli._rich import RichTable

            self._introduce()
            return RichTable(title=self._target.title, fine=fine)
        self._introduce()
        return _table.Table(
            Outlet(), terminal=terminal, colour=_table.wants_colour(), fine=fine, block=self._target.is_group
        )

    def _introduce(self) -> None:
        limit = self._target.limit()
        _say(f"watching {_table.printable(self._target.title)}, every {format_duration(self._plan.interval_s)}")
        _say(f"limit: {limit.explain()}")
        _say(self._target.explain)
        _say(f"! marks {format_ratio(self._plan.threshold)} of the limit and more")
        if self._plan.verbose:
            for each in limit.chain:
                _say(f"  {each.kind:<8} {format_bytes(each.bytes) if each.bytes else each.note:<12} {each.source}")

    def _about(self) -> dict[str, Any]:
        limit = self._target.limit()
        return {
            "target": self._target.title,
            "pid": self._target.pid,
            "interval_s": self._plan.interval_s,
            "started_unix_s": round(self._clock.wall(), 3),
            "threshold": self._plan.threshold,
            "limit": {"bytes": limit.bytes, "source": limit.source, "kind": limit.kind, "scope": limit.scope},
        }

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self, stop: Any) -> None:
        """Sample until the duration is over, the target has ended or `stop` is set."""
        clock, interval_s, duration_s = self._clock, self._plan.interval_s, self._plan.duration_s
        self._start_s = self._last_s = clock.monotonic()
        end_s = None if duration_s is None else self._start_s + duration_s
        number = 0
        while True:
            try:
                self._sample()
            except Ended as ended:
                self.ended = str(ended)
                return
            now_s = clock.monotonic()
            # The next of the fixed times that is not over yet: a late sample leaves some out and shifts none.
            number = max(number + 1, floor((now_s - self._start_s) / interval_s + 1e-9) + 1)
            due_s = self._start_s + number * interval_s
            # A sample that falls on the end itself belongs to the record: 0, 1, 2 and 3 s of 3 s.
            last = end_s is not None and due_s > end_s + interval_s * 1e-6
            wait_s = (end_s if last and end_s is not None else due_s) - now_s
            if clock.wait(stop, max(0.0, wait_s)):
                self.ended = "stopped"
                return
            if last:
                self.ended = "duration"
                return

    def _sample(self) -> None:
        sample = self._target.look()
        self._last_s = sample.reading.monotonic_s
        verdict = self._judge.weigh(sample.reading)
        ratio = sample.reading.pressure_ratio
        changed, self._level = verdict.level != self._level, verdict.level
        line = _table.Line(
            sample=sample,
            level=verdict.level,
            growth_bytes_per_minute=self._grow(sample),
            above=ratio is not None and ratio >= self._plan.threshold,
            # 58 % and CRITICAL looks like a mistake until one reads that the limit is ten seconds away.
            reasons="; ".join(each.text for each in verdict.reasons) if changed or self._plan.verbose else "",
        )
        self._count(line)
        if self._alerting is not None:
            self._alerting.sample(verdict, above=line.above)
        found = self._findings.sample(_of_target(sample))
        if found:
            if self._alerting is not None:
                self._alerting.found(found)
            self.told += found
            self._found |= {each.what if each.kind == "leak" else each.kind for each in found}
            line = line.replace(reasons="; ".join(w for w in (line.reasons, *map(_in_words, found)) if w))
            if self._table is None and not self._plan.quiet:
                for each in found:
                    _say(_in_words(each))
        queues = None if self._queues is None else self._queues.look()
        if self._queues is not None and queues is not None and (news := self._queues.news(queues)):
            line = line.replace(reasons="; ".join(words for words in (line.reasons, news) if words))
        if self._table is not None:
            self._table.add(line)
        if self._recorders:
            row = self._row(line)
            if queues is not None:
                row["jobs"] = None if self._queues is not None and self._queues.why_not else queues
            if found:
                row["findings"] = [_row_of(each) for each in found]
            for recorder in self._recorders:
                recorder.add(row)

    def _grow(self, sample: Sample) -> float | None:
        """Robust growth over the last minute; a trend costs a millisecond, so twice a second at most."""
        now_s, current = sample.reading.monotonic_s, sample.current_bytes
        if current is not None:
            self._history.add(now_s, current)
        if now_s >= self._growth_due_s and now_s - self._start_s >= GROWTH_AFTER_S:
            from memwarden.judge.trend import trend

            self._growth_due_s = now_s + GROWTH_EVERY_S
            self._growth = trend(self._history).growth_bytes_per_minute
        return self._growth

    def _count(self, line: _table.Line) -> None:
        self.samples += 1
        self.above += line.above
        if line.sample.current_bytes is not None:
            self._sum += line.sample.current_bytes
            self._known += 1
        self._peak = line.sample.peak_bytes if line.sample.peak_bytes is not None else self._peak

    def _row(self, line: _table.Line) -> dict[str, Any]:
        sample, reading = line.sample, line.sample.reading
        usage, ratio = sample.usage, reading.pressure_ratio
        row: dict[str, Any] = {
            "t_s": round(reading.monotonic_s - self._start_s, 3),
            "unix_s": round(reading.unix_s, 3),
            "rss_bytes": reading.rss_bytes,
            "used_bytes": reading.used_bytes,
            "limit_bytes": reading.limit_bytes,
            "anon_bytes": usage.anon_bytes if usage is not None else None,
            "current_bytes": sample.current_bytes,
            "peak_bytes": sample.peak_bytes,
            "used_low_bytes": reading.used_low_bytes,
            "usage_ratio": None if ratio is None else round(ratio, 6),
            "level": line.level.name,
            "growth_bytes_per_minute": None
            if line.growth_bytes_per_minute is None
            else int(line.growth_bytes_per_minute),
            "shmem_bytes": usage.shmem_bytes if usage is not None else None,
            "swap_bytes": usage.swap_bytes if usage is not None else None,
            "pss_bytes": usage.pss_bytes if usage is not None else None,
            "processes": sample.processes,
            "pid": self._target.pid,
            "scope": reading.scope,
            "limit_source": reading.limit_source,
            "above_threshold": line.above,
        }
        if self._plan.verbose:
            row["reasons"] = line.reasons
        if sample.parts:
            row["parts"] = [{**each.as_dict(), "name": sample.names.get(each.pid, "")} for each in sample.parts]
        return row

    # --- the end -------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """What there was, in figures."""
        leak = self._findings.leak
        return {
            "samples": self.samples,
            "duration_s": round(self._last_s - self._start_s, 3),
            "average_bytes": self._sum // self._known if self._known else None,
            "peak_bytes": self._peak,
            "above_threshold": self.above,
            "ended": self.ended,
            "leak": {"stage": leak.stage, "cause": leak.cause or None, "confidence": leak.confidence},
            "findings": [_row_of(each) for each in self.told],
        }

    def found(self) -> set[str]:
        """Those of FAIL_ON that were found. A suspicion that was withdrawn is none."""
        found = {"threshold"} if self.above else set()
        if self._findings.leak.stage != "quiet" or "confirmed" in self._found:
            found.add("leak")
        if "rapid growth" in self._found:
            found.add("growth")
        return found | ({"spike"} & self._found)

    def finish(self) -> None:
        """Everything that was begun is ended, the alerts last: a receiver may be slow."""
        try:
            self._finish()
        finally:
            if self._alerting is not None:
                self._alerting.end()

    def _finish(self) -> None:
        """Close every output, whatever ended the watch, and say how it was."""
        with ExitStack() as stack:
            for each in self._recorders:
                stack.callback(each.finish, self.summary())
            if self._table is not None:
                stack.callback(self._table.end)
            if self._queues is not None:
                stack.callback(self._queues.close)
        if self._plan.quiet or self.ended == "failed":
            return
        why = "" if self.ended in ("duration", "stopped") else self.ended
        if self._table is None:
            if why:
                _say(why)
            return
        found = self.summary()
        if self.ended == "stopped" and sys.stderr.isatty():
            _say("")  # the terminal has just written ^C
        _say(
            f"{why and why + '; '}{found['samples']} samples in {format_duration(found['duration_s'])}: average "
            f"{format_bytes(found['average_bytes'])}, peak {format_bytes(found['peak_bytes'])}, "
            f"{found['above_threshold']} at or above {format_ratio(self._plan.threshold)}"
        )
        for advice in self._findings.leak.advice if self._findings.leak.stage != "quiet" else ():
            _say(advice)


def _of_target(sample: Sample) -> Reading:
    """The reading with what the target itself holds, as findings are about that."""
    reading = sample.reading
    anon = sample.usage.anon_bytes if sample.usage is not None else None
    around = Around(monotonic_s=reading.monotonic_s, anon_bytes=anon)
    return reading.replace(rss_bytes=sample.current_bytes, around=around)


def _in_words(finding: Finding) -> str:
    return f"{finding.kind} {finding.what}: {finding.text}"


def _row_of(finding: Finding) -> dict[str, Any]:
    row = {"kind": finding.kind, "what": finding.what, "text": finding.text, "unix_s": round(finding.unix_s, 3)}
    if finding.leak is not None:
        row |= {"cause": finding.leak.cause or None, "confidence": finding.leak.confidence}
    return row


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
