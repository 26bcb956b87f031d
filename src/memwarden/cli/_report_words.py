"""A report in words: three sentences, what each process, alert and queue did, and what could be done about it.

Nothing is said that is not on record. What could not be asked is "not known", with the reason, and never a zero.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

from memwarden.cli._document import Document, Heading, Items, Picture, Table, Text
from memwarden.cli._output import one_line
from memwarden.cli._plot import Plot, size_step, size_text, time_step
from memwarden.cli._report import KERNEL, MOST_DRAWN, MOST_EVENTS, UNRECORDED
from memwarden.facts import Level
from memwarden.judge.advise import CAUSE_ADVICE, FAR_BELOW, TIGHT, limit_advice
from memwarden.tell.engine import REASONS
from memwarden.tell.signals import KINDS
from memwarden.units import format_bytes, format_duration, format_ratio

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from memwarden.cli._document import Block
    from memwarden.cli._report import Alert, Death, Leak, Program, Report
    from memwarden.jobs.ledger import Season

MOST_ADVICE = 5
MOST_ALERTS, MOST_LEFT_OUT, MOST_NAMED = 50, 20, 3
# The history ends so long before the present: whoever keeps it runs no more. It folds every 5 s, and a calm process is
# looked at every half minute or so.
STALE_S = 600.0
# A limit further above the curve than that would flatten it: it is named and not drawn.
DRAWN_LIMIT = 4.0
PICTURE_HEIGHT = 190.0
# What `keep` of a job is where it says nothing (jobs.ledger).
JOBS_KEPT_S = 7 * 86_400.0
# A day less the first and the last minutes.
WHOLE_DAY_S = 86_000.0
ROWS_OF_PICTURE = 12
FOOTER = (
    "Made by memwarden report. Sizes are binary: 1 MiB is 1 048 576 bytes. A dash is a figure that does not apply, "
    "“not known” one that nobody kept."
)
UNKNOWN = "not known"

_ENDS = {
    "oom_kill": "killed by the kernel for memory",
    "oom_kill_of_descendant": "ended after the kernel killed a process of it for memory",
    "after_oom_kill": "ended after the kernel killed a process of it for memory",
    "killed": "killed by a SIGKILL that was not the kernel's",
    "crashed": "crashed",
    "ended_with_command": "ended with its command",
    "unknown": "gone without a word",
}


# --- time ------------------------------------------------------------------------------------------------------------


def moment(unix_s: float | None) -> str:
    """A time of day with its date, of this machine's time zone (TZ)."""
    return UNKNOWN if unix_s is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_s))


