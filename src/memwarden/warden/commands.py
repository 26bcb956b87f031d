"""The command slot of a black box: what `memwarden gc`, `cleanup` and `status` ask a guarded process, and its answer.

A command is carried out by the thread of the loop; whatever goes wrong is told to whoever asked, and the watch goes on.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from memwarden.facts import Outcome, Verdict

    class Servant(Protocol):
        """What commands ask of a Warden."""

        def collect(self, reason: str = ...) -> Outcome: ...
        def relieve(self, reason: str = ...) -> list[Outcome]: ...
        def emergency_cleanup(self, reason: str = ...) -> list[Outcome]: ...
        def check(self) -> Verdict: ...


def obey(verb: str, servant: Servant) -> str:
    """Carry it out; the answer for the slot, which may be a complaint."""
    try:
        return _obey(verb, servant)
    except Exception as error:  # noqa: BLE001  whoever asked is told, and the watch goes on
        from memwarden.act.answer import complaint

        return complaint(verb, f"{type(error).__name__}: {error}")


def _obey(verb: str, servant: Servant) -> str:
    from memwarden.act.answer import answer, complaint

    reason = f"asked for by `memwarden {verb}`"
    outcomes: Sequence[Outcome]
    if verb == "ping":
        outcomes = ()
    elif verb == "gc":
        outcomes = [servant.collect(reason)]
    elif verb == "cleanup":
        outcomes = servant.relieve(reason)
    elif verb == "cleanup --all":
        outcomes = servant.emergency_cleanup(reason)
    else:
        return complaint(verb, "this version knows ping, gc, cleanup and cleanup --all")
    return answer(verb, outcomes, servant.check())
