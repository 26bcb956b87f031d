"""Whom to tell of what, when: a pure state machine over the time that it is given.

One `Incident` per key is all it remembers; the outbox keeps it in the store, in the transaction that also writes the
event and its deliveries. `take` steps it by a signal, `wake` by time (when `wake_unix_s` has come), `acknowledge` and
`resolve` by a person. Each returns the incident as it is then, what is to be told to whom, and a decision with a named
reason for every channel, whether it is told or not. Nothing here reads a clock, a file or a setting by itself.

The rules, in the order in which they are asked (REASONS has their words):

1. A state is told when it begins, when its level rises above what the channel was told, and when it is over.
2. It is held while it is silenced, in maintenance, or inhibited by a worse one; and told afterwards if it lasts.
3. It is held while the channel heard of the same key within its throttle or the cool-down; a higher level passes.
4. Each level of the escalation is told once, at its time after the state became that bad, while it lasts and nobody
   acknowledged it; what fell due while nobody ran is told at once.
5. Recovery is told to every channel that heard of the state, whatever else is in force.
6. That somebody acknowledged it is told to the channels that can pass it on, of those that heard of it.
7. A state that began twice within `flap_s` is over only when it was quiet for so long.

Times are Unix seconds, since they outlive the process. A wall clock that is set back delays what is due; one that is
set forward hastens it; neither loses anything.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from memwarden.facts import Fact, Level
from memwarden.tell.signals import ENDS, KINDS
from memwarden.units import format_bytes, format_duration, format_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from memwarden.tell.settings import ChannelUse, Policy
    from memwarden.tell.signals import Signal

REASONS = {
    "new": "it is new",
    "rose": "its level rose above what was told",
    "summary": "others like it were not told one by one",
    "lasts": "it still lasts after it was held",
    "escalated": "it lasts and nobody acknowledged it",
    "reminded": "it lasts for long",
    "over": "it is over",
    "passes": "somebody acknowledged it, and the receiver is to know",
    "told": "it was told already",
    "tier": "the channel hears at a later level of the escalation",
    "itself": "it is about this very channel",
    "level": "it is below the channel's least level",
    "throttled": "the channel heard of it within its throttle",
    "cooling": "the channel heard of it within the cool-down",
    "silenced": "it is silenced",
    "maintenance": "maintenance is on",
    "inhibited": "a worse alert of the same target is on",
    "machine": "the whole machine is short of memory, and says so",
    "acknowledged": "it is acknowledged",
    "untold": "nobody was told that it began",
    "left": "whoever saw it is gone, and another may see it still",
    "waiting": "it must be quiet for longer, since it comes and goes",
}
# How often an inhibited state looks whether it still is.
INHIBITED_S = 30.0
# A state that all of a container see is over only so long after whoever said it left: its other processes try to lead
# every second (`crew.LEAD_S`), and take what the dead left every 15 s (`sender.ADOPT_S`).
HANDOVER_S = 20.0
# What a notice says of the moment at which it was made.
_OF_A_MOMENT = frozenset({"used_bytes", "used_ratio", "rss_bytes", "in_flight", "holders", "growth_bytes_per_minute"})
# What memwarden did that a recovery notice lists, and who is in a state, at most.
MOST_ACTIONS, MOST_MEMBERS = 10, 200


class Incident(Fact):
    """The state of one key.

    `members` are those who are in it with their levels; `top` is the highest of this `episode`, which began at
    `raised_unix_s`. `channels` says of each channel when it last heard of this key, at what level, in which episode.
    `heard_unix_s` is when anybody last said that it lasts, `over_unix_s` since when nobody is in it, `left_unix_s`
    since when because whoever saw it is gone; it is `open` until that is told. `steps` of the escalation were told
    since `bad_unix_s`. `acked_to` are the channels that were told who acknowledged it. `worst_title` is what was said
    when it was at its `top`. `untold` counts what happened and was not told one by one, for each channel. `origin` is
    whose it is.
    """

    key: str
    kind: str
    target: str
    host: str
    scope: str
    level: Level
    title: str
    text: str
    episode: int = 0
    open: bool = False
    once: bool = False
    top: Level = Level.NORMAL
    raised_unix_s: float = 0.0
    changed_unix_s: float = 0.0
    before_unix_s: float | None = None
    over_unix_s: float | None = None
    over_text: str = ""
    left_unix_s: float | None = None
    flapping: bool = False
    members: Mapping[str, int] = {}
    channels: Mapping[str, tuple[float, int, int]] = {}
    bad_unix_s: float | None = None
    steps: int = 0
    acked_unix_s: float | None = None
    acked_by: str = ""
    acked_level: int = 0
    acked_to: tuple[str, ...] = ()
    worst_title: str = ""
    peak_bytes: int | None = None
    peak_ratio: float | None = None
    actions: tuple[str, ...] = ()
    untold: Mapping[str, int] = {}
    told: int = 0
    held: str = ""
    heard_unix_s: float = 0.0
    origin: str = ""
    details: Mapping[str, Any] = {}
    wake_unix_s: float | None = None


class Silence(Fact):
    """Nobody is told of what matches until then. `matcher` is of `parse_matcher`."""

    number: int
    matcher: tuple[tuple[str, str], ...]
    until_unix_s: float
    author: str
    comment: str
    made_unix_s: float

    def covers(self, incident: Incident, now: float) -> bool:
        """Whether it is in force for this one."""
        if now >= self.until_unix_s:
            return False
        level = Level(incident.level).name.lower()
        values = {"key": incident.key, "kind": incident.kind, "target": incident.target, "host": incident.host}
        return all(fnmatchcase(values.get(name, level), pattern) for name, pattern in self.matcher)


# What has a few values alone: a pattern that fits none of them is a slip.
_WORDS = {"kind": tuple(KINDS), "level": tuple(level.name.lower() for level in Level if level)}
MATCHED = ("key", "kind", "target", "host", "level")


def parse_matcher(text: str) -> tuple[tuple[str, str], ...]:
    """`kind=leak target=shop*`, or one pattern for the key. Raises ConfigError."""
    from memwarden.errors import ConfigError

    found = []
    for word in text.split():
        name, sign, pattern = word.partition("=")
        if not sign:
            name, pattern = "key", word
        if name not in MATCHED or not pattern:
            raise ConfigError(f"{word!r} matches nothing", where="matcher", mend=f"write {'=..., '.join(MATCHED)}=...")
        pattern = pattern.lower() if name in _WORDS else pattern
        if name in _WORDS and not any(fnmatchcase(word, pattern) for word in _WORDS[name]):
            words = ", ".join(_WORDS[name])
            raise ConfigError(f"{word!r} matches nothing", where="matcher", mend=f"{name} is one of {words}")
        found.append((name, pattern))
    if not found:
        raise ConfigError("is empty", where="matcher", mend='write kind=leak, or "*" for everything')
    return tuple(found)


class Other(Fact):
    """What of another open state matters here."""

    key: str
    kind: str
    target: str
    scope: str
    level: Level


class Scene(Fact):
    """What is in force at `now` (Unix seconds): the policy, the silences, the other open states."""

    now: float
    policy: Policy
    silences: tuple[Silence, ...] = ()
    others: tuple[Other, ...] = ()


class Tell(Fact):
    """One thing for these channels, together. `urgent` waits for no group. `number` is unique within the key."""

    what: str
    level: Level
    channels: tuple[str, ...]
    title: str
    text: str
    urgent: bool
    number: int
    details: Mapping[str, Any]


class Decision(Fact):
    """Whether a channel is told, and the reason by its name in REASONS."""

    channel: str
    told: bool
    reason: str


class Step(Fact):
    """What came of one step. `news` names what changed about the state itself: began, rose, over, ... ("" nothing)."""

    incident: Incident
    tells: tuple[Tell, ...] = ()
    decisions: tuple[Decision, ...] = ()
    news: str = ""


# --- the four ways to step ------------------------------------------------------------------------------------------


def take(incident: Incident | None, signal: Signal, scene: Scene) -> Step | None:
    """Step by a signal. None where it says that something is over of which nobody knew."""
    if signal.what in ENDS:
        if incident is None or not incident.open or incident.once:
            return None
        incident = incident.replace(**_peak(incident, signal))
        if set(incident.members) <= {signal.member}:
            incident = incident.replace(details=_as_of_now(incident.details, signal.details))
        return _clear(incident, signal.member, signal.text, scene, leaves=signal.what == "left")
    if incident is None:
        incident = Incident(
            key=signal.key, kind=signal.kind, target=signal.target, host=signal.host, scope=signal.scope,
            level=signal.level, title=signal.title, text=signal.text,
        )  # fmt: skip
    if signal.what == "seen":
        return _see(incident, signal, scene)
    return _raise(incident, signal, scene)


def wake(incident: Incident, scene: Scene) -> Step:
    """Step by time alone: what was held, the escalation, reminders, the end of a state that had to be quiet."""
    if incident.once:
        return _summarise(incident, scene)
    if not incident.open:
        return Step(incident=incident.replace(wake_unix_s=None))
    if incident.over_unix_s is not None:
        incident, tells, decisions = _pass_on(incident, scene)
        step = _recover(incident, scene)
        return step.replace(tells=(*tells, *step.tells), decisions=(*step.decisions, *decisions))
    return _consider(incident, scene, "")


def acknowledge(incident: Incident, by: str, scene: Scene) -> Step:
    """Somebody deals with it: the escalation and reminders end, until it becomes worse or begins anew.

    Nobody is told by it, for whoever says so may not know the channels; who does looks at the state again at once, and
    has those pass it on that can.
    """
    if not incident.open or incident.once:
        return Step(incident=incident)
    known = incident.replace(
        acked_unix_s=scene.now, acked_by=by, acked_level=int(incident.level), acked_to=(),
        wake_unix_s=scene.now,
    )  # fmt: skip
    return Step(incident=known, news="acknowledged")


def resolve(incident: Incident, by: str, scene: Scene, *, here: bool = True) -> Step:
    """Somebody says that it is over. It is raised again if it is not.

    With `here` false nobody is told by it: whoever knows the channels looks at the state at once.
    """
    if not incident.open or incident.once:
        return Step(incident=incident)
    ended = incident.replace(
        members={}, over_unix_s=scene.now, over_text=f"resolved by {by}", flapping=False, left_unix_s=None,
        details=_as_of_now(incident.details, {}),
    )  # fmt: skip
    return _recover(ended, scene) if here else Step(incident=ended.replace(wake_unix_s=scene.now))


def forget_member(incident: Incident, member: str, why: str, scene: Scene, *, watched: bool = True) -> Step | None:
    """A member is gone without a word; `watched` is whether others may see the state. None where it was in nothing."""
    if not incident.open or member not in incident.members:
        return None
    if set(incident.members) == {member}:
        incident = incident.replace(details=_as_of_now(incident.details, {}))
    return _clear(incident, member, why, scene, leaves=watched)


def merge(ours: Incident, theirs: Incident, before: Incident | None, now: float) -> Incident:
    """One state of two that were stepped apart from each other since `before`: whoever is in either is in it, less who
    left one of them; whoever heard of either has heard of it. It is looked at at once.
    """
    newer, older = (ours, theirs) if ours.changed_unix_s >= theirs.changed_unix_s else (theirs, ours)
    on, other = (newer, older) if newer.open or not older.open else (older, newer)
    episode = max(ours.episode, theirs.episode) + (on.open and not other.open and on.episode == other.episode)
    heard = dict(other.channels)
    for name, each in on.channels.items():
        if name not in heard or each[0] >= heard[name][0]:
            heard[name] = each
    channels = {
        name: (at, level, episode if each_open and known == own else min(known, episode))
        for name, (at, level, known) in heard.items()
        for each_open, own in [
            (on.open, on.episode) if heard[name] == on.channels.get(name) else (other.open, other.episode)
        ]
    }
    merged = on.replace(
        channels=channels, episode=episode, told=max(ours.told, theirs.told), wake_unix_s=now,
        untold={name: max(on.untold.get(name, 0), other.untold.get(name, 0)) for name in {*on.untold, *other.untold}},
    )  # fmt: skip
    if not on.open:
        return merged
    known = before.members if before is not None and before.open else {}
    both = {**ours.members, **theirs.members}
    left = {name for name in known if name not in ours.members or name not in theirs.members}
    members = {name: max(ours.members.get(name, 0), theirs.members.get(name, 0)) for name in both if name not in left}
    acked = max(ours, theirs, key=lambda each: each.acked_unix_s or 0.0)
    merged = merged.replace(
        members=members, top=max(ours.top, theirs.top),
        worst_title=max(ours, theirs, key=lambda each: each.top).worst_title, steps=max(ours.steps, theirs.steps),
        acked_unix_s=acked.acked_unix_s, acked_by=acked.acked_by, acked_level=acked.acked_level,
        acked_to=tuple(dict.fromkeys((*ours.acked_to, *theirs.acked_to))),
        heard_unix_s=max(ours.heard_unix_s, theirs.heard_unix_s),
    )  # fmt: skip
    if members:
        return merged.replace(level=Level(max(members.values())), over_unix_s=None, over_text="", left_unix_s=None)
    return merged if merged.over_unix_s is not None else merged.replace(over_unix_s=now, over_text=other.over_text)


def end_left(incident: Incident, scene: Scene) -> Step:
    """Whoever saw it left, and nobody is there who could take it up."""
    return _recover(incident.replace(left_unix_s=None), scene)


# --- how a state begins, goes on and ends ----------------------------------------------------------------------------


def _raise(incident: Incident, signal: Signal, scene: Scene) -> Step:
    now, news = scene.now, ""
    members = {**incident.members, signal.member: int(signal.level)} if incident.open else {}
    if not incident.open:
        before = incident.raised_unix_s if incident.episode else None
        members = {signal.member: int(signal.level)}
        incident = incident.replace(
            episode=incident.episode + 1, open=True, top=Level.NORMAL, raised_unix_s=now, before_unix_s=before,
            flapping=before is not None and now - before < scene.policy.flap_s, bad_unix_s=None, steps=0,
            acked_unix_s=None, acked_by="", acked_level=0, worst_title="", peak_bytes=None, peak_ratio=None,
            actions=(), told=0,
            scope=signal.scope, host=signal.host,
        )  # fmt: skip
        news = "began"
    elif incident.over_unix_s is not None and incident.left_unix_s is None:
        incident, news = incident.replace(flapping=True), "again"
    while len(members) > MOST_MEMBERS:
        members.pop(next(iter(members)))
    level = Level(max(members.values()))
    if not news and level > incident.level:
        news = "rose"
    elif not news and level < incident.level:
        news = "fell"
    leads = signal.level >= level
    worst = signal.title if level > incident.top or not incident.worst_title else incident.worst_title
    incident = incident.replace(
        members=members, level=level, top=max(incident.top, level), worst_title=worst, heard_unix_s=now,
        over_unix_s=None, over_text="", left_unix_s=None,
        changed_unix_s=now if news else incident.changed_unix_s,
        title=signal.title if leads else incident.title, text=signal.text if leads else incident.text,
        details=dict(signal.details) if leads and signal.details else incident.details, **_peak(incident, signal),
    )  # fmt: skip
    incident = _mark_bad(incident, scene, anew=news == "again")
    if incident.acked_unix_s is not None and incident.level > incident.acked_level:
        incident = incident.replace(acked_unix_s=None, acked_by="", acked_level=0)
    return _consider(incident, scene, news)


def _mark_bad(incident: Incident, scene: Scene, *, anew: bool = False) -> Incident:
    """Since when it is bad enough to escalate: the levels that were told stay told, the next takes its own time."""
    if incident.level < scene.policy.escalate_from:
        return incident.replace(bad_unix_s=None)
    if incident.bad_unix_s is not None and not anew:
        return incident
    told_s = scene.policy.steps_s[: incident.steps]
    return incident.replace(bad_unix_s=scene.now - (told_s[-1] if told_s else 0.0))


def _peak(incident: Incident, signal: Signal) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, key in (("peak_bytes", "used_bytes"), ("peak_ratio", "used_ratio")):
        given = [getattr(incident, name), signal.details.get(key)]
        if signal.what in ENDS:  # who saw it all says what the most was; else that is of the process, at any time
            given.append(signal.details.get(name))
        known = [each for each in given if isinstance(each, (int, float)) and not isinstance(each, bool)]
        if known:
            found[name] = max(known)
    return found


def _as_of_now(before: Mapping[str, Any], now: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was said when it began, less the figures of that moment, and those of now."""
    return {**{name: value for name, value in before.items() if name not in _OF_A_MOMENT}, **now}


