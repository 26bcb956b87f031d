"""The verdict on a generator of 12 healthy and 12 leaky patterns, beside the rules of other systems.

`python -m benchmarks.leaks.synthetic [--seed N] [--series N]`; without a seed each run makes its own. A generator is
its author's idea of memory: it explores, and the recorded programs decide (`benchmarks.leaks.evaluate`). Series have
60 to 240 samples of 15 s, 80 to 220 MiB, noise of 0.2 to 2 %, and leaks of 5 to 70 % of the base over the whole.
"""

from __future__ import annotations

import argparse
import random
import statistics
from itertools import pairwise
from math import exp, pi, sin, sqrt
from typing import TYPE_CHECKING, NamedTuple

from memwarden.judge import robust
from memwarden.judge.leak import judge, plain_rule
from memwarden.judge.leakwatch import LeakWatch
from memwarden.judge.signs import MEAN_BLOCK_BYTES, Columns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MIB = 1 << 20
INTERVAL_S = 15.0
LIMIT_BYTES = 512 * MIB


class Course(NamedTuple):
    """What a pattern makes of memory, as shares of the base over time: live parts, RSS beyond, cache, traffic."""

    python: list[float]
    native: list[float]
    beyond: list[float]
    cache: list[float]
    rate: list[float]


class Maker:
    """The random choices of one series."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.n = rng.randint(60, 240)
        self.places = [i / (self.n - 1) for i in range(self.n)]
        self.leak = rng.uniform(0.05, 0.70)

    def course(self, **parts: Sequence[float]) -> Course:
        """A course that is still but for the parts given."""
        still = [0.0] * self.n
        rate = [self.rng.uniform(0.85, 1.15) for _ in range(self.n)]
        full = {"python": still, "native": still, "beyond": still, "cache": still, "rate": rate, **parts}
        return Course(**{name: list(values) for name, values in full.items()})

    def day(self) -> list[float]:
        """A part of a daily course of traffic."""
        phase, turns, swing = self.rng.random() * 2 * pi, self.rng.uniform(0.3, 1.2), self.rng.uniform(0.3, 0.8)
        return [(1 + swing * sin(phase + 2 * pi * turns * x)) * self.rng.uniform(0.9, 1.1) for x in self.places]

    def summed(self, rate: Sequence[float]) -> list[float]:
        """Work done by then as a share of all."""
        total, done, found = sum(rate), 0.0, []
        for each in rate:
            done += each / total
            found.append(done)
        return found

    def saw(self) -> list[float]:
        """Garbage between two full collections."""
        period, height = self.rng.randint(5, 18), self.rng.uniform(0.03, 0.15)
        return [height * (i % period) / period for i in range(self.n)]

    def filling(self, share: float, height: float) -> list[float]:
        """Towards a level, exponentially."""
        return [height * (1 - exp(-x / share)) for x in self.places]


def add(*parts: Sequence[float]) -> list[float]:
    """Sums, place by place."""
    return [sum(values) for values in zip(*parts, strict=True)]


def flat(m: Maker) -> Course:
    return m.course()


def warm_up(m: Maker) -> Course:
    return m.course(python=m.filling(m.rng.uniform(0.02, 0.08), m.rng.uniform(0.1, 0.4)))


def collector_saw(m: Maker) -> Course:
    return m.course(python=m.saw())


def cache_to_plateau(m: Maker) -> Course:
    filled = m.filling(m.rng.uniform(0.08, 0.22), m.rng.uniform(0.1, 0.6))
    return m.course(python=filled, cache=filled)


def cache_that_stops(m: Maker) -> Course:
    end, height = m.rng.uniform(0.25, 0.8), m.rng.uniform(0.1, 0.6)
    filled = [height * min(x / end, 1.0) for x in m.places]
    return m.course(python=filled, cache=filled)


def fragmentation_stairs(m: Maker) -> Course:
    level, found = 0.0, []
    for _ in m.places:
        level += m.rng.uniform(0.02, 0.06) if m.rng.random() < 0.04 and level < 0.3 else 0.0
        found.append(level)
    return m.course(beyond=found)


def large_requests(m: Maker) -> Course:
    at = [m.rng.random() for _ in range(m.rng.randint(1, 3))]
    height = m.rng.uniform(0.05, 0.3)
    return m.course(beyond=[height * sum(x > a for a in at) for x in m.places])


def periodic_job(m: Maker) -> Course:
    period, lasts, height = m.rng.randint(10, 30), m.rng.randint(2, 5), m.rng.uniform(0.1, 0.5)
    return m.course(python=[height * (i % period < lasts) for i in range(m.n)])


def traffic(m: Maker) -> Course:
    rate, height = m.day(), m.rng.uniform(0.1, 0.4)
    return m.course(rate=rate, python=[height * each for each in rate])


def slow_noise(m: Maker) -> Course:
    value, found, size = 0.0, [], m.rng.uniform(0.01, 0.03)
    for _ in m.places:
        value = 0.93 * value + m.rng.gauss(0, size)
        found.append(value)
    return m.course(python=found)


def lazy_imports(m: Maker) -> Course:
    at = [m.rng.betavariate(1, 3) for _ in range(m.rng.randint(4, 12))]
    return m.course(python=[0.025 * sum(x > a for a in at) for x in m.places])


def largest_so_far(m: Maker) -> Course:
    top, found = 0.0, []
    for _ in m.places:
        top = max(top, min(0.01 * m.rng.paretovariate(1.2), 0.6))
        found.append(top)
    return m.course(beyond=found)


def linear(m: Maker) -> Course:
    return m.course(python=[m.leak * x for x in m.places])


def per_request(m: Maker) -> Course:
    rate = [m.rng.uniform(0.3, 1.7) for _ in m.places]
    return m.course(rate=rate, python=[m.leak * w for w in m.summed(rate)])


def warm_up_and_leak(m: Maker) -> Course:
    return m.course(python=add(m.filling(0.04, m.rng.uniform(0.1, 0.3)), [m.leak * x for x in m.places]))


def saw_and_leak(m: Maker) -> Course:
    return m.course(python=add(m.saw(), [m.leak * x for x in m.places]))


def late_onset(m: Maker) -> Course:
    start = m.rng.uniform(0.3, 0.6)
    return m.course(python=[m.leak * max(x - start, 0) / (1 - start) for x in m.places])


def slow(m: Maker) -> Course:
    return m.course(python=[m.rng.uniform(0.05, 0.12) * x for x in m.places])


def step_per_job(m: Maker) -> Course:
    period = m.rng.randint(5, 12)
    return m.course(python=[m.leak * (i // period) * period / m.n for i in range(m.n)])


def under_traffic(m: Maker) -> Course:
    rate = m.day()
    flight = [m.rng.uniform(0.1, 0.2) * each for each in rate]
    return m.course(rate=rate, python=add(flight, [m.leak * w for w in m.summed(rate)]))


def accelerating(m: Maker) -> Course:
    return m.course(python=[m.leak * x**1.8 for x in m.places])


def cache_and_leak(m: Maker) -> Course:
    filled = m.filling(m.rng.uniform(0.08, 0.2), m.rng.uniform(0.1, 0.4))
    return m.course(python=add(filled, [m.leak * x for x in m.places]), cache=filled)


def hidden_at_first(m: Maker) -> Course:
    room = m.rng.uniform(0.05, 0.15)
    return m.course(python=[m.leak * x for x in m.places], beyond=[max(room - m.leak * x, 0.0) for x in m.places])


def native(m: Maker) -> Course:
    return m.course(native=[m.leak * x for x in m.places])


HEALTHY = (
    flat, warm_up, collector_saw, cache_to_plateau, cache_that_stops, fragmentation_stairs, large_requests,
    periodic_job, traffic, slow_noise, lazy_imports, largest_so_far,
)  # fmt: skip
LEAKY = (
    linear, per_request, warm_up_and_leak, saw_and_leak, late_onset, slow, step_per_job, under_traffic, accelerating,
    cache_and_leak, hidden_at_first, native,
)  # fmt: skip


class Series(NamedTuple):
    """One series: its pattern, whether it leaks, when that began, and all its columns."""

    pattern: str
    leak: bool
    onset: float
    columns: Columns

    def only(self, *names: str) -> Columns:
        """Only these columns."""
        return Columns(self.columns.t_s, {name: self.columns[name] for name in names})


def make(pattern: Callable[[Maker], Course], *, leak: bool, rng: random.Random) -> Series:
    """One series of a pattern with its noise and its spikes."""
    m = Maker(rng)
    c = pattern(m)
    base = rng.uniform(80, 220) * MIB
    white, slow_part, spiky = rng.uniform(0.001, 0.01), rng.uniform(0.001, 0.01), rng.uniform(0, 0.08)
    drift, held = 0.0, 0.0
    columns: dict[str, list[float]] = {
        name: [] for name in ("rss_bytes", "work_done", "python_blocks", "native_in_use_bytes", "declared_cache_bytes")
    }
    done = 0.0
    for i in range(m.n):
        drift = 0.8 * drift + rng.gauss(0, slow_part)
        spike = rng.uniform(0.02, 0.25) if rng.random() < spiky else 0.0
        live = c.python[i] + c.native[i] + spike
        held = max(live, held - 0.3 * (held - live))  # the allocator gives back with delay
        done += 100 * c.rate[i]
        columns["rss_bytes"].append(base * max(1 + held + c.beyond[i] + drift + rng.gauss(0, white), 0.2))
        columns["work_done"].append(round(done))
        small = (0.35 + c.python[i] + spike + rng.gauss(0, 0.3 * white)) * base / MEAN_BLOCK_BYTES
        columns["python_blocks"].append(max(small, 0.0))
        columns["native_in_use_bytes"].append(max((0.25 + c.native[i] + rng.gauss(0, 0.3 * white)) * base, 0.0))
        columns["declared_cache_bytes"].append(c.cache[i] * base)
    onset = next((x for x in m.places if x > 0.3), 0.0) if pattern is late_onset else 0.0
    return Series(pattern.__name__, leak, onset, Columns([i * INTERVAL_S for i in range(m.n)], columns))


RSS = ("rss_bytes",)
LIVE = ("rss_bytes", "work_done", "python_blocks", "native_in_use_bytes")
DECLARED = (*LIVE, "declared_cache_bytes")


def ordinary_least_squares(values: Sequence[float]) -> bool:
    """A slope above zero with p < 0.05, two-sided, by the normal approximation."""
    n = len(values)
    mean_x, mean_y = (n - 1) / 2, sum(values) / n
    xx = sum((i - mean_x) ** 2 for i in range(n))
    slope = sum((i - mean_x) * (y - mean_y) for i, y in enumerate(values)) / xx
    left = sum((y - mean_y - slope * (i - mean_x)) ** 2 for i, y in enumerate(values))
    return slope / sqrt(left / (n - 2) / xx + 1e-9) > 1.96


def mann_kendall_and_sen(values: Sequence[float]) -> bool:
    """Mann-Kendall p < 0.01 and growth by Sen's slope above 5 %."""
    points = [(float(i), v) for i, v in enumerate(values)]
    growth = (robust.slope([points]) or 0.0) * len(values)
    return robust.rising([points])[1] < 0.01 and growth > 0.05 * values[0]


