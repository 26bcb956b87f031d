"""`memwarden alerts`: what is on, who was told of it; by hand: acknowledge, resolve, silence, test, check, deliver."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from memwarden import config
from memwarden.blackbox import directory
from memwarden.clock import SystemClock
from memwarden.errors import ConfigError, DeliveryError, MemwardenError, StoreError
from memwarden.facts import Level, Notice
from memwarden.tell.collectors import BUILT_IN
from memwarden.tell.engine import parse_matcher
from memwarden.tell.outbox import OVERTAKEN, UNTRIED, Outbox
from memwarden.tell.sender import Teller, build_channels, posted
from memwarden.tell.settings import ATTEMPTS, AlertSettings, Policy, parse
from memwarden.tell.signals import ENDS, KINDS
from memwarden.units import format_bytes, format_duration, format_ratio, parse_duration

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping, Sequence

    from memwarden.ports import Channel
    from memwarden.tell.engine import Incident
    from memwarden.tell.outbox import ChannelState, Told
    from memwarden.tell.settings import ChannelUse
    from memwarden.tell.signals import Signal

DESCRIPTION = (
    "Alerts of this user's guarded processes: the states that are on, and the history of what was told. The store is "
    "that of the settings (MEMWARDEN_DIR); channels are those of the table [alerts] in the settings file."
)
EPILOG = (
    "exit codes: 0; 1 where `test` or `deliver` could not deliver, or `check --fail` found a level; 2 wrong usage. "
    "cron: */5 * * * * memwarden alerts check"
)
FAILED = 1


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `alerts` and of each of its verbs."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, about: str) -> ArgumentParser:
        found: ArgumentParser = verbs.add_parser(name, help=about, description=about, allow_abbrev=False)
        found.add_argument("--format", choices=("table", "json"), default="table", help="how to print (default table)")
        return found

    found = verb("list", "the states that are on, silences, and how the channels do")
    found.add_argument("--all", action="store_true", help="those that are over too, as far as they are remembered")
    found = verb("history", "what was told, the newest first")
    found.add_argument("--since", metavar="TIME", default="30d", help="not older than this (default 30d)")
    found.add_argument("--kind", choices=tuple(KINDS), help="of this type alone")
    found.add_argument("--target", metavar="PATTERN", help="about targets such as shop*")
    found.add_argument("--key", help="about this state alone")
    found.add_argument("--limit", type=int, default=100, help="at most so many (default 100)")
    found = verb("ack", "say that you deal with it: escalation and reminders end until it becomes worse")
    found.add_argument("key", help="as `alerts list` shows it")
    found.add_argument("--by", default=_me(), help="who (default: you)")
    found = verb("resolve", "say that it is over; it is raised again if it is not")
    found.add_argument("key", help="as `alerts list` shows it")
    found.add_argument("--by", default=_me(), help="who (default: you)")
    found = verb("silence", "have nobody told of what matches, for a time; recovery of what was told is told")
    found.add_argument("matcher", nargs="?", help="'kind=leak target=shop*'; key, kind, target, host, level; or '*'")
    found.add_argument("--for", dest="lasts", metavar="TIME", default="1h", help="for so long (default 1h)")
    found.add_argument("--by", default=_me(), help="who (default: you)")
    found.add_argument("--comment", default="", help="why")
    found.add_argument("--end", type=int, metavar="NUMBER", help="end this one now instead")
    found = verb("test", "check settings and store, and send a test notice by every channel")
    found.add_argument("--channel", metavar="NAME", help="by this one alone")
    found = verb("check", "look at memory once and tell: for cron, without a running Warden")
    found.add_argument("--within", metavar="TIME", default="30s", help="deliver for at most so long (default 30s)")
    found.add_argument("--fail", action="store_true", help="exit 1 at WARNING or above")
    found = verb("deliver", "deliver what is waiting, also of processes that died, and tell of kernel kills")
    found.add_argument("--within", metavar="TIME", default="30s", help="for at most so long (default 30s)")


def run(args: Namespace) -> int:
    """One verb. Raises MemwardenError."""
    if args.verb is None:
        raise ConfigError("no verb given", where="memwarden alerts", mend=f"write one of {', '.join(_VERBS)}")
    try:
        code: int = _VERBS[args.verb](args)
    finally:
        while _opened:
            _opened.pop().close()
    return code


_opened: list[Outbox] = []  # by the command that runs


def _me() -> str:
    return os.environ.get("USER") or f"uid {os.getuid()}" if hasattr(os, "getuid") else "somebody"


def _settings(*, need: bool) -> AlertSettings:
    """Those of the settings file. Raises ConfigError."""
    found = parse(*_table())
    if found is None and need:
        raise ConfigError(
            "no [alerts] table", where="settings", mend="add a table [alerts.channels.NAME] to memwarden.toml"
        )
    return found if found is not None else AlertSettings(policy=Policy())


def _table() -> tuple[dict[str, Any], str]:
    table, where = config.table("alerts", environ=os.environ)
    return table, where or "alerts"


def _outbox(settings: AlertSettings) -> Outbox:
    folder = config.settle(environ=os.environ).config.directory
    outbox = Outbox(settings, folder=folder, clock=SystemClock(), or_memory=False)
    _opened.append(outbox)
    return outbox


def _json(found: Any) -> int:
    import json

    json.dump(found, sys.stdout, indent=2, default=str)
    print()
    return 0


def _ago(unix_s: float | None) -> str:
    return "-" if unix_s is None else format_duration(max(0.0, time.time() - unix_s))


# --- what is, and what was ----------------------------------------------------------------------------------------


def _list(args: Namespace) -> int:
    settings = _settings(need=False)
    outbox = _outbox(settings)
    incidents, silences, channels = outbox.incidents(all_of_them=args.all), outbox.silences(), outbox.channels()
    unstored = _unstored(outbox)
    if args.format == "json":
        return _json(
            {
                "alerts": [_plain(each) for each in incidents],
                "unstored": [{**each.as_dict(), "level": each.level.name} for each in unstored],
                "silences": [each.as_dict() for each in silences],
                "channels": [each.as_dict() for each in channels],
            }
        )
    if not incidents and not unstored:
        print("nothing is on")
    for each in incidents:
        print("\n".join(_lines_of(each)))
    for signal in unstored:
        print(f"{signal.level.name:<9} {signal.key}  said {_ago(signal.unix_s)} ago, and not in the store yet")
        print(f"          {signal.title}")
    for silence in silences:
        words = " ".join("=".join(pair) for pair in silence.matcher)
        left = format_duration(silence.until_unix_s - time.time())
        print(f"silence {silence.number}: {words}, for {left} more, by {silence.author}: {silence.comment or '-'}")
    for state in channels:
        does = _doing(state, settings)
        whose = f" of {state.origin}" if len({each.origin for each in channels if each.name == state.name}) > 1 else ""
        print(f"channel {state.name}{whose}: {state.sent} sent, {state.pending} waiting, {state.dead} given up{does}")
    return 0


def _unstored(outbox: Outbox) -> list[Signal]:
    """What stands in slots of black boxes and is not in the store: of a process that cannot write it, or just now."""
    found = config.settle(environ=os.environ).config
    signals = [each for _, _, each in posted(directory(found.directory, os.environ, os.getuid())) if each is not None]
    strange = outbox.strange(each.id for each in signals)
    last = {(each.key, each.member): each for each in sorted(signals, key=lambda each: each.unix_s)}
    return [each for each in last.values() if each.id in strange and each.what not in ENDS]


def _doing(state: ChannelState, settings: AlertSettings) -> str:
    """What else there is to say of a channel: that it fails, or is none any more."""
    uses = _uses(settings)
    if uses and state.name not in uses and state.origin in (settings.origin, ""):
        after = format_duration(UNTRIED * settings.give_up_s)
        waits = f": what waits is given up {after} after it was made" if state.pending else ""
        return f", not configured any more{waits}"
    return f", {_failing(state, settings)}" if state.failures else ""


def _failing(state: ChannelState, settings: AlertSettings) -> str:
    """Of a channel that fails: since when, when it is tried again, and until when."""
    use = _uses(settings).get(state.name)
    attempts, after = (use.attempts, use.give_up_after) if use is not None else (ATTEMPTS, None)
    down = ", down" if state.failures >= attempts else ""
    tries = "1 failure" if state.failures == 1 else f"{state.failures} failures running"
    failing = f"failing for {_ago(state.since_unix_s)} ({tries}{down})"
    if not state.pending:
        return f"{failing}; tried again with the next notice: {state.error}"
    left_s = max(0.0, state.not_before_unix_s - time.time())
    again = f"in {format_duration(left_s)}" if left_s else "at once"
    until = f"{after} tries" if isinstance(after, int) else format_duration(after or settings.give_up_s)
    return f"{failing}; tried again {again}, a notice is given up after {until}: {state.error}"


def _uses(settings: AlertSettings) -> Mapping[str, ChannelUse]:
    """How each channel is used, as far as its table can be read."""
    if not settings.channels:
        return {}
    return build_channels(settings, os.environ)[0].policy.channels


def _plain(incident: Incident) -> dict[str, Any]:
    told = {
        name: {"unix_s": at, "level": Level(level).name, "episode": episode}
        for name, (at, level, episode) in incident.channels.items()
    }
    return {**incident.as_dict(), "level": incident.level.name, "top": incident.top.name, "channels": told}


def _lines_of(incident: Incident) -> list[str]:
    state = f"for {_ago(incident.raised_unix_s)}" if incident.open else f"over for {_ago(incident.changed_unix_s)}"
    words = [state]
    if incident.open and incident.over_unix_s is not None:
        words.append("quiet, and watched whether it comes again")
    if incident.acked_unix_s is not None:
        words.append(f"acknowledged by {incident.acked_by} {_ago(incident.acked_unix_s)} ago")
    if incident.steps:
        words.append(f"escalated to level {incident.steps}")
    if incident.held:
        words.append(f"held: {incident.held}")
    lines = [f"{incident.level.name:<9} {incident.key}  {', '.join(words)}", f"          {incident.title}"]
    heard = {name: at for name, (at, _, episode) in incident.channels.items() if episode == incident.episode}
    if heard:
        lines.append(f"          told {', '.join(f'{name} ({_ago(at)} ago)' for name, at in heard.items())}")
    if incident.peak_bytes is not None:
        lines.append(f"          peak {format_bytes(incident.peak_bytes)}, {format_ratio(incident.peak_ratio)}")
    return lines


def _history(args: Namespace) -> int:
    if args.limit < 1:
        raise ConfigError(f"{args.limit} is none", where="--limit", mend="give 1 or more")
    since = time.time() - parse_duration(args.since, where="--since")
    outbox = _outbox(_settings(need=False))
    found = outbox.history(since_unix_s=since, kind=args.kind, target=args.target, key=args.key, most=args.limit)
    if args.format == "json":
        return _json([_told(each) for each in found])
    if not found:
        print("memwarden alerts: nothing like that is in the history", file=sys.stderr)
    for each in found:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.unix_s))
        print(f"{at}  {each.what:<12} {each.level.name:<9} {each.key}  {each.title}")
        for channel, state, attempts, error in each.deliveries:
            print(f"                     {channel}: {state} ({attempts}){': ' + error if error else ''}")
        if not each.deliveries:
            print(f"                     nobody: {', '.join(sorted(set(each.why.values()))) or '-'}")
    return 0


def _told(told: Told) -> dict[str, Any]:
    names = ("channel", "state", "attempts", "error")
    deliveries = [dict(zip(names, each, strict=True)) for each in told.deliveries]
    return {**told.as_dict(), "level": told.level.name, "deliveries": deliveries}


# --- by hand ------------------------------------------------------------------------------------------------------


def _ack(args: Namespace) -> int:
    outbox = _outbox(_settings(need=False))
    return _done(args, outbox.acknowledge(args.key, args.by), outbox, "acknowledged")


def _resolve(args: Namespace) -> int:
    outbox = _outbox(_settings(need=False))
    return _done(args, outbox.resolve(args.key, args.by), outbox, "resolved")


def _done(args: Namespace, incidents: Sequence[Incident], outbox: Outbox, what: str) -> int:
    if not incidents:
        on = ", ".join(each.key for each in outbox.incidents()) or "nothing"
        raise MemwardenError(f"{args.key!r} is not on", where="alerts", mend=f"these are: {on}")
    if args.format == "json":
        return _json(_plain(incidents[0]) if len(incidents) == 1 else [_plain(each) for each in incidents])
    for each in incidents:
        print(f"{what}: {each.key}{f' of {each.origin}' if len(incidents) > 1 else ''}")
    return 0


def _silence(args: Namespace) -> int:
    outbox = _outbox(_settings(need=False))
    if args.end is not None:
        if not outbox.end_silence(args.end):
            raise MemwardenError(f"silence {args.end} is not in force", where="--end", mend="`alerts list` shows them")
        print(f"ended: silence {args.end}")
        return 0
    if args.matcher is None:
        raise ConfigError("no matcher given", where="alerts silence", mend="write 'kind=leak', or '*' for everything")
    lasts_s = parse_duration(args.lasts, where="--for")
    if lasts_s <= 0:
        raise ConfigError(f"{args.lasts!r} is no time", where="--for", mend="write a duration such as 2h")
    number = outbox.silence(parse_matcher(args.matcher), time.time() + lasts_s, args.by, args.comment)
    (made,) = [each for each in outbox.silences() if each.number == number]
    covered = [each.key for each in outbox.incidents() if made.covers(each, time.time())]
    if args.format == "json":
        return _json({"number": number, "until_unix_s": time.time() + lasts_s, "covers": covered})
    print(f"silence {number} for {format_duration(lasts_s)}; end it with `memwarden alerts silence --end {number}`")
    words = " ".join("=".join(pair) for pair in made.matcher)
    print(f"{words} covers of what is on: {', '.join(covered) or 'nothing'}")
    return 0


# --- channels -----------------------------------------------------------------------------------------------------


def _test(args: Namespace) -> int:
    settings, channels = build_channels(_settings(need=True), os.environ)
    if args.channel is not None:
        channels = tuple(each for each in channels if each.name == args.channel)
        if not channels:
            names = ", ".join(settings.policy.channels)
            raise ConfigError(f"there is no channel {args.channel!r} in use", where="--channel", mend=f"write {names}")
    rows = [_try(channel, settings) for channel in channels]
    rows += [row for each in settings.collectors for row in _try_collector(*each)]
    rows.append(_try_store(settings))
    if args.format == "json":
        _json(rows)
    else:
        for row in rows:
            print(f"{row['channel']}: {'ok' if row['ok'] else 'FAILED'}: {row['said']}")
    return 0 if all(row["ok"] for row in rows) else FAILED


def _try_collector(name: str, argument: str) -> list[dict[str, Any]]:
    """Ask it once; a line where it fails."""
    try:
        BUILT_IN[name](argument)
    except OSError as error:
        return [{"channel": f"collector {name}", "ok": False, "said": f"{argument}: {error.strerror}"}]
    return []


def _try_store(settings: AlertSettings) -> dict[str, Any]:
    """Open it and write to it; what came of that."""
    try:
        outbox = _outbox(settings)
        outbox.prune()
        outbox.probe()
    except StoreError as error:
        return {"channel": "store", "ok": False, "said": str(error)}
    return {"channel": "store", "ok": True, "said": outbox.path}


def _try(channel: Channel, settings: AlertSettings) -> dict[str, Any]:
    """Check, shake hands, send; what came of it."""
    wrong = channel.check()
    if wrong:
        return {"channel": channel.name, "ok": False, "said": "; ".join(wrong)}
    start_s = time.monotonic()
    try:
        channel.warm_up()
        timeout_s = settings.policy.channels[channel.name].timeout_s
        channel.send([_test_notice(channel.name, settings)], timeout_s=timeout_s)
    except DeliveryError as error:
        return {"channel": channel.name, "ok": False, "said": str(error)}
    finally:
        channel.close()
    took = format_duration(time.monotonic() - start_s)
    return {"channel": channel.name, "ok": True, "said": f"a test notice was delivered in {took}"}


def _test_notice(channel: str, settings: AlertSettings) -> Notice:
    host = os.uname().nodename
    return Notice(
        delivery_id=f"test-{time.time_ns():x}.{channel}", key=f"test:{host}", kind="test", what="test",
        level=Level.WARNING, title="a test of memwarden's alerts", text=f"sent by `memwarden alerts test` on {host}",
        unix_s=time.time(), target=settings.service or host, host=host,
        details={"runbook": settings.runbook} if settings.runbook else {},
    )  # fmt: skip


def _check(args: Namespace) -> int:
    from memwarden.warden.alerting import check_and_alert

    found = check_and_alert(within=args.within)
    if args.format == "json":
        _json({"level": found.verdict.level.name, "told": [_told(each) for each in found.told]})
    else:
        ratio = format_ratio(found.verdict.reading.pressure_ratio)
        told = sum(1 for each in found.told if each.delivered)
        print(f"{found.verdict.level.name}, {ratio} of the limit; {told} told{_waiting(found.told)}")
    return FAILED if args.fail and found.verdict.level else 0


def _waiting(told: Sequence[Told]) -> str:
    count = sum(1 for each in told if any(state == "pending" for _, state, _, _ in each.deliveries))
    return f", {count} waiting" if count else ""


def _deliver(args: Namespace) -> int:
    settings, channels = build_channels(_settings(need=True), os.environ)
    found = config.settle(environ=os.environ).config
    from memwarden.supervise.alerts import tell_of_deaths

    run_folder = directory(found.directory, os.environ, os.getuid())
    teller = Teller(
        settings, channels, target=settings.service or "memwarden", host=os.uname().nodename,
        store_folder=found.directory, run_folder=run_folder,
    )  # fmt: skip
    tell_of_deaths(teller, run_folder, now_unix_s=time.time())
    told = teller.once(within_s=parse_duration(args.within, where="--within"))
    states = [state for each in told for _, state, _, error in each.deliveries if error != OVERTAKEN]
    if args.format == "json":
        _json([_told(each) for each in told])
    else:
        delivered, count = sum(each.delivered for each in told), sum(1 for each in told if each.delivered)
        print(f"{count} told: {delivered} delivered, {states.count('pending')} waiting")
    return FAILED if "dead" in states else 0


_VERBS = {
    "list": _list, "history": _history, "ack": _ack, "resolve": _resolve, "silence": _silence, "test": _test,
    "check": _check, "deliver": _deliver,
}  # fmt: skip