def _clear(incident: Incident, member: str, text: str, scene: Scene, *, leaves: bool = False) -> Step:
    """One is in it no more: because it is over, or because it `leaves`, and knows nothing of what all see."""
    members = {name: level for name, level in incident.members.items() if name != member}
    if members:
        level = Level(max(members.values()))
        news = "fell" if level < incident.level else ""
        changed = scene.now if news else incident.changed_unix_s
        fallen = incident.replace(members=members, level=level, changed_unix_s=changed)
        return _consider(_mark_bad(fallen, scene), scene, news)
    over, left = incident.over_unix_s, None
    if leaves and incident.scope != "process":
        left = scene.now if over is None else incident.left_unix_s
    over = over if over is not None else scene.now
    return _recover(incident.replace(members={}, over_unix_s=over, over_text=text, left_unix_s=left), scene)


def _recover(incident: Incident, scene: Scene) -> Step:
    """It is over, once it was quiet for long enough; then everybody who heard of it hears that too.

    Where it was left, nobody knows whether it is: then it is over when nobody else took it up for long enough.
    """
    now, over, left = scene.now, incident.over_unix_s, incident.left_unix_s
    assert over is not None
    until = max(over + scene.policy.flap_s if incident.flapping else over, left + HANDOVER_S if left is not None else 0)
    if now < until:
        reason = "left" if left is not None else "waiting"
        waits = Decision(channel="", told=False, reason=reason)
        return Step(incident=incident.replace(wake_unix_s=until), decisions=(waits,))
    heard = [name for name, (_, _, episode) in incident.channels.items() if episode == incident.episode]
    ended = incident.replace(
        open=False, members={}, level=Level.NORMAL, changed_unix_s=now, wake_unix_s=None, held="", left_unix_s=None,
        channels={
            name: (now if name in heard else at, level, episode)
            for name, (at, level, episode) in incident.channels.items()
        },
    )  # fmt: skip
    if not heard:
        return Step(incident=ended, decisions=(Decision(channel="", told=False, reason="untold"),), news="over")
    lasted_s = max(0.0, over - incident.raised_unix_s)
    details: dict[str, Any] = {
        **incident.details, "lasted_s": round(lasted_s, 1), "raised_unix_s": round(incident.raised_unix_s, 3),
        "peak_bytes": incident.peak_bytes, "peak_ratio": incident.peak_ratio, "peak_level": incident.top.name,
        "actions": list(incident.actions),
    }  # fmt: skip
    ended, told = _tell(
        ended, "recovered", heard, scene, title=f"over: {incident.worst_title or incident.title}",
        text=_in_words(incident, lasted_s), details=details, urgent=False, level=incident.top, keep=True,
    )  # fmt: skip
    decisions = tuple(Decision(channel=name, told=True, reason="over") for name in heard)
    return Step(incident=ended, tells=(told,), decisions=decisions, news="over")


