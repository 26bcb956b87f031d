"""No text makes a parser raise, none makes a limit lower than the text says, and unknown is never zero.

20 000 texts for each parser in the ordinary run, 1 000 000 with MEMWARDEN_SOAK=1; the seed is fixed, so that
a failure comes again, and the failing text is in the message.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from tests.sense import foreign_text
from tests.sense.foreign_text import Case

from memwarden.sense import Machine, parse

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

COUNT = 1_000_000 if os.environ.get("MEMWARDEN_SOAK") else 20_000
SEED = 20_240_229

pytestmark = pytest.mark.timeout(3600)


def _is_bounded(got: int | None, candidates: Iterable[int]) -> bool:
    """Nothing, or no less than the least of what the text says; zero only where it says zero."""
    said = list(candidates)
    return got is None or (bool(said) and got >= min(said) and (got != 0 or 0 in said))


def _exactly(got: object, case: Case) -> bool:
    return bool(got == case.truth)


def _check_one_value(got: int | None, case: Case) -> bool:
    return _exactly(got, case) if case.exact else _is_bounded(got, case.truth)


def _check_by_key(got: dict[Any, Any], case: Case) -> bool:
    if case.exact:
        return _exactly(got, case)
    return all(_is_bounded(value, case.truth.get(key, ())) for key, value in got.items())


def _check_events(got: dict[bytes, int], case: Case) -> bool:
    """Damage can make new keys: the ones that we read are what matters."""
    if case.exact:
        return _exactly(got, case)
    return all(_is_bounded(got.get(key), case.truth[key]) for key in foreign_text.EVENT_KEYS)


def _check_sizes(got: dict[bytes, int], case: Case) -> bool:
    if case.exact:
        return _exactly(got, case)
    return all(_is_bounded(value >> 10, case.truth[key]) for key, value in got.items())


def _check_memory_head(got: tuple[int | None, int | None, int | None, int], case: Case) -> bool:
    if case.exact:
        return _exactly(got, case)
    pairs = zip(foreign_text.HEAD_KEYS, got[:3], strict=True)
    return got[3] >= 0 and all(
        _is_bounded(None if value is None else value >> 10, case.truth[key]) for key, value in pairs
    )


def _check_status(got: dict[bytes, bytes], case: Case) -> bool:
    return _exactly(got, case) if case.exact else all(b"\n" not in key and b":" not in key for key in got)


def _check_cgroup(got: list[tuple[int, tuple[str, ...], str]], case: Case) -> bool:
    if case.exact:
        return _exactly(got, case)
    return all(path.startswith("/") and path in case.truth and number >= 0 for number, _, path in got)


def _check_mounts(got: list[tuple[str, str, str, tuple[str, ...]]], case: Case) -> bool:
    return _exactly(got, case) if case.exact else len(got) <= case.truth


def _check_pressure(got: dict[str, tuple[float | None, int | None]], case: Case) -> bool:
    if case.exact:
        return _exactly(got, case)
    return all(
        (avg10 is None or (math.isfinite(avg10) and avg10 >= 0)) and _is_bounded(total, case.truth)
        for avg10, total in got.values()
    )


def _check_stalls(got: tuple[int | None, int | None], case: Case) -> bool:
    if case.exact:
        return got == (case.truth["some"][1], case.truth["full"][1])
    return all(_is_bounded(total, case.truth) for total in got)


def _check_statm(got: tuple[int, int, int] | None, case: Case) -> bool:
    return _exactly(got, case) if case.exact else got is None or all(pages >= 0 for pages in got)


def _check_environ(got: dict[str, str], case: Case) -> bool:
    return _exactly(got, case) if case.exact else all(got)


def _values(raw: bytes) -> dict[bytes, int]:
    """`values` as the sensor asks: the first line cannot be asked for, and a last line must end."""
    needles = parse.needles(foreign_text.STAT_KEYS)
    pairs = zip(foreign_text.STAT_KEYS, parse.values(b"first 1\n" + raw + b"\n", needles), strict=True)
    return {key: found for key, found in pairs if found != -1}


def _mounts(raw: bytes) -> list[tuple[str, str, str, tuple[str, ...]]]:
    return [(mount.root, mount.point, mount.fstype, mount.options) for mount in parse.mounts(raw)]


_Entry = tuple[Callable[[int, int], Iterator[Case]], Callable[[bytes], Any], Callable[[Any, Any], bool]]
_PARSERS: dict[str, _Entry] = {
    "number": (foreign_text.single_numbers, parse.number, _check_one_value),
    "limit": (foreign_text.single_limits, parse.limit, _check_one_value),
    "keyed": (foreign_text.stats, lambda raw: parse.keyed(raw, foreign_text.STAT_KEYS), _check_by_key),
    "values": (foreign_text.stats, _values, _check_by_key),
    "events": (foreign_text.event_counters, parse.events, _check_events),
    "sizes": (foreign_text.size_lines, lambda raw: parse.sizes(raw, foreign_text.SIZE_KEYS), _check_sizes),
    "memory_head": (foreign_text.meminfo, parse.memory_head, _check_memory_head),
    "status": (foreign_text.statuses, parse.status, _check_status),
    "cgroup_paths": (foreign_text.cgroup_lines, parse.cgroup_paths, _check_cgroup),
    "mounts": (foreign_text.mount_lines, _mounts, _check_mounts),
    "pressure": (foreign_text.pressures, parse.pressure, _check_pressure),
    "stall_totals": (foreign_text.pressures, parse.stall_totals, _check_stalls),
    "rlimits": (foreign_text.limit_tables, parse.rlimits, _check_by_key),
    "statm": (foreign_text.statms, parse.statm, _check_statm),
    "environ": (foreign_text.environs, parse.environ, _check_environ),
}


@pytest.mark.parametrize("name", _PARSERS)
def test_a_parser_survives_foreign_text_and_never_says_less_than_it(name: str) -> None:
    generate, read, holds = _PARSERS[name]
    for case in generate(SEED, COUNT):
        try:
            got = read(case.text)
        except Exception as error:
            pytest.fail(f"{name} raised {error!r} on {case.text[:500]!r}")
        assert holds(got, case), f"{name}({case.text[:500]!r}) is {got!r}; truth {case.truth!r}, exact {case.exact}"


def test_a_kept_number_file_survives_foreign_text_too(tmp_path: Path) -> None:
    """The C reader where it is built, else its twin in Python."""
    kept = Machine(str(tmp_path)).number("/value")
    with open(tmp_path / "value", "wb", buffering=0) as file, contextlib.closing(kept):
        for case in foreign_text.single_numbers(SEED, COUNT // 4):
            os.pwrite(file.fileno(), case.text, 0)
            os.ftruncate(file.fileno(), len(case.text))
            got = kept.value()
            said = [min(number, 1 << 64) for number in ([] if case.exact else case.truth)]
            good = _exactly(got, case) if case.exact else _is_bounded(got, said)  # 2**64: no kernel writes more
            assert good, f"{case.text[:500]!r} is {got!r}; truth {case.truth!r}, exact {case.exact}"


def test_every_parser_has_its_generator() -> None:
    """A parser added to the module is fuzzed too."""
    helpers = {"Mount", "needles", "says_no_limit"}
    told = {name for name, value in vars(parse).items() if getattr(value, "__module__", "") == parse.__name__}
    assert {name for name in told if not name.startswith("_")} - helpers == set(_PARSERS)


def test_the_generators_make_what_they_promise() -> None:
    """Both kinds occur, and the same seed gives the same texts."""
    for generate, _, _ in _PARSERS.values():
        cases = list(generate(1, 300))
        assert cases == list(generate(1, 300))
        assert {case.exact for case in cases} == {True, False}


@pytest.mark.parametrize(
    "text", [b"", b"max\n", b"max\r\n", b"-1\n", b"1 2\n", b"0x10\n", b"1e9\n", b"\0" * 9, b"\xff\n"]
)
def test_what_is_no_limit_is_unknown_and_not_zero(text: bytes) -> None:
    assert parse.limit(text) is None


def test_the_files_ways_of_saying_no_limit_are_understood() -> None:
    for size in (9223372036854771712, 9223372036854710272, (1 << 64) - 1, 1 << 60):
        assert parse.limit(b"%d\n" % size) is None
        assert parse.says_no_limit(b"%d\n" % size)
    assert parse.limit(b"%d\n" % ((1 << 60) - 1)) == (1 << 60) - 1
