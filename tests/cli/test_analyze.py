from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from argparse import ArgumentParser
from html.parser import HTMLParser
from random import Random
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from memwarden.cli import analyze
from memwarden.errors import ConfigError, MemwardenError, TraceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20
LEAK_KEYS = {
    "suspected", "confirmed", "confidence", "cause", "detected_at_s", "growth_bytes_per_minute", "evidence",
    "parts", "told",
}  # fmt: skip


def recording(shape: str, *, limit: int | None = None, n: int = 300) -> str:
    """A trace as text, one sample a second: flat at 100 MiB, or growing by 12 MiB a minute."""
    rng = Random(1)
    rows = [f"t_s,rss_bytes{',limit_bytes' if limit else ''}"]
    for i in range(n):
        mib = 100 + rng.gauss(0, 0.5) + {"flat": 0.0, "grows": 0.2 * i, "tight": 0.0}[shape]
        rows.append(f"{i},{int(mib * MIB)}" + (f",{limit * MIB}" if limit else ""))
    return "\n".join(rows) + "\n"


@pytest.fixture
def trace(tmp_path: Path) -> Callable[..., str]:
    def write(shape: str = "flat", *, name: str = "a.csv", **options: Any) -> str:
        path = tmp_path / name
        path.write_text(recording(shape, **options))
        return str(path)

    return write


def call(*words: str) -> int:
    parser = ArgumentParser()
    analyze.add_arguments(parser)
    return analyze.run(parser.parse_args(words))


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    call(*words, "--format", "json")
    return json.loads(capsys.readouterr().out)


def test_json_is_the_object_of_the_contract(trace: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, trace("grows", limit=512))
    assert found["samples"] == 300
    assert found["average_bytes"] == pytest.approx(130 * MIB, rel=0.01)
    assert found["peak_bytes"] == pytest.approx(160 * MIB, rel=0.01)
    assert found["spikes"] == 0
    assert set(found["leak"]) == LEAK_KEYS
    assert found["leak"]["growth_bytes_per_minute"] == pytest.approx(12 * MIB, rel=0.05)
    assert found["recommended_limit_bytes"] >= found["peak_bytes"]
    assert found["limit_bytes"] == 512 * MIB
    assert set(found["forecast"]) == {"seconds_to_limit", "low_s", "high_s", "reason"}
    assert found["forecast"]["low_s"] < 352 / 0.2 < found["forecast"]["high_s"] * 1.02
    assert found["trend"]["increasing"] is True
    assert found["rapid_growth"] is False
    assert found["recommendations"][0].startswith("memory grows by")
    assert found["duration_s"] == 299
    assert found["skipped_lines"] == 0