def _in_words(incident: Incident, lasted_s: float) -> str:
    words = [f"it lasted {format_duration(lasted_s)}, at worst {incident.top.name}"]
    if incident.peak_bytes is not None:
        share = f" ({format_ratio(incident.peak_ratio)} of the limit)" if incident.peak_ratio is not None else ""
        words.append(f"peak {format_bytes(incident.peak_bytes)}{share}")
    if incident.actions:
        words.append("memwarden did: " + "; ".join(incident.actions))
    if incident.over_text:
        words.append(incident.over_text)
    return ". ".join(words)


# --- whom to tell of a state that is on ------------------------------------------------------------------------------


def _consider(incident: Incident, scene: Scene, news: str) -> Step:
    """Everything that may be told of a state that is on, now; and when to look again."""
    reason, until = _why_held(incident, scene)
    wakes: list[float] = []
    decisions: list[Decision] = []
    tells: list[Tell] = []
    incident, acked, passed_on = _pass_on(incident, scene)
    if reason:
        decisions.append(Decision(channel="", told=False, reason=reason))
        wakes.append(until)
    else:
        lasts = bool(incident.held)
        due = _due_steps(incident, scene)
        groups: dict[str, list[str]] = {}
        for name, use in scene.policy.channels.items():
            what, why, again = _choose(incident, use, scene)
            if use.tier in due and incident.level >= use.level:
                what, why = "escalated", "escalated"
            why = "lasts" if what and lasts and why == "new" else why
            decisions.append(Decision(channel=name, told=bool(what), reason=why))
            if what:
                groups.setdefault(what, []).append(name)
                if scene.policy.remind_s is not None:
                    wakes.append(scene.now + max(scene.policy.remind_s, use.throttle_s))
            elif again is not None:
                wakes.append(again)
        if due:
            incident = incident.replace(steps=max(due))
        for what, names in groups.items():
            incident, told = _tell(
                incident, what, names, scene, title=incident.title, text=incident.text, details=dict(incident.details),
                urgent=incident.level is Level.EMERGENCY or what == "escalated", level=incident.level,
            )  # fmt: skip
            tells.append(told)
    wakes += _later(incident, scene)
    held = reason or ""
    wake_at = min((at for at in wakes if at > scene.now), default=None)
    incident = incident.replace(held=held, wake_unix_s=wake_at)
    return Step(incident=incident, tells=(*acked, *tells), decisions=(*decisions, *passed_on), news=news)