def zone(from_s: float, to_s: float) -> str:
    """The time zone that the times are of; two names where the clocks changed in between."""
    names = []
    for each in (from_s, to_s):
        local = time.localtime(each)
        hours, minutes = divmod(abs(local.tm_gmtoff) // 60, 60)
        names.append(f"{local.tm_zone} (UTC{'-' if local.tm_gmtoff < 0 else '+'}{hours:02}:{minutes:02})")
    return " and ".join(dict.fromkeys(names))


# --- the page --------------------------------------------------------------------------------------------------------


def document(report: Report) -> Document:
    """All of it."""
    span = report.span
    under = (
        f"{report.host}, {format_duration(span.to_s - span.from_s)} from {moment(span.from_s)} to {moment(span.to_s)}; "
        f"times are {zone(span.from_s, span.to_s)}; made {moment(span.now_s)}"
    )
    blocks: list[Block] = [Text(text=text, mood=mood) for text, mood in sentences(report)]
    if advice := recommendations(report):
        blocks += [Heading(text="What could be done"), Items(items=tuple(advice), ordered=True)]
    blocks += [*_processes(report), *_alerts(report), *_jobs(report), *_sources(report)]
    return Document(title="Memory report", under=under, blocks=tuple(blocks), footer=FOOTER)


def as_json(report: Report) -> dict[str, Any]:
    """The same as data: bytes, seconds, Unix time; null is not known."""
    span = report.span
    return {
        "host": report.host, "folder": report.folder, "from_unix_s": span.from_s, "to_unix_s": span.to_s,
        "made_unix_s": round(span.now_s, 3), "zone": zone(span.from_s, span.to_s),
        "sentences": [text for text, _ in sentences(report)], "recommendations": recommendations(report),
        "missing": dict(report.missing), "history_from_unix_s": report.history_from_s,
        "newest_unix_s": report.newest_s, "step_s": report.step_s, "fine_s": report.fine_s,
        "processes": [_plain(each, kills=each.kills) for each in report.programs], "unlisted": report.unlisted,
        "deaths": [each.as_dict() for each in report.deaths], "leaks": [each.as_dict() for each in report.leaks],
        "alerts": None if "alerts" in report.missing else [_plain(each) for each in report.alerts],
        "alerts_cut": report.alerts_cut, "channels": [each.as_dict() for each in report.channels],
        "queues": None if "jobs" in report.missing else [dict(each) for each in report.queues],
        "seasons": [each.as_dict() for each in report.seasons],
        "failed_jobs": [each.as_dict() for each in report.failed],
        "quarantine": [each.as_dict() for each in report.quarantine],
    }  # fmt: skip


def _plain(fact: Program | Alert, **more: Any) -> dict[str, Any]:
    found = {**fact.as_dict(), **more}
    for name in ("deaths", "leaks", "course"):
        if name in found:
            found[name] = [each.as_dict() for each in found[name]]
    for point in found.get("course", ()):
        point["level"] = point["level"].name
    if "level" in found:
        found["level"] = Level(found["level"]).name
    return found


# --- the three sentences ---------------------------------------------------------------------------------------------


def sentences(report: Report) -> list[tuple[str, str]]:
    """(sentence, mood) each: killed or near the limit; leaking; told, and the jobs."""
    told, told_mood = _told(report)
    jobs, jobs_mood = _done(report)
    worst = max((told_mood, jobs_mood), key=("good", "", "warn", "bad").index)
    return [_killed(report), _leaking(report), (f"{told}; {jobs}.", worst or "warn")]


def _killed(report: Report) -> tuple[str, str]:
    kernel = [each for each in report.deaths if each.verdict in KERNEL]
    parts = sum(season.endings.get("oom_kill", 0) for season in report.seasons)
    words = []
    if kernel:
        words.append(f"{_times(kernel)} for memory, last at {moment(kernel[0].unix_s)}")
    elif report.deaths:
        words.append("no guarded process is known to have been killed for memory")
    if parts:
        words.append(f"the kernel killed {_count(parts, 'attempt')} at jobs for memory")
    others = [each for each in report.deaths if each.verdict not in KERNEL]
    if others:
        kinds = ", ".join(dict.fromkeys(_ENDS[each.verdict] for each in others))
        words.append(f"{_count(len(others), 'process', 'es')} did not end in order ({kinds})")
    near = [each for each in report.programs if (each.peak_ratio or 0.0) >= TIGHT]
    if near:
        words.append(f"near the limit (90 % or more): {_some(_peak_words(each) for each in near)}")
    known = [each for each in report.programs if each.peak_ratio is not None]
    no_history = "history" in report.missing
    if not known and not report.deaths and not parts:
        if report.programs and not no_history:
            return "No process was killed; how near any was to a limit is not known: no limit is on record.", "warn"
        what = "Whether anything was killed or near its limit is not known"
        return f"{what}: {_why(report, 'history')}.", "warn"
    if not words:
        highest = max(known, key=lambda each: each.peak_ratio or 0.0)
        words = [f"nothing was killed or near its limit; the highest was {_peak_words(highest)}"]
        if no_history:
            words = [f"no kill is on record; the highest that black boxes still have was {_peak_words(highest)}"]
    mood = "bad" if kernel else "warn" if near or others or parts else "good"
    if no_history:
        words.append(f"more is not known: {_why(report, 'history')}")
        mood = "warn" if mood == "good" else mood
    elif (gap := _gap(report)) is not None:
        words.append(gap)
        mood = "warn" if mood == "good" else mood
    return f"{_sentence('; '.join(words))}.", mood


def _gap(report: Report) -> str | None:
    """What the history does not cover of the span."""
    span, words = report.span, []
    if report.history_from_s is None:
        return "the history is empty"
    if report.history_from_s > span.from_s + max(STALE_S, report.step_s):
        words.append(f"before {moment(report.history_from_s)} nothing is known")
    if not any(each.kept for each in report.programs):
        words.append("no figures are of this time")
    elif (
        report.newest_s is not None and span.is_to_now and span.to_s - report.newest_s > max(STALE_S, 2 * report.step_s)
    ):
        words.append(f"the last figure is of {moment(report.newest_s)}")
    return ", ".join(words) or None


def _leaking(report: Report) -> tuple[str, str]:
    standing = _standing(report)
    over = sum(not each.stands for each in report.leaks)
    if standing:
        words = _some(f"{each.name} ({each.stage}, confidence {each.confidence} of 100)" for each in standing)
        more = f"; {over} more {'was' if over == 1 else 'were'} withdrawn or resolved" if over else ""
        bad = any(each.stage == "confirmed" for each in standing)
        return f"Memory leaks: {words}{more}.", "bad" if bad else "warn"
    if over:
        return f"Nothing leaks now; {_count(over, 'leak')} that was suspected is withdrawn or resolved.", "good"
    if not any(each.judged for each in report.programs):
        why = "no process was watched from inside, where leaks are judged" if report.programs else _why(report, "boxes")
        return f"Whether anything leaks is not known: {why}.", "warn"
    if report.unjudged:
        words = f"no verdict is kept of {_count(report.unjudged, 'process', 'es')}"
        return f"No leak is on record; {words}.", "warn"
    return "Nothing was found to leak.", "good"


def _standing(report: Report) -> list[Leak]:
    """Those that stand, or stood when their process ended: the surest of each program."""
    found: dict[str, Leak] = {}
    for each in sorted(report.leaks, key=lambda leak: (leak.stage != "confirmed", -leak.confidence)):
        if each.stands:
            found.setdefault(each.name, each)
    return list(found.values())


def _told(report: Report) -> tuple[str, str]:
    if "alerts" in report.missing:
        return f"Whether anybody was told of anything is not known ({_why(report, 'alerts')})", "warn"
    alerts = report.alerts
    if not alerts:
        if not report.channels:
            return "No alert is on record, and no channel that would have told anybody", ""
        return "No alert is on record", "good"
    lost = [each for each in alerts if each.lost or each.waiting]
    reached = sum(each.reached for each in alerts)
    count = _count(len(alerts), "alert")
    words = f"{count}{' or more' * report.alerts_cut}, of which {reached} reached somebody"
    if lost:
        channels = sorted({name for each in lost for name in (*each.lost, *each.waiting)})
        words += f" ({', '.join(channels)} did not deliver everything)"
    bad = any(not each.reached and each.level >= Level.CRITICAL for each in alerts)
    return words, "bad" if bad else "warn" if lost or reached < len(alerts) else "good"


def _done(report: Report) -> tuple[str, str]:
    if "jobs" in report.missing:
        return f"whether jobs got done is not known ({_why(report, 'jobs')})", "warn"
    if not report.seasons and not report.queues:
        return "no job is on record", ""
    done, failed = (sum(getattr(each, name) for each in report.seasons) for name in ("done", "failed"))
    still = sum(each["jobs_open"] for each in report.queues)
    kept = " that are still on record" if report.span.to_s - report.span.from_s > JOBS_KEPT_S else ""
    now = f"{still} {'is' if still == 1 else 'are'} open now"
    words = f"{_count(done, 'job')}{kept} got done, {failed} failed, {now}"
    if report.quarantine:
        words += f", {_left_out(report)} in quarantine"
    return words, "bad" if failed else "warn" if report.quarantine else "good"


def _times(kernel: Sequence[Death]) -> str:
    counts: dict[str, int] = {}
    for each in kernel:
        counts[each.name] = counts.get(each.name, 0) + 1
    doubt = "" if all(each.certain for each in kernel) else "probably "
    words = _some(f"{name} {_often(count)}" for name, count in counts.items())
    return f"the kernel {doubt}killed {words}"


def _peak_words(it: Program) -> str:
    return f"{it.name} with {format_ratio(it.peak_ratio)} of {_limit(it)}"


def _why(report: Report, name: str) -> str:
    return report.missing.get(name, "nothing is on record of this time").rstrip(".")


# --- what could be done ----------------------------------------------------------------------------------------------


def recommendations(report: Report) -> list[str]:
    """At most five, each from a finding and with its figures, the most urgent first."""
    kinds = (_about_kills, _about_channels, _about_leaks, _about_limits, _about_jobs, _about_sources, _about_room)
    found = [list(each(report)) for each in kinds]
    # No kind takes all the room: of each the first, as long as there is some, then the others.
    first = [(kind, 0) for kind, some in enumerate(found) if some]
    others = [(kind, number) for kind, some in enumerate(found) for number in range(1, len(some))]
    return [found[kind][number] for kind, number in sorted((first + others)[:MOST_ADVICE])]


def _left_out(report: Report) -> str:
    return f"{_count(len(report.quarantine), 'item')} or range{'s' * (len(report.quarantine) != 1)} of items"


def _about_channels(report: Report) -> Iterable[str]:
    waiting: list[str] = []
    for each in report.channels:
        lost = [alert for alert in report.alerts if each.name in alert.lost]
        late = [alert for alert in report.alerts if each.name in alert.waiting]
        if lost or (late and each.failures):
            said = each.error or next((error for alert in lost for error in alert.errors), "")
            error = f" ({one_line(said, 120)})" if said else ""
            yield (
                f"Mend the channel {each.name}{error}: notices of {_count(len({*lost, *late}), 'alert')} were not "
                "delivered by it; `memwarden alerts test` tries it"
            )
        elif late:
            waiting.append(f"{each.name} ({_count(len(late), 'alert')})")
    if waiting:
        yield f"Have delivered what waits (`memwarden serve`, or `memwarden alerts deliver`): {', '.join(waiting)}"


def _about_kills(report: Report) -> Iterable[str]:
    for each in report.programs:
        if each.kills:
            wanted = f"set it to {format_bytes(each.recommended_bytes)}" if each.recommended_bytes else "raise it"
            yield (
                f"{each.name} was killed by the kernel {_often(each.kills)} at a limit of {_limit(each)}, its "
                f"peak was {_size(each.peak_bytes)}: {wanted}, or make the workload smaller; "
                + "while it leaks, more only postpones the next; " * any(leak.stands for leak in each.leaks)
                + f"`memwarden postmortem --pid {next(d.pid for d in each.deaths if d.verdict in KERNEL)}` says more"
            )


def _about_leaks(report: Report) -> Iterable[str]:
    for each in _standing(report):
        advice = CAUSE_ADVICE.get(each.cause or "unknown", CAUSE_ADVICE["unknown"])
        yield f"{each.name} (pid {each.pid}), leak {each.stage}: {each.text.rstrip('.')}. {_sentence(advice)}"


def _about_limits(report: Report) -> Iterable[str]:
    for each in report.programs:
        tight = (each.peak_ratio or 0.0) >= TIGHT and not each.kills
        if tight and each.peak_bytes and each.limit_bytes and each.recommended_bytes:
            words = limit_advice(each.peak_bytes, each.limit_bytes, each.recommended_bytes)
            yield (
                f"{each.name}: {words}"
                if words
                else f"{each.name} peaked at {format_ratio(each.peak_ratio)}: raise its limit"
            )


def _about_room(report: Report) -> Iterable[str]:
    """Limits that could be lower; an hour of it is no reason to take memory away, nor is anything that grows."""
    span = report.span
    if report.history_from_s is None or span.to_s - max(report.history_from_s, span.from_s) < WHOLE_DAY_S:
        return
    found = []
    for each in report.programs:
        same = each.least_limit_bytes == each.most_limit_bytes and not any(leak.stands for leak in each.leaks)
        low = same and not each.kills and (each.peak_ratio or 1.0) < FAR_BELOW
        if low and each.limit_bytes and each.recommended_bytes and each.recommended_bytes < each.limit_bytes:
            found.append(
                f"{each.name} to {format_bytes(each.recommended_bytes)} (its peak was {_size(each.peak_bytes)} of "
                f"{format_bytes(each.limit_bytes)})"
            )
    if found:
        yield f"{_count(len(found), 'limit')} could be lowered, for what was seen: {_some(found)}"


def _about_jobs(report: Report) -> Iterable[str]:
    if report.quarantine:
        roots = list(dict.fromkeys(each.root for each in report.quarantine))
        yield (
            f"Look at what is in quarantine, {_left_out(report)} at which workers died (`memwarden jobs quarantine`); "
            f"`memwarden jobs retry {roots[0]}` tries again"
        )
    failed = sum(each.failed for each in report.seasons)
    if failed:
        newest = report.failed[0] if report.failed else None
        words = f", the newest {newest.name}: {one_line(newest.error, 160)}" if newest is not None else ""
        yield f"{_count(failed, 'job')} failed{words}; `memwarden jobs list --state failed` has them"
    for each in report.seasons:
        if (each.peak_ratio or 0.0) >= 1.0 and each.limit_bytes:
            yield (
                f"Jobs of {_queue(each.queue, each.type)} peaked at {_size(each.peak_bytes)}, over their limit of "
                f"{format_bytes(each.limit_bytes)}: give them more, or smaller chunks"
            )


def _about_sources(report: Report) -> Iterable[str]:
    if "history" in report.missing:
        yield f"Keep a history, so that the next report knows more (`memwarden serve`): {report.missing['history']}"
    elif report.newest_s is not None and report.span.is_to_now and (gap := _gap(report)) and "last figure" in gap:
        yield f"Start the service again (`memwarden serve`): {gap}"
    if report.alerts and not report.channels:
        yield "Set up a channel for alerts ([alerts.channels.NAME] in the settings): nobody was told of any"


# --- processes -------------------------------------------------------------------------------------------------------


def _processes(report: Report) -> list[Block]:
    blocks: list[Block] = [Heading(text="Guarded processes")]
    if not report.programs:
        return [*blocks, Text(text=f"None is known: {_why(report, 'history')}.")]
    step = "minutes" if report.fine_s == 60 else "hours"
    heads = (
        "process", "limit", "average", "peak", "at WARNING", "at CRITICAL", "kills", "restarts", "leak", "would fit",
    )  # fmt: skip
    more = f" {report.unlisted} more are not listed." if report.unlisted else ""
    rows = tuple(_process_row(each) for each in report.programs)
    caption = (
        "Memory that counts against the limit. At WARNING, at CRITICAL: the time in whose "
        f"{step} that level, or a worse one, was reached. Restarts: began again after an end.{more}"
    )
    blocks.append(Table(heads=heads, rows=rows, caption=caption))
    for number, each in enumerate(report.programs):
        blocks += _process(each, report, drawn=number < MOST_DRAWN)
    return blocks


def _process_row(it: Program) -> tuple[str, ...]:
    leak = it.leaks[0] if it.leaks else None
    verdict = "none on record" if it.judged else "not judged"
    if leak is not None:
        verdict = leak.stage if leak.stands else "withdrawn or resolved"
    share = f" ({format_ratio(it.peak_ratio)})" if it.peak_ratio is not None else ""
    return (
        one_line(it.name, 40), _limit(it), _size(it.average_bytes), _size(it.peak_bytes) + share, _time(it.warning_s),
        _time(it.critical_s), str(it.kills), str(it.restarts), verdict, _size(it.recommended_bytes),
    )  # fmt: skip


def _process(it: Program, report: Report, *, drawn: bool) -> list[Block]:
    pids = ", ".join(str(pid) for pid in it.pids[:5]) + (f" and {len(it.pids) - 5} more" if len(it.pids) > 5 else "")
    words = [f"{_count(it.lives, 'process', 'es')} (pid {pids}): {one_line(it.argv, 160)}"]
    words.append(
        f"Limit {_limit(it)}" + (f", from {it.limit_source}" if it.limit_source else ", its source is not on record")
    )
    blocks: list[Block] = [Heading(text=one_line(it.name, 80), level=3), Text(text=". ".join(words) + ".")]
    facts = [f"{_sentence(_ENDS[each.verdict])} at {moment(each.unix_s)} (pid {each.pid})" for each in it.deaths[:5]]
    facts += [f"Leak {leak.stage} at {moment(leak.unix_s)}: {leak.text}" for leak in it.leaks[:3]]
    if not it.kept:
        facts.append("No history of it: the peak is what its black box still has")
    if facts:
        blocks.append(Items(items=tuple(facts)))
    if drawn and len(it.course) > 1:
        blocks.append(_picture(it, report))
    return blocks


def _picture(it: Program, report: Report) -> Picture:
    span = report.span
    high = max((size for point in it.course if (size := _high(point)) is not None), default=1)
    limits = [point.limit_bytes for point in it.course if point.limit_bytes]
    top_limit = max(limits, default=0)
    drawn = bool(limits) and top_limit <= DRAWN_LIMIT * high
    top = max(high, top_limit if drawn else 0, 1) * 1.1
    # From midnight on, so that the grid is on hours of the day.
    base = span.from_s - (span.from_s + time.localtime(span.from_s).tm_gmtoff) % 86_400
    x = (span.from_s - base, span.to_s - base)
    name = f"Memory of {one_line(it.name, 60)} over the span"
    plot = Plot(name, x=x, y=(0, top), height=PICTURE_HEIGHT)
    plot.grid_y(size_step(top) * (2 if top / size_step(top) > 4 else 1), size_text)
    step_s = time_step(x[1] - x[0])
    plot.grid_x(step_s, lambda at: _tick(at + base, step_s))
    for stretch in _stretches(it, report):
        highs = [(point.unix_s - base, float(_high(point) or 0)) for point in stretch]
        lows = [(point.unix_s - base, float(_low(point) or 0)) for point in stretch]
        if highs != lows and len(stretch) > 1:
            plot.area("band", highs + lows[::-1])
        plot.line("curve", highs)
    if drawn:
        _draw_limit(plot, it, base)
    for each in it.deaths:
        plot.upright("limit" if each.verdict in KERNEL else "now", each.unix_s - base, "")
    caption = "Blue: the highest at each time, its shade down to the lowest."
    if drawn:
        caption += " Red line: the limit."
    elif top_limit:
        caption += f" The limit of {format_bytes(top_limit)} is far above this picture."
    if it.deaths:
        caption += " Upright: an end."
    return Picture(svg=plot.svg(), caption=caption, figures=_figures(it))


def _draw_limit(plot: Plot, it: Program, base: float) -> None:
    sizes = {point.limit_bytes for point in it.course if point.limit_bytes}
    if len(sizes) == 1:
        limit = sizes.pop()
        plot.across("limit", limit, f"limit {format_bytes(limit)}")
        return
    points: list[tuple[float, float]] = []
    for point in it.course:
        if point.limit_bytes:
            points += [(point.unix_s - base, points[-1][1])] if points else []
            points.append((point.unix_s - base, float(point.limit_bytes)))
    plot.line("ahead", points)
    plot.text("limit", points[-1][0], points[-1][1], f"limit {format_bytes(points[-1][1])}", anchor="end")


def _tick(unix_s: float, step_s: float) -> str:
    return time.strftime("%m-%d" if step_s >= 86_400 else "%H:%M", time.localtime(unix_s))


def _stretches(it: Program, report: Report) -> list[list[Any]]:
    """The course, cut where nobody looked."""
    points = [point for point in it.course if _high(point) is not None]
    steps = sorted(b.unix_s - a.unix_s for a, b in pairwise(points))
    usual_s = steps[len(steps) // 2] if steps else report.step_s
    found: list[list[Any]] = []
    for point in points:
        if not found or point.unix_s - found[-1][-1].unix_s > 3 * usual_s:
            found.append([])
        found[-1].append(point)
    return found


def _figures(it: Program) -> Table:
    step = max(1, -(-len(it.course) // ROWS_OF_PICTURE))
    rows = []
    for start in range(0, len(it.course), step):
        some = it.course[start : start + step]
        highs = [size for point in some if (size := _high(point)) is not None]
        lows = [size for point in some if (size := _low(point)) is not None]
        limits = [point.limit_bytes for point in some if point.limit_bytes]
        rows.append(
            (
                moment(some[0].unix_s), _size(min(lows, default=None)), _size(max(highs, default=None)),
                _size(max(limits, default=None)),
            )
        )  # fmt: skip
    return Table(heads=("from", "lowest", "highest", "limit"), rows=tuple(rows))


def _high(point: Any) -> int | None:
    found: int | None = point.used_max if point.used_max is not None else point.rss_max
    return found


def _low(point: Any) -> int | None:
    found: int | None = point.used_min if point.used_max is not None else point.rss_min
    return found


# --- alerts ----------------------------------------------------------------------------------------------------------


def _alerts(report: Report) -> list[Block]:
    blocks: list[Block] = [Heading(text="Alerts")]
    if "alerts" in report.missing:
        return [*blocks, Text(text=f"Not known: {report.missing['alerts']}.")]
    if not report.alerts:
        return [*blocks, Text(text="None is on record of this time.")]
    listed = report.alerts[:MOST_ALERTS]
    rows = tuple(
        (
            f"{each.level.name} {KINDS.get(each.kind, each.kind)}", one_line(each.target, 40), _raised(each),
            _lasted(each), _delivered(each), one_line(each.title, 100),
        )
        for each in listed
    )  # fmt: skip
    words = ["What was not delivered comes first."]
    if len(report.alerts) > len(listed):
        words.append(f"{len(report.alerts) - len(listed)} more are not listed (`memwarden alerts history`).")
    if report.alerts_cut:
        words.append(f"Only the newest {MOST_EVENTS} events were read.")
    heads = ("alert", "about", "raised", "lasted", "delivered", "what")
    blocks.append(Table(heads=heads, rows=rows, caption=" ".join(words)))
    failing = [each for each in report.channels if each.failures or each.pending]
    if failing:
        items = (
            f"Channel {each.name}: {each.pending} waiting, failing since {moment(each.since_unix_s)}: "
            f"{one_line(each.error, 160) or 'no error is on record'}"
            if each.failures
            else f"Channel {each.name}: {each.pending} waiting"
            for each in failing
        )
        blocks.append(Items(items=tuple(items)))
    return blocks


def _raised(it: Alert) -> str:
    return "before this time" if it.raised_unix_s is None else moment(it.raised_unix_s)


def _lasted(it: Alert) -> str:
    if it.state == "once":
        return "-"
    if it.state == "on":
        return f"{format_duration(it.lasted_s)}, still on"
    return format_duration(it.lasted_s) if it.lasted_s is not None else UNKNOWN


def _delivered(it: Alert) -> str:
    lost = [f"{name} in part" if name in it.sent else name for name in it.lost]
    error = f": {one_line('; '.join(it.errors), 120)}" if it.errors else ""
    words = [f"NOT by {', '.join(lost)} (given up{error})"] if lost else []
    words += [f"waiting for {', '.join(it.waiting)}{error if not lost else ''}"] if it.waiting else []
    words += [f"by {', '.join(each for each in it.sent if each not in it.lost)}"] if set(it.sent) - set(it.lost) else []
    if it.why_nobody == (UNRECORDED,):
        return UNKNOWN
    if not words:
        reasons = "; ".join(REASONS.get(each, each) for each in it.why_nobody)
        words = [f"to nobody: {reasons}" if reasons else "to nobody"]
    return ", ".join(words)


# --- jobs ------------------------------------------------------------------------------------------------------------


def _jobs(report: Report) -> list[Block]:
    blocks: list[Block] = [Heading(text="Jobs")]
    if "jobs" in report.missing:
        return [*blocks, Text(text=f"Not known: {report.missing['jobs']}.")]
    if not report.queues and not report.seasons:
        return [*blocks, Text(text="No job is on record.")]
    if report.queues:
        heads = ["queue", "engine", "waiting", "delayed", "running", "done", "failed", "open jobs", "failed jobs"]
        names = ["waiting", "delayed", "running", "done", "failed", "jobs_open", "jobs_failed"]
        caption = "As it is now, of all that is on record: parts of jobs, and jobs."
        if any(row["broker_waiting"] is not None for row in report.queues):
            heads.append("in the broker")
            names.append("broker_waiting")
            caption += " In the broker: messages of the whole queue, whatever they are for, as a worker counted them."
        elif any(row["engine"] not in ("local", "inline") for row in report.queues):
            caption += " What waits in a broker is not known: no worker has counted it within the last minute."
        rows = tuple(
            (
                _queue(row["queue"], row["type"]), row["engine"],
                *("-" if row[name] is None else str(row[name]) for name in names),
            )
            for row in report.queues
        )  # fmt: skip
        blocks.append(Table(heads=tuple(heads), rows=rows, caption=caption))
    if report.seasons:
        names_of_season = (
            "queue", "submitted", "done", "failed", "cancelled", "splits", "quarantines", "stopped in time",
            "kernel kills", "other deaths", "peak", "limit",
        )  # fmt: skip
        seasons = tuple(_season_row(each) for each in report.seasons)
        caption = (
            "In this time. Peak: of one attempt, resident in its process, against the limit that the job was submitted "
            "with. Stopped in time: at a safe point before the limit; the rest went on in a fresh process."
        )
        blocks.append(Table(heads=names_of_season, rows=seasons, caption=caption))
    facts = [f"Failed: {each.name} ({each.id}): {one_line(each.error, 200)}" for each in report.failed]
    for each in report.quarantine[:MOST_LEFT_OUT]:
        where = f"behind {one_line(each.low or 'the start', 40)} up to {one_line(each.high or 'what is not known', 40)}"
        facts.append(
            f"Quarantined: job {each.root}, part {each.part}, {where}, after {_count(each.deaths, 'death')} "
            f"({each.kind}): {one_line(each.text, 120)}"
        )
    if len(report.quarantine) > MOST_LEFT_OUT:
        facts.append(f"{len(report.quarantine) - MOST_LEFT_OUT} more quarantines (`memwarden jobs quarantine`)")
    return [*blocks, Items(items=tuple(facts))] if facts else blocks


def _season_row(it: Season) -> tuple[str, ...]:
    deaths = ("memory_error", "crash", "killed", "timeout", "lost")
    share = f" ({format_ratio(it.peak_ratio)})" if it.peak_ratio is not None else ""
    limit = format_bytes(it.limit_bytes) if it.limit_bytes else UNKNOWN if it.peak_ratio is None else "several"
    return (
        _queue(it.queue, it.type), str(it.submitted), str(it.done), str(it.failed), str(it.cancelled), str(it.splits),
        str(it.quarantined), str(it.endings.get("soft_stop", 0)), str(it.endings.get("oom_kill", 0)),
        str(sum(it.endings.get(name, 0) for name in deaths)), _size(it.peak_bytes) + share, limit,
    )  # fmt: skip


def _queue(queue: str, kind: str) -> str:
    return one_line(f"{queue}, {kind}" if kind else queue, 60)


# --- where it is from ------------------------------------------------------------------------------------------------


def _sources(report: Report) -> list[Block]:
    """What was asked, and what could not be."""
    words = [f"The folder is {report.folder}."]
    if "history" not in report.missing:
        begin = report.history_from_s
        words.append(f"The history begins {moment(begin)}." if begin is not None else "The history is empty.")
        step = "minute" if report.step_s == 60 else "hour"
        words.append(f"Figures are of whole {step}s, the first and the last one included.")
    words.append("Alerts are kept for 30 days and jobs for 7, unless the settings or the job say otherwise.")
    items = tuple(f"{name}: {why}" for name, why in _named(report.missing).items())
    blocks: list[Block] = [Heading(text="Where this is from"), Text(text=" ".join(words))]
    return [*blocks, Text(text="Not known:"), Items(items=items)] if items else blocks


def _named(missing: Mapping[str, str]) -> dict[str, str]:
    names = {"history": "History", "boxes": "Black boxes", "alerts": "Alerts", "jobs": "Jobs"}
    return {names[name]: why for name, why in missing.items()}


# --- words -----------------------------------------------------------------------------------------------------------


def _size(size: float | None) -> str:
    return UNKNOWN if size is None else format_bytes(size)


def _time(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else "0" if not seconds else format_duration(seconds)


def _limit(it: Program) -> str:
    if it.least_limit_bytes and it.most_limit_bytes and it.least_limit_bytes != it.most_limit_bytes:
        least, most = format_bytes(it.least_limit_bytes), format_bytes(it.most_limit_bytes)
        return f"{format_bytes(it.limit_bytes)} (from {least} to {most})"
    return _size(it.limit_bytes)


def _some(words: Iterable[str]) -> str:
    """The first few of them."""
    all_of_them = list(words)
    more = len(all_of_them) - MOST_NAMED
    return ", ".join(all_of_them[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"


def _often(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
