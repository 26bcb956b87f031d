"""What is said about a death: a few lines, the verdict first and the evidence for it."""

from __future__ import annotations

from memwarden.facts import Fact
from memwarden.supervise import deaths
from memwarden.units import format_bytes, format_duration

GROWTH_WINDOW_S = 5.0


class LifeStory(Fact):
    """The figures of one life. `usage_ago_s`: age of the last look; `shared`: others are in them."""

    command: str
    pid: int
    lived_s: float
    limit_bytes: int | None
    limit_source: str
    peak_bytes: int | None
    peak_exact: bool
    usage_bytes: int | None
    usage_ago_s: float | None
    growth_bytes: int | None = None
    growth_s: float | None = None
    asked: bool = False
    shared: bool = False


def headline(death: deaths.Death) -> str:
    """The verdict in words."""
    probably = "" if death.certain else "probably "
    if death.verdict == deaths.OOM_KILL:
        return f"{probably}killed by the kernel for memory (OOM kill)"
    if death.verdict == deaths.OOM_KILL_OF_DESCENDANT:
        hit = f"after the kernel {probably}killed a process of it for memory"
        return f"ended with exit code {death.exit_code} {hit}"
    if death.verdict == deaths.KILLED:
        return (
            "killed by a SIGKILL from somebody, not by the kernel for memory"
            if death.certain
            else "killed by a SIGKILL"
        )
    if death.verdict == deaths.CRASHED:
        return f"ended by {deaths.signal_name(death.signal or 0)}"
    return f"ended with exit code {death.exit_code}"


def render(death: deaths.Death, story: LifeStory, *, then: str = "") -> list[str]:
    """The lines of the post-mortem; none for a clean end that nothing follows."""
    if death.verdict == deaths.CLEAN and not then:
        return []
    lines = [f"{story.command} (pid {story.pid}) {headline(death)}, {format_duration(story.lived_s)} after start"]
    if story.asked:
        lines[0] += ", as asked"
    if death.verdict not in (deaths.CLEAN, deaths.FAILED) and not story.asked:
        lines += [f"  evidence: {text}" for text in death.evidence]
    if death.verdict != deaths.CLEAN:
        whose = "memory of all that live in this cgroup" if story.shared else "memory"
        lines.append(f"  {whose}: {_figures(story)}")
    if then:
        lines.append(f"  next: {then}")
    return lines


def _figures(story: LifeStory) -> str:
    limit = f"limit {format_bytes(story.limit_bytes)} ({story.limit_source})" if story.limit_bytes else "no limit known"
    at_least = "" if story.peak_exact else "at least "
    parts = [limit]
    if story.peak_bytes is not None:
        parts.append(f"peak {at_least}{format_bytes(story.peak_bytes)}")
    if story.usage_ago_s is not None:
        parts.append(f"last seen {format_bytes(story.usage_bytes)} {format_duration(story.usage_ago_s)} before the end")
    if story.growth_bytes is not None and story.growth_s:
        sign = "+" if story.growth_bytes >= 0 else ""
        parts.append(f"{sign}{format_bytes(story.growth_bytes)} in its last {format_duration(story.growth_s)}")
    return ", ".join(parts)