def _pass_on(incident: Incident, scene: Scene) -> tuple[Incident, tuple[Tell, ...], tuple[Decision, ...]]:
    """Who acknowledged it, for the channels that can pass that on, that heard of it, and do not know yet."""
    if incident.acked_unix_s is None:
        return incident, (), ()
    known = scene.policy.channels
    names = [
        name
        for name, (_, _, episode) in incident.channels.items()
        if episode == incident.episode and name in known and known[name].acks and name not in incident.acked_to
    ]
    if not names:
        return incident, (), ()
    incident, told = _tell(
        incident, "acknowledged", names, scene, title=f"acknowledged: {incident.title}",
        text=f"by {incident.acked_by}", details=dict(incident.details), urgent=False, level=incident.level, keep=True,
    )  # fmt: skip
    decisions = tuple(Decision(channel=name, told=True, reason="passes") for name in names)
    return incident.replace(acked_to=(*incident.acked_to, *names)), (told,), decisions


def _why_held(incident: Incident, scene: Scene) -> tuple[str, float]:
    """Why nobody is told now, and when to look again; "" where nothing holds it."""
    now = scene.now
    for silence in scene.silences:
        if silence.covers(incident, now):
            return "silenced", silence.until_unix_s
    for window in scene.policy.maintenance:
        end = window.ends(now)
        if end is not None and incident.level < window.until_level:
            return "maintenance", end
    for other in scene.others:
        if other.key == incident.key:
            continue
        if other.target == incident.target and other.level is Level.EMERGENCY and incident.level <= Level.WARNING:
            return "inhibited", now + INHIBITED_S
        machine = other.scope == "machine" and other.kind in ("high_usage", "limit_exceeded")
        if machine and other.level >= Level.CRITICAL and incident.scope == "process" and incident.level < other.level:
            return "machine", now + INHIBITED_S
    return "", now


