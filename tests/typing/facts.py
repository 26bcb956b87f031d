"""Never run: mypy must see the constructor of a Fact (`warn_unused_ignores` fails each line that is no error)."""

from __future__ import annotations

from memwarden.config import Config
from memwarden.facts import Fact, Level, Reason, Verdict
from memwarden.testing import reading


class Sample(Fact):
    """Two fields, one with a default."""

    name: str
    size_bytes: int = 0


class Larger(Sample):
    """One more."""

    note: str = ""


good: Sample = Sample(name="a", size_bytes=1)
inherited: Larger = Larger(name="a", note="b")
changed: Larger = inherited.replace(name="c")
size: int = good.size_bytes

Sample()  # type: ignore[call-arg]
Sample("a")  # type: ignore[call-arg]
Sample(name="a", _fields=())  # type: ignore[call-arg]
Sample(nam="a")  # type: ignore[call-arg]
Sample(name=1)  # type: ignore[arg-type]
Larger(note="b")  # type: ignore[call-arg]
good.name = "b"  # type: ignore[misc]
setattr_is_not_seen = good.other  # type: ignore[attr-defined]
Config(warnin=0.5)  # type: ignore[call-arg]
Reason(code="a", text="b", value="high")  # type: ignore[arg-type]
nothing = Verdict(level=Level.NORMAL, since_s=0.0, reading=reading(1)).reading.rss_byte  # type: ignore[attr-defined]