def test_a_line_without_end_is_a_leak_and_a_flat_one_is_none(
    trace: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    leak = as_json(capsys, trace("grows"))["leak"]
    assert (leak["suspected"], leak["confirmed"], leak["cause"]) == (True, True, "unknown")
    assert leak["confidence"] >= 75
    assert 0 < leak["detected_at_s"] < 150
    assert leak["growth_bytes_per_minute"] == pytest.approx(12 * MIB, rel=0.05)
    assert sum(leak["parts"].values()) <= 100
    assert [told["what"] for told in leak["told"]] == ["suspected", "confirmed"]
    leak = as_json(capsys, trace("flat"))["leak"]
    assert (leak["suspected"], leak["confirmed"], leak["cause"], leak["detected_at_s"]) == (False, False, None, None)
    assert leak["confidence"] <= 40
    assert leak["told"] == []


def test_a_limit_given_beats_the_one_in_the_trace(
    trace: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, trace(limit=512), "--limit", "104M")
    assert (found["limit_bytes"], found["limit_source"]) == (104 * MIB, "--limit")
    assert found["recommendations"][0].startswith("limit is too small for this workload")


def test_the_window_narrows_the_trend_and_not_the_peak(
    trace: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, trace("grows"), "--window", "1m")
    assert found["trend"]["window_s"] == pytest.approx(60, abs=2)
    assert found["samples"] == 300


def test_efficiency_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain.csv"
    plain.write_text("t_s,rss_bytes\n" + "".join(f"{i},{(50 + 50 * (i % 2)) * MIB}\n" for i in range(100)))
    found = as_json(capsys, str(plain))
    assert found["efficiency_percent"] == pytest.approx(75, abs=0.5)
    assert found["efficiency_basis"].startswith("average / peak")
    live = tmp_path / "live.csv"
    live.write_text(
        "t_s,rss_bytes,python_blocks,native_in_use_bytes\n"
        + "".join(f"{i},{100 * MIB},{MIB // 64 * 30},{20 * MIB}\n" for i in range(100))
    )
    found = as_json(capsys, str(live))
    assert found["efficiency_percent"] == pytest.approx(50, abs=0.1)
    assert found["efficiency_basis"].startswith("live bytes / RSS")


def test_what_counts_against_the_limit_is_what_the_container_uses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(used_mib: int) -> str:
        path = tmp_path / "used.csv"
        rows = (f"{i},{100 * MIB},{used_mib * MIB},{4096 * MIB}\n" for i in range(60))
        path.write_text("t_s,rss_bytes,used_bytes,limit_bytes\n" + "".join(rows))
        return str(path)

    assert as_json(capsys, write(150))["recommended_limit_bytes"] == 176 * MIB
    # A machine where this process is one of many: its own limit is not made from all of them.
    found = as_json(capsys, write(3000))
    assert (found["counted_column"], found["recommended_limit_bytes"]) == ("used_bytes", 128 * MIB)
    found = as_json(capsys, write(3900))
    assert found["recommendations"][0].startswith(
        "limit is too small for this workload: it peaked at 3.8 GiB of 4 GiB; set it to 4.4 GiB"
    )


def test_several_files_are_one_object_in_their_order(
    trace: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = trace("flat", name="one.csv"), trace("grows", name="two.csv")
    found = as_json(capsys, one, two)
    assert [each["source"] for each in found["traces"]] == [one, two]


def test_the_text_begins_with_what_to_do(trace: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    path = trace("grows", limit=200)
    assert call(path) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}: Memory grows by ")
    assert "the limit of 200 MiB is reached in about" in first
    names = {line[:16].strip() for line in rest if line.startswith("  ") and not line.startswith("  -")}
    assert {"time to limit", "growth", "peak", "average", "limit", "would fit", "spikes", "leak"} <= names


def test_skipped_lines_are_one_warning_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(recording("flat") + "broken\nbroken\n")
    found = as_json(capsys, str(path))
    assert found["skipped_lines"] == 2
    call(str(path))
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("shape", "limit", "asked", "code"),
    [
        ("flat", 512, "growth", 0),
        ("grows", 512, "growth", 1),
        ("grows", None, "limit", 0),
        ("grows", 512, "limit", 1),
        ("flat", 512, "limit", 0),
        ("flat", 90, "limit", 1),
        ("flat", 90, "growth", 0),
        ("flat", 90, "growth limit", 1),
        ("grows", 512, "", 0),
    ],
)
def test_the_exit_code_says_what_was_asked_for(
    trace: Callable[..., str], shape: str, limit: int | None, asked: str, code: int
) -> None:
    words = [word for on in asked.split() for word in ("--fail-on", on)]
    assert call(trace(shape, limit=limit), *words) == code


@pytest.mark.parametrize("n", [1, 2, 3, 9, 11])
@pytest.mark.parametrize("form", ["text", "json", "html"])
def test_the_shortest_recordings_are_answered_in_every_format(
    trace: Callable[..., str], capsys: pytest.CaptureFixture[str], n: int, form: str
) -> None:
    assert call(trace("grows", n=n, limit=200), "--format", form) == 0
    assert "Traceback" not in capsys.readouterr().out


def test_memory_of_zero_bytes_is_answered_in_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "zero.csv"
    path.write_text("t_s,rss_bytes\n" + "".join(f"{i},0\n" for i in range(50)))
    for form in ("text", "json", "html"):
        assert call(str(path), "--format", form) == 0
    assert capsys.readouterr().out


class Page(HTMLParser):
    """Collects what a page would load, and checks that its tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data"}]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def html(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, Page]:
    call(*words, "--format", "html")
    text = capsys.readouterr().out
    page = Page()
    page.feed(text)
    assert page.open == []
    return text, page


def test_the_page_needs_nothing_but_itself(trace: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    text, page = html(capsys, trace("grows", limit=200))
    assert page.loads == []
    assert "script" not in page.seen
    assert "http" not in text
    assert "@import" not in text
    assert "url(" not in text


def pictures(text: str) -> list[ET.Element]:
    return [ET.fromstring("<svg" + part.split("</svg>")[0] + "</svg>") for part in text.split("<svg")[1:]]


def test_the_plot_holds_curve_limit_levels_peak_growth_and_forecast(
    trace: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    text, _ = html(capsys, trace("grows", limit=200))
    course, spread = pictures(text)
    styles = [element.get("class") for element in course.iter()]
    assert {"curve", "limit", "level", "peak", "growth", "cone", "ahead", "now"} <= set(styles)
    assert styles.count("level") == 6  # three lines and their names
    assert [element.get("class") for element in spread.iter()].count("bar") > 5
    curve = next(e for e in course.iter() if e.get("class") == "curve")
    points = [tuple(map(float, point.split(","))) for point in (curve.get("points") or "").split()]
    assert len(points) == 300
    assert points[-1][1] < points[0][1]  # it rises, and y runs downwards
    for x, y in points:
        assert 0 <= x <= 960
        assert 0 <= y <= 380


def test_axes_have_round_units(trace: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = html(capsys, trace("grows", limit=200))
    ticks = [e.text for e in pictures(text)[0].iter() if e.get("class") == "tick"]
    assert ticks[:5] == ["0", "50 MiB", "100 MiB", "150 MiB", "200 MiB"]
    assert ticks[5:8] == ["0", "2 min", "4 min"]


def test_spikes_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "spiky.csv"
    rows = (f"{i},{(100 + 60 * (i % 90 == 50)) * MIB + i % 7 * 9999}\n" for i in range(300))
    path.write_text("t_s,rss_bytes\n" + "".join(rows))
    text, _ = html(capsys, str(path))
    marks = [e for e in pictures(text)[0].iter() if e.get("class") == "spike"]
    assert len(marks) == 2  # and the highest of the three has the mark of the peak


def test_a_gap_breaks_the_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gap.csv"
    times = [*range(100), *range(1000, 1100)]
    path.write_text("t_s,rss_bytes\n" + "".join(f"{t},{100 * MIB + t % 5}\n" for t in times))
    text, _ = html(capsys, str(path))
    assert len([e for e in pictures(text)[0].iter() if e.get("class") == "curve"]) == 2


def test_a_name_cannot_inject_markup(trace: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    text, page = html(capsys, trace(name="<script>x&y.csv"))
    assert "script" not in page.seen
    assert "&lt;script&gt;x&amp;y.csv" in text


def test_a_long_recording_makes_no_longer_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "long.csv"
    rows = (f"{i},{100 * MIB + i * 1000 + i % 97 * 50_000}\n" for i in range(40_000))
    path.write_text("t_s,rss_bytes\n" + "".join(rows))
    text, _ = html(capsys, str(path))
    assert len(text) < 100_000


def test_output_goes_to_the_file_whole_and_not_to_stdout(
    trace: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    os.chmod(target, 0o640)
    call(trace(), "--format", "html", "--output", str(target))
    assert capsys.readouterr().out == ""
    assert target.read_text().endswith("</html>\n")
    assert target.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "page.html"]


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["--limit", "lots"], ConfigError, "--limit: 'lots' is not a size; write a size such as 512M"),
        (["--window", "soon"], ConfigError, "--window: 'soon' is not a duration"),
        (["--window", "0"], ConfigError, "--window: '0' is no length of time"),
        (["--output", "/nowhere/at/all"], MemwardenError, "/nowhere/at/all: cannot be written: No such file"),
        (["--output", "/"], MemwardenError, "/: cannot be written: Is a directory"),
        (["--output", "/dev/full"], MemwardenError, "/dev/full: cannot be written: No space left on device"),
        (["none.csv"], TraceError, "none.csv: no such file; check the path"),
    ],
)
def test_wrong_input_is_one_line_with_exit_code_2(
    trace: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    error: type[MemwardenError],
    says: str,
) -> None:
    with pytest.raises(error) as caught:
        call(trace(), *words)
    assert str(caught.value).startswith(says)
    assert caught.value.exit_code == 2
    assert capsys.readouterr().out == ""


def program(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memwarden", "analyze", *words]
    return subprocess.run(command, text=True, stderr=subprocess.PIPE, check=False, **options)


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(trace: Callable[..., str], tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    done = program(
        trace("grows"), "--format", "html", "--output", str(target),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"memwarden: {target}: cannot be written: File too large")
    assert target.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "page.html"]


def test_a_full_disk_behind_standard_output_is_one_line(trace: Callable[..., str]) -> None:
    with open("/dev/full", "w") as full:
        done = program(trace(), stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith("memwarden: standard output: cannot be written: No space left on device")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error(trace: Callable[..., str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = program(trace(), "--format", "html", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")  # as a filter that the shell kills with SIGPIPE