def _choose(incident: Incident, use: ChannelUse, scene: Scene) -> tuple[str, str, float | None]:
    """(what to tell the channel or "", the reason, when to look again where time will change it)."""
    now, level = scene.now, incident.level
    if incident.kind == "custom" and incident.details.get("channel") == use.name:
        return "", "itself", None
    if use.tier > incident.steps:
        return "", "tier", None
    if level < use.level:
        return "", "level", None
    last = incident.channels.get(use.name)
    if last is None:
        return "raised", "new", None
    at, told_level, episode = last
    if episode == incident.episode:
        if level > told_level:
            return "changed", "rose", None
        if incident.acked_unix_s is not None:
            return "", "acknowledged", None
        remind_s = scene.policy.remind_s
        if remind_s is None:
            return "", "told", None
        due = at + max(remind_s, use.throttle_s)
        return ("reminded", "reminded", None) if now >= due else ("", "told", due)
    if level > told_level:
        return "raised", "rose", None
    for reason, rest_s in (("cooling", scene.policy.cool_down_s), ("throttled", use.throttle_s)):
        if now < at + rest_s:
            return "", reason, at + max(scene.policy.cool_down_s, use.throttle_s)
    return "raised", "new", None


def _due_steps(incident: Incident, scene: Scene) -> list[int]:
    """The levels of the escalation, from 1, whose time has come and which were not told in this episode."""
    if incident.bad_unix_s is None or incident.acked_unix_s is not None or incident.level < scene.policy.escalate_from:
        return []
    steps_s = scene.policy.steps_s
    bad = incident.bad_unix_s
    return [
        number for number, after_s in enumerate(steps_s, 1) if number > incident.steps and scene.now >= bad + after_s
    ]