def precog_like(values: Sequence[float]) -> bool:
    """Precog in outline: straight since a change point (R2 >= 0.8), and at the limit within ten windows."""
    smooth = [statistics.median(values[max(i - 2, 0) : i + 3]) for i in range(len(values))]
    steps = [b - a for a, b in pairwise(smooth)]
    spread = robust.sigma(steps) or 1.0
    changes = [i + 1 for i, step in enumerate(steps) if abs(step) > 3.5 * spread]
    for start in [0, *changes]:
        part = smooth[start:]
        if len(part) < max(12, len(values) // 4):
            break
        points = [(float(i), v) for i, v in enumerate(part)]
        slope, mean = robust.slope([points]) or 0.0, sum(part) / len(part)
        left = sum((v - mean - slope * (i - (len(part) - 1) / 2)) ** 2 for i, v in enumerate(part))
        total = sum((v - mean) ** 2 for v in part) or 1.0
        if slope > 0 and 1 - left / total >= 0.8 and (LIMIT_BYTES - part[-1]) / slope < 10 * len(values):
            return True
    return False


def once(series: Series, names: tuple[str, ...]) -> bool:
    """One look at the end."""
    return judge(series.only(*names), limit_bytes=LIMIT_BYTES).accused


RULES: dict[str, Callable[[Series], bool]] = {
    "memwarden, RSS alone": lambda s: once(s, RSS),
    "memwarden, RSS and work": lambda s: once(s, (*RSS, "work_done")),
    "memwarden, work and live bytes": lambda s: once(s, LIVE),
    "memwarden, caches declared too": lambda s: once(s, DECLARED),
    "x1.5 over 60 samples": lambda s: plain_rule(s.columns["rss_bytes"]),
    "last above 1.5 x first": lambda s: s.columns["rss_bytes"][-1] > 1.5 * s.columns["rss_bytes"][0],
    "least squares, p < 0.05": lambda s: ordinary_least_squares(s.columns["rss_bytes"]),
    "Mann-Kendall and Sen 5 %": lambda s: mann_kendall_and_sen(s.columns["rss_bytes"]),
    "Precog in outline": lambda s: precog_like(s.columns["rss_bytes"]),
}


def report(series: Sequence[Series], *, patterns: bool) -> None:
    """One look at the end of each series, by every rule."""
    print(f"{'one look at the end':<32} | precision | recall |   F1  | false of healthy")
    for name, rule in RULES.items():
        said = [(one, rule(one)) for one in series]
        hit = sum(yes for one, yes in said if one.leak)
        false = sum(yes for one, yes in said if not one.leak)
        leaks = sum(one.leak for one in series)
        precision, recall = hit / max(hit + false, 1), hit / leaks
        f1 = 2 * precision * recall / max(precision + recall, 1e-9)
        healthy = false / (len(series) - leaks)
        print(f"{name:<32} | {precision:9.3f} | {recall:6.3f} | {f1:.3f} | {healthy:.3f}", flush=True)
        if patterns and name.startswith("memwarden"):
            _by_pattern(said)


def _by_pattern(said: Sequence[tuple[Series, bool]]) -> None:
    for leak in (False, True):
        rates: dict[str, list[bool]] = {}
        for one, yes in said:
            if one.leak == leak:
                rates.setdefault(one.pattern, []).append(yes)
        print("   ", ", ".join(f"{name} {sum(found) / len(found):.2f}" for name, found in rates.items()))


class Watched(NamedTuple):
    """What a LeakWatch said of one series while it came in."""

    series: Series
    suspected_at: float | None
    confirmed: bool


def watched(one: Series, names: tuple[str, ...]) -> Watched:
    """Feed a watch sample by sample, and look whenever it is due."""
    watch, columns = LeakWatch(samples=len(one.columns) + 1), one.only(*names)
    suspected_at, confirmed = None, False
    for i, t_s in enumerate(columns.t_s):
        watch.add(t_s, **{name: columns[name][i] for name in names})
        if watch.is_due():
            for told in watch.look(limit_bytes=LIMIT_BYTES)[1]:
                if told.what == "suspected" and suspected_at is None:
                    suspected_at = i / (len(one.columns) - 1)
                confirmed = confirmed or told.what == "confirmed"
    return Watched(one, suspected_at, confirmed)


def report_watched(series: Sequence[Series], names: tuple[str, ...], title: str) -> None:
    """False alarms, recall and time to detect when watched all the time."""
    said = [watched(one, names) for one in series]
    healthy, leaks = [w for w in said if not w.series.leak], [w for w in said if w.series.leak]
    late = [(w.suspected_at - w.series.onset) for w in leaks if w.suspected_at is not None]
    print(
        f"watched, {title}: false SUSPECTED {sum(w.suspected_at is not None for w in healthy) / len(healthy):.3f}, "
        f"false CONFIRMED {sum(w.confirmed for w in healthy) / len(healthy):.3f}, "
        f"recall {len(late) / len(leaks):.3f}, confirmed {sum(w.confirmed for w in leaks) / len(leaks):.3f}, "
        f"median detection {statistics.median(late):.2f} of the window"
    )


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--series", type=int, default=30, help="per pattern")
    parser.add_argument("--patterns", action="store_true", help="print the rate of each pattern, too")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    rng = random.Random(seed)
    kinds = [(p, False) for p in HEALTHY] + [(p, True) for p in LEAKY]
    series = [make(p, leak=leak, rng=rng) for p, leak in kinds for _ in range(args.series)]
    print(f"seed {seed}, {len(series)} series of {len(kinds)} patterns")
    report(series, patterns=args.patterns)
    report_watched(series, LIVE, "work and live bytes")
    report_watched(series, DECLARED, "work, live bytes, caches declared")


if __name__ == "__main__":
    main()
