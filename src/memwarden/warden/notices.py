"""A finding on its way from one worker to the leader that tells it, and whether it was told already.

Eight workers that leak alike are one notice. What a follower finds out about itself is in its own black box at once;
the leader tells it for all, unless it has told the same of another process of late.
"""

from __future__ import annotations

from memwarden.facts import Finding, Leak

# The cool-down of row A3: the same of another worker within it is no news.
REST_S = 600.0
_FIELDS = 9


class Spoken:
    """What was told of late, by whom."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[float, int]] = {}

    def is_news(self, finding: Finding) -> bool:
        """Whether it is to be told; then it counts as told. The same process may say the same again at once."""
        key = (finding.kind, finding.what)
        before = self._last.get(key)
        if before is not None and before[1] != finding.pid and abs(finding.unix_s - before[0]) < REST_S:
            return False
        self._last[key] = (finding.unix_s, finding.pid)
        return True


def to_line(finding: Finding) -> str:
    """One line of text that `from_line` understands."""
    leak = finding.leak if finding.leak is not None else Leak(stage="")
    fields = (
        finding.kind, finding.what, finding.pid, finding.unix_s, finding.monotonic_s, leak.stage, leak.cause,
        leak.confidence, finding.text,
    )  # fmt: skip
    return "\t".join(str(each).replace("\t", " ") for each in fields)


def from_line(line: str) -> Finding | None:
    """The finding in it; None where it is none: whoever may write into the folder may write anything."""
    fields = line.split("\t")
    if len(fields) != _FIELDS:
        return None
    kind, what, pid, unix_s, monotonic_s, stage, cause, confidence, text = fields
    try:
        return Finding(
            kind=kind,
            what=what,
            text=text if text.isprintable() else ascii(text)[1:-1],
            pid=int(pid),
            unix_s=float(unix_s),
            monotonic_s=float(monotonic_s),
            leak=Leak(stage=stage, cause=cause, confidence=int(confidence)) if stage else None,
        )
    except ValueError:
        return None