def _later(incident: Incident, scene: Scene) -> Iterable[float]:
    """When the next level of the escalation is due."""
    if incident.bad_unix_s is None or incident.acked_unix_s is not None or incident.level < scene.policy.escalate_from:
        return
    last = max((use.tier for use in scene.policy.channels.values()), default=0)
    for number, after_s in enumerate(scene.policy.steps_s[:last], 1):
        if number > incident.steps:
            yield incident.bad_unix_s + after_s


def _tell(
    incident: Incident, what: str, names: Iterable[str], scene: Scene, *, title: str, text: str,
    details: Mapping[str, Any], urgent: bool, level: Level, keep: bool = False,
) -> tuple[Incident, Tell]:  # fmt: skip
    """One notice for these channels; `keep` leaves what they were told of as it was."""
    names = tuple(names)
    channels = dict(incident.channels)
    if not keep:
        channels |= {name: (scene.now, int(level), incident.episode) for name in names}
    known = scene.policy.channels
    channels = {name: each for name, each in channels.items() if name in known or each[2] == incident.episode}
    number = incident.told + 1
    told = Tell(
        what=what, level=level, channels=names, title=title, text=text, urgent=urgent, details=details, number=number
    )
    return incident.replace(channels=channels, told=number), told


# --- what happens once -----------------------------------------------------------------------------------------------


