from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memwarden.judge.leakwatch import LEAST_SAMPLES, SAMPLES, LeakWatch, Told, replay
from memwarden.judge.signs import Columns

MIB = 1 << 20


class Process:
    """A process that is watched: feed it a growth per sample, and hear what is told."""

    def __init__(self, *, seed: int = 1, **options: float) -> None:
        self.watch = LeakWatch(**options)  # type: ignore[arg-type]
        self.rng, self.t_s, self.mib = Random(seed), 0.0, 100.0
        self.told: list[Told] = []

    def live(self, samples: int, *, mib_a_sample: float = 0.0, noise: float = 0.2) -> list[str]:
        heard = []
        for _ in range(samples):
            self.t_s += 15.0
            self.mib += mib_a_sample
            self.watch.add(self.t_s, rss_bytes=(self.mib + self.rng.gauss(0, noise)) * MIB)
            if self.watch.is_due():
                news = self.watch.look()[1]
                self.told += news
                heard += [told.what for told in news]
        return heard


def test_a_leak_is_suspected_once_and_confirmed_once_when_its_window_has_doubled() -> None:
    process = Process()
    assert process.live(230, mib_a_sample=0.5) == ["suspected", "confirmed"]
    suspected, confirmed = process.told
    assert confirmed.t_s >= 2 * suspected.t_s * 0.9
    assert "twice as long" in confirmed.text


def test_one_accusing_look_is_no_suspicion() -> None:
    process = Process()
    process.live(120, mib_a_sample=0.0)
    first = None
    while not process.told:
        process.live(1, mib_a_sample=0.5)
        look = process.watch.look()[0] if process.watch.is_due() else None
        if look is not None and look.accused and first is None:
            first = process.watch.stage
    assert first in {None, "quiet"}


def test_a_steady_process_is_never_spoken_of() -> None:
    assert Process().live(1000) == []


def test_a_probe_that_gives_the_growth_back_withdraws_and_one_that_does_not_confirms() -> None:
    for freed, ends in ((1.0, "withdrawn"), (0.0, "confirmed")):
        process = Process()
        while not process.told:
            process.live(1, mib_a_sample=0.5)
        assert process.watch.wants_probe
        process.watch.probed(freed * 1000 * MIB)
        assert not process.watch.wants_probe
        assert process.live(10, mib_a_sample=0.5)[0] == ends


def test_a_witness_confirms_in_its_own_words() -> None:
    process = Process()
    while not process.told:
        process.live(1, mib_a_sample=0.5)
    process.watch.witness("the census finds 30 000 more Order than an hour ago")
    process.live(10, mib_a_sample=0.5)
    assert process.told[-1].what == "confirmed"
    assert process.told[-1].text == "the census finds 30 000 more Order than an hour ago"


def test_growth_that_ends_is_withdrawn_or_resolved_and_each_is_told_once() -> None:
    process = Process()
    while not process.told:
        process.live(1, mib_a_sample=0.5)
    process.live(400)
    assert [told.what for told in process.told] == ["suspected", "withdrawn"]
    process = Process(seed=2)
    process.live(230, mib_a_sample=0.5)
    process.live(1500)
    assert [told.what for told in process.told] == ["suspected", "confirmed", "resolved"]
    assert process.watch.stage == "quiet"


@given(st.integers(41, 3000), st.floats(0.01, 1e4))
@settings(max_examples=20, deadline=None)
def test_a_watch_never_keeps_more_than_its_samples(n: int, step_s: float) -> None:
    watch = LeakWatch(window_s=10 * step_s if n % 2 else 1e9)
    for i in range(n):
        watch.add(i * step_s, rss_bytes=float(i), work_done=i, python_blocks=None)
    assert len(watch) < SAMPLES
    kept = watch.columns()
    assert len(kept["rss_bytes"]) == len(kept)
    assert list(kept.t_s) == sorted(kept.t_s)


def test_joined_samples_keep_the_lowest_of_a_gauge_and_the_newest_of_a_counter() -> None:
    watch = LeakWatch(samples=LEAST_SAMPLES)
    for i in range(LEAST_SAMPLES):
        watch.add(float(i), rss_bytes=100.0 + i % 2, work_done=i)
    kept = watch.columns()
    assert list(kept["rss_bytes"]) == [100.0] * (LEAST_SAMPLES // 2)
    assert list(kept["work_done"]) == list(range(1, LEAST_SAMPLES, 2))


def test_time_that_runs_backwards_begins_anew() -> None:
    process = Process()
    process.live(100, mib_a_sample=0.5)
    process.watch.add(0.0, rss_bytes=1.0)
    assert len(process.watch) == 1
    assert process.watch.stage == "quiet"


def test_a_watch_without_room_for_a_verdict_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 40 samples"):
        LeakWatch(samples=39)


def test_a_replay_says_when_it_would_have_been_seen() -> None:
    t_s = [float(i) for i in range(200)]
    rng = Random(1)
    rss = [(100 + 0.3 * i + rng.gauss(0, 0.3)) * MIB for i in range(200)]
    ending = replay(Columns(t_s, {"rss_bytes": rss}))
    assert ending.suspected
    assert ending.detected_at_s is not None
    assert 40 <= ending.detected_at_s <= 100
    assert ending.told[0].t_s == ending.detected_at_s
    flat = replay(Columns(t_s, {"rss_bytes": [100.0 * MIB] * 200}))
    assert (flat.suspected, flat.confirmed, flat.detected_at_s, flat.told) == (False, False, None, ())
