"""The judgement on a death, on facts alone; and how kills are settled while the command lives."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.supervise import deaths
from memwarden.supervise.deaths import (
    DeathFacts,
    KernelLog,
    Kill,
    KillCounter,
    KillWatch,
    classify,
    kill_in,
    victim_in,
)

MAIN = 100
SIGKILLED = -signal.SIGKILL


def judge(status: int, **facts: Any) -> deaths.Death:
    return classify(DeathFacts(pid=MAIN, status=status, counter_source="oom_kill of x/memory.events", **facts))


def test_sigkill_with_a_risen_counter_is_the_kernel() -> None:
    death = judge(SIGKILLED, open_kills=1)
    assert (death.verdict, death.exit_code, death.certain) == (deaths.OOM_KILL, 137, True)


def test_sigkill_with_a_still_counter_is_somebody_else() -> None:
    death = judge(SIGKILLED)
    assert (death.verdict, death.exit_code, death.certain) == (deaths.KILLED, 137, True)


def test_sigkill_after_an_older_kill_of_a_descendant_is_somebody_else() -> None:
    assert judge(SIGKILLED, settled_kills=1, settled_ago_s=3.0).verdict == deaths.KILLED


def test_without_any_counter_a_sigkill_is_not_called_certain() -> None:
    death = judge(SIGKILLED, counted=False)
    assert (death.verdict, death.certain) == (deaths.KILLED, False)


def test_a_kill_that_may_have_hit_a_sibling_is_only_probable() -> None:
    death = judge(SIGKILLED, open_kills=1, others_gone=1)
    assert (death.verdict, death.certain) == (deaths.OOM_KILL, False)


def test_more_kills_than_vanished_siblings_convict_the_kernel() -> None:
    assert judge(SIGKILLED, open_kills=3, others_gone=2).certain


def test_the_kernel_log_naming_only_a_sibling_acquits_the_kernel() -> None:
    death = judge(SIGKILLED, open_kills=1, others_gone=1, named_pids=frozenset({7}))
    assert (death.verdict, death.certain) == (deaths.KILLED, True)


def test_a_kernel_log_that_is_behind_the_counter_acquits_nobody() -> None:
    death = judge(SIGKILLED, open_kills=2, others_gone=1, named_pids=frozenset({7}))
    assert death.verdict == deaths.OOM_KILL


def test_the_kernel_log_naming_the_command_convicts_even_in_a_shared_cgroup() -> None:
    death = judge(SIGKILLED, shared=True, open_kills=1, named_pids=frozenset({MAIN}))
    assert (death.verdict, death.certain) == (deaths.OOM_KILL, True)


def test_a_shared_counter_alone_is_only_probable() -> None:
    death = judge(SIGKILLED, shared=True, open_kills=1)
    assert (death.verdict, death.certain) == (deaths.OOM_KILL, False)


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_after_a_descendants_kill_keeps_its_own_code(code: int) -> None:
    death = judge(code, settled_kills=1, settled_ago_s=0.5)
    assert (death.verdict, death.exit_code, death.kernel_kills) == (deaths.OOM_KILL_OF_DESCENDANT, code, 1)


def test_a_descendants_kill_of_long_ago_does_not_colour_a_clean_end() -> None:
    assert judge(0, settled_kills=1, settled_ago_s=3600.0).verdict == deaths.CLEAN


def test_a_kill_of_strangers_in_a_shared_cgroup_does_not_colour_a_clean_end() -> None:
    assert judge(0, shared=True, open_kills=1).verdict == deaths.CLEAN


def test_plain_ends_are_clean_failed_or_crashed() -> None:
    verdicts = [judge(0).verdict, judge(1).verdict, judge(-signal.SIGSEGV).verdict]
    assert verdicts == [deaths.CLEAN, deaths.FAILED, deaths.CRASHED]
    assert judge(-signal.SIGSEGV).exit_code == 139


@given(
    st.integers(-64, 255),
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
    st.one_of(st.none(), st.frozensets(st.integers(98, 103))),
)
def test_no_counter_movement_is_never_called_an_oom_kill_of_the_command(
    status: int, settled: int, gone: int, shared: bool, named: frozenset[int] | None
) -> None:
    named = None if named is None else named - {MAIN}
    death = judge(status, settled_kills=settled, settled_ago_s=1.0, others_gone=gone, shared=shared, named_pids=named)
    assert death.verdict != deaths.OOM_KILL


class Counter(KillCounter):
    """A counter that a test moves."""

    def __init__(self) -> None:
        super().__init__("/x/memory.events")
        self.now: int | None = 5

    def value(self) -> int | None:
        return self.now


class Log(KernelLog):
    """A kernel log that a test writes."""

    def __init__(self) -> None:
        super().__init__("/nonexistent")
        self.new: frozenset[int] = frozenset()

    def victims(self) -> frozenset[int] | None:
        found, self.new = self.new, frozenset()
        return found


class World:
    """A life with one command and what the kernel does to it."""

    def __init__(self, *, shared: bool = False, log: Log | None = None) -> None:
        self.counter = Counter()
        self.doomed: set[int] = set()
        self.watch = KillWatch(self.counter, log=log, shared=shared, is_doomed=self.doomed.__contains__)
        self.watch.begin()
        self.watch.own(MAIN)

    def look(self, *pids: int, at: float) -> str:
        return self.watch.look(frozenset(pids), now_s=at)

    def end(self, status: int, *pids: int, at: float) -> deaths.Death:
        return classify(self.watch.facts(status, frozenset(pids), now_s=at))

    def last_words(self, status: int, *pids: int, at: float) -> str:
        facts = self.watch.facts(status, frozenset(pids), now_s=at)
        return self.watch.last_words(facts, classify(facts))


def test_kills_before_this_life_do_not_count() -> None:
    world = World()
    world.look(MAIN, at=0.0)
    assert world.end(SIGKILLED, at=1.0).verdict == deaths.KILLED


def test_a_kill_between_the_last_look_and_the_death_is_the_commands() -> None:
    world = World()
    world.look(MAIN, at=0.0)
    world.counter.now = 6
    assert world.end(SIGKILLED, at=0.1).verdict == deaths.OOM_KILL


def test_a_doomed_sibling_settles_the_kill_at_once_and_names_it() -> None:
    world = World()
    world.look(MAIN, 7, at=0.0)
    world.counter.now = 6
    world.doomed.add(7)
    assert "pid 7" in world.look(MAIN, 7, at=0.1)
    assert world.end(SIGKILLED, at=0.2).verdict == deaths.KILLED


def test_a_doomed_command_keeps_the_kill_open_until_it_is_dead() -> None:
    world = World()
    world.look(MAIN, at=0.0)
    world.counter.now = 6
    world.doomed.add(MAIN)
    assert [world.look(MAIN, at=0.1), world.look(MAIN, at=0.2)] == ["", ""]
    assert world.end(SIGKILLED, at=0.3).verdict == deaths.OOM_KILL


def test_a_victim_nobody_saw_is_settled_at_the_second_look() -> None:
    world = World()
    world.look(MAIN, at=0.0)
    world.counter.now = 6
    assert world.look(MAIN, at=0.1) == ""
    assert "already gone" in world.look(MAIN, at=0.2)
    assert world.end(0, at=0.3).verdict == deaths.OOM_KILL_OF_DESCENDANT


def test_a_strangers_kill_in_a_shared_cgroup_is_dropped() -> None:
    world = World(shared=True)
    world.look(MAIN, at=0.0)
    world.counter.now = 6
    assert [world.look(MAIN, at=0.1), world.look(MAIN, at=0.2)] == ["", ""]
    assert world.end(SIGKILLED, at=0.3).verdict == deaths.KILLED


def test_the_log_of_other_cgroups_is_not_ours() -> None:
    log = Log()
    world = World(log=log)
    world.look(MAIN, at=0.0)
    world.counter.now = 6
    log.new = frozenset({4242})
    assert world.end(SIGKILLED, at=0.1).verdict == deaths.OOM_KILL


def test_a_counter_that_cannot_be_read_at_the_end_is_no_proof() -> None:
    world = World()
    world.counter.now = None
    assert not world.end(SIGKILLED, at=0.1).certain


@given(st.integers(1, 99), st.lists(st.integers(1, 1 << 22), max_size=30), st.booleans())
def test_a_kill_is_read_as_it_was_written_with_the_victims_that_are_named(
    count: int, victims: list[int], certain: bool
) -> None:
    kill = Kill(count=count, victims=tuple(victims), certain=certain)
    assert kill_in(kill.text) == kill.replace(victims=tuple(victims[:8]))
    assert len(kill.text) < 176  # the room of a record in the black box
    assert kill_in("the kernel killed a process") is None


def test_a_kill_by_a_counter_that_others_share_is_only_probable_unless_the_log_names_it() -> None:
    log = Log()
    for named, certain in ((False, False), (True, True)):
        world = World(shared=True, log=log)
        world.look(MAIN, 7, at=0.0)
        world.counter.now = 6
        world.doomed.add(7)
        log.new = frozenset({7}) if named else frozenset()
        kill = kill_in(world.look(MAIN, 7, at=0.1))
        assert kill == Kill(count=1, victims=(7,), certain=certain)


def test_a_kill_right_before_the_end_is_put_on_record_unless_it_was_the_commands_own() -> None:
    for status, words in ((0, True), (1, True), (SIGKILLED, False)):
        world = World()
        world.look(MAIN, 7, at=0.0) if status != SIGKILLED else world.look(MAIN, at=0.0)
        world.counter.now = 6
        late = world.last_words(status, at=0.1)
        assert (kill_in(late) == Kill(count=1, victims=(7,))) is words, late


def test_a_kill_that_a_look_has_told_is_not_told_again_at_the_end() -> None:
    world = World()
    world.look(MAIN, 7, at=0.0)
    world.counter.now = 6
    world.doomed.add(7)
    assert world.look(MAIN, 7, at=0.1)
    assert world.last_words(0, at=0.2) == ""


@pytest.mark.parametrize(
    ("record", "pid"),
    [
        (b"3,1,2,-;Memory cgroup out of memory: Killed process 123 (python3) total-vm:1kB, UID:0", 123),
        (b"3,1,2,-;Out of memory: Killed process 9 (a b) total-vm:1kB", 9),
        (b"6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,task_memcg=/x,task=python,pid=77,uid=0\n", 77),
        (b"6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,task=a,pid=1,pid=77,uid=0\n", 77),
        (b"6,1,2,-;something Killed process 5", None),
        (b"3,1,2,-;Out of memory: Killed process ", None),
        (b"", None),
    ],
)
def test_the_kernels_words_name_the_victim(record: bytes, pid: int | None) -> None:
    assert victim_in(record) == pid


@given(st.binary(max_size=200))
def test_no_record_breaks_the_reader(text: bytes) -> None:
    for record in (text, b"oom-kill:" + text, b"Out of memory: Killed process " + text):
        assert victim_in(record) is None or victim_in(record) >= 0  # type: ignore[operator]