def _see(incident: Incident, signal: Signal, scene: Scene) -> Step:
    """Something that has no end. Each channel hears of it, or of how many there were when its rest is over."""
    if incident.open and not incident.once:
        return _raise(incident, signal.replace(what="raised"), scene)
    incident = incident.replace(
        once=True, open=False, level=signal.level, title=signal.title, text=signal.text, details=dict(signal.details),
        changed_unix_s=scene.now, raised_unix_s=scene.now, scope=signal.scope, host=signal.host,
    )  # fmt: skip
    return _tell_once(incident, scene, "seen")


def _summarise(incident: Incident, scene: Scene) -> Step:
    if not incident.untold:
        return Step(incident=incident.replace(wake_unix_s=None))
    return _tell_once(incident, scene, "")


def _tell_once(incident: Incident, scene: Scene, news: str) -> Step:
    """Each channel for itself: what one has heard another may have to hear of later, and of how many there were."""
    held, until = _why_held(incident, scene)
    untold = _count_untold(incident, scene, 1 if news else 0)
    decisions = [Decision(channel="", told=False, reason=held)] if held else []
    wakes = [until] if held else []
    groups: dict[int, list[str]] = {}
    for name, use in scene.policy.channels.items() if not held else ():
        why, again = _why_not_once(incident, use, untold.get(name, 0), scene)
        told_as = "new" if news and untold.get(name) == 1 else "summary"
        decisions.append(Decision(channel=name, told=not why, reason=why or told_as))
        if not why:
            groups.setdefault(untold.pop(name), []).append(name)
        elif again is not None:
            wakes.append(again)
    wake_at = min((at for at in wakes if at > scene.now), default=None)
    episode = incident.episode + 1 if groups else incident.episode
    incident = incident.replace(untold=untold, wake_unix_s=wake_at, episode=episode)
    tells = []
    for count, names in groups.items():  # the one whose words these are is not one of the others
        more = f" (and {count - 1} more since the last notice)" if count > 1 else ""
        incident, told = _tell(
            incident, "raised", names, scene, title=incident.title, text=incident.text + more,
            details=dict(incident.details), urgent=incident.level is Level.EMERGENCY, level=incident.level,
        )  # fmt: skip
        tells.append(told)
    return Step(incident=incident, tells=tuple(tells), decisions=tuple(decisions), news=news)


def _count_untold(incident: Incident, scene: Scene, more: int) -> dict[str, int]:
    """How many each channel has not heard of, with this one where it is to hear of it."""
    found: dict[str, int] = {}
    for name, use in scene.policy.channels.items():
        hears = not use.tier and incident.level >= use.level
        count = incident.untold.get(name, 0) + (more if hears else 0)
        if count:
            found[name] = count
    return found


def _why_not_once(incident: Incident, use: ChannelUse, untold: int, scene: Scene) -> tuple[str, float | None]:
    """Why a channel does not hear of what happened now ("" where it does), and when to look again."""
    last = incident.channels.get(use.name)
    if not untold:
        return "tier" if use.tier else "level" if incident.level < use.level else "told", None
    if last is not None and incident.level <= last[1] and scene.now < last[0] + use.throttle_s:
        return "throttled", last[0] + use.throttle_s
    return "", None


def note_action(incident: Incident, words: str) -> Incident:
    """What memwarden did while this state was on, for its recovery notice; the oldest go."""
    return incident.replace(actions=(*incident.actions, words)[-MOST_ACTIONS:])
