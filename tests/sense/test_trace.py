from __future__ import annotations

import errno
import gzip
import io
import json
import os
import subprocess
import sys
from math import isnan
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden.errors import TraceError
from memwarden.sense.trace import _unreadable, parse_trace, read_trace

if TYPE_CHECKING:
    from pathlib import Path

    from memwarden.sense.trace import Trace

MIB = 1 << 20
EXAMPLES = 200_000 if os.environ.get("MEMWARDEN_SOAK") else 400  # make soak
CSV = "t_s,rss_bytes\n0,100\n1,200\n2,300\n"
NDJSON = '{"t_s": 0, "rss_bytes": 100}\n{"t_s": 1, "rss_bytes": 200}\n{"t_s": 2, "rss_bytes": 300}\n'
DOCUMENT = json.dumps({"samples": [{"t_s": i, "rss_bytes": 100 + 100 * i} for i in range(3)], "pid": 7})
MPROF = "CMDLINE python x.py\nMEM 1.000000 1000.0000\nMEM 2.000000 1001.0000\nFUNC f 1.0 1000.1 2.0 1000.9\n"
PSRECORD = "# Elapsed time   CPU (%)     Real (MB)   Virtual (MB)\n 0.000  0.0  1.0  9.0\n 1.000  5.0  2.5  9.0\n"
SEEDS = [text.encode() for text in (CSV, NDJSON, DOCUMENT, MPROF, PSRECORD)]
SEEDS += [gzip.compress(SEEDS[0], mtime=0), b"unix_s;rss_bytes;used_bytes\n5;1;2\n4;1;\n"]


def parse(data: bytes | str) -> Trace:
    raw = data.encode() if isinstance(data, str) else data
    return parse_trace(io.BytesIO(raw), source="x.csv")


def written(folder: Path, data: bytes | str, name: str = "trace") -> str:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (CSV, "csv"),
        (CSV.replace(",", ";"), "csv"),
        (CSV.replace(",", "\t"), "csv"),
        (CSV.replace("\n", "\r\n"), "csv"),
        ("\ufeff" + CSV, "csv"),
        ("# made by hand\n\n" + CSV, "csv"),
        ('"t_s","rss_bytes"\n"0","100"\n"1","200"\n"2","300"\n', "csv"),
        ("note,rss_bytes,t_s\n,100,0\nx,200,1\ny,300,2", "csv"),
        (NDJSON, "ndjson"),
        (DOCUMENT, "json"),
        (json.dumps(json.loads(DOCUMENT), indent=2), "json"),
        (json.dumps(json.loads(DOCUMENT)["samples"]), "json"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_each_way_to_write_it_is_the_same_trace(tmp_path: Path, text: str, kind: str, packed: bool) -> None:
    data = gzip.compress(text.encode()) if packed else text.encode()
    trace = read_trace(written(tmp_path, data, "any.name"))
    assert (list(trace.t_s), list(trace.rss_bytes)) == ([0, 1, 2], [100, 200, 300])
    assert (trace.kind, trace.skipped_lines, trace.warning()) == (kind, 0, "")


def test_unix_time_alone_starts_at_zero_and_is_kept() -> None:
    trace = parse("unix_s,rss_bytes\n1700000000.5,1\n1700000002.5,2\n")
    assert list(trace.t_s) == [0, 2]
    assert trace.start_unix_s == 1700000000.5


def test_its_own_time_wins_over_unix_time() -> None:
    trace = parse("unix_s,t_s,rss_bytes\n1700000000,5,1\n1700000001,6,2\n")
    assert list(trace.t_s) == [5, 6]
    assert trace.start_unix_s == 1700000000


def test_optional_columns_are_kept_and_others_ignored() -> None:
    trace = parse("t_s,rss_bytes,used_bytes,mood,work_done\n0,1,,good,0\n1,2,30,bad,7\n")
    assert set(trace.columns) == {"used_bytes", "work_done"}
    assert isnan(trace.columns["used_bytes"][0])
    assert [list(column) for column in trace.known("used_bytes")] == [[1], [30]]
    assert [list(column) for column in trace.known("anon_bytes")] == [[], []]


def test_mprof_is_read_in_mebibytes_with_its_children() -> None:
    trace = parse(MPROF + "CHLD 12 0.500000 1001.0100\nCHLD 13 0.250000 1001.0200\nMEM 4.0 1002.0\n")
    assert trace.kind == "mprof"
    assert list(trace.t_s) == [0, 1, 2]
    assert list(trace.rss_bytes) == [MIB, 2.75 * MIB, 4 * MIB]
    assert trace.start_unix_s == 1000


def test_psrecord_is_read_in_mebibytes() -> None:
    trace = parse(PSRECORD)
    assert (trace.kind, list(trace.t_s), list(trace.rss_bytes)) == ("psrecord", [0, 1], [MIB, 2.5 * MIB])


@pytest.mark.parametrize(
    "line", ["x,200", "1", "1,-5", "1,nan", "1,inf", "1,1e40", ",200", '"1,200', "nan,1", "-1,200"]
)
def test_a_malformed_line_is_skipped_counted_and_named(line: str) -> None:
    trace = parse(f"t_s,rss_bytes\n0,100\n{line}\n2,300\n")
    assert list(trace.t_s) == [0, 2]
    assert trace.skipped_lines == 1
    assert trace.warning().startswith("x.csv: 1 malformed lines skipped (the first: line 3: ")


def test_a_line_cut_off_by_a_kill_costs_only_itself() -> None:
    trace = parse(NDJSON + '{"t_s": 3, "rss_b')
    assert (len(trace), trace.skipped_lines) == (3, 1)


def test_an_unknown_value_is_unknown_and_not_malformed() -> None:
    trace = parse("t_s,rss_bytes\n0,100\n1,\n2,300\n")
    assert trace.skipped_lines == 0
    assert [list(column) for column in trace.known()] == [[0, 2], [100, 300]]


def test_little_disorder_is_sorted_and_said() -> None:
    trace = parse("t_s,rss_bytes\n0,1\n1,2\n3,4\n2,3\n4,5\n")
    assert list(trace.rss_bytes) == [1, 2, 3, 4, 5]
    assert "1 samples were out of order" in trace.warning()


def test_two_recordings_in_one_file_are_refused_with_the_line() -> None:
    with pytest.raises(TraceError) as caught:
        parse("t_s,rss_bytes\n" + "".join(f"{i},5\n" for i in range(40)) * 2)
    assert str(caught.value) == (
        "x.csv, line 42: time runs back from 39 s to 0 s; split the file: it seems to hold two recordings"
    )


def test_equal_times_are_no_disorder() -> None:
    assert parse("t_s,rss_bytes\n0,1\n0,2\n1,3\n").sorted_lines == 0


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (
            b"time,memory\n1,2\n",
            "line 1: has no column t_s (or unix_s) and no rss_bytes (found: memory, time)",
        ),
        (b"t_s,used_bytes\n1,2\n", "has no column rss_bytes"),
        (b"t_s,rss_bytes\n", "has no usable sample"),
        (b"t_s,rss_bytes\na,b\n", "has no usable sample (line 2: t_s is 'a')"),
        (b"t_s,rss_bytes\n1,\n", "has no usable sample"),
        (b'{"samples": []}', "has no samples"),
        (b'{"samples": 5}', "has no samples"),
        (b'{"samples": [5, 6]}', "has no column"),
        (b'{"samples": [{"t_s": 1,', "is not JSON"),
        (b"[[[[[[", "is not JSON"),
        (b'{"a": 1}\n', "has no column"),
        (b"# nothing\n# else\n", "holds comments only"),
        (b"\x7fELF\x02\x01\x01\0\0\0", "holds binary data"),
        ("t_s,rss_bytes\n1,2\n".encode("utf-16"), "holds binary data"),
        (b"x" * (1 << 21), "has a line longer than a megabyte"),
        (gzip.compress(CSV.encode() * 50, mtime=0)[:-12], "the gzip data ends early"),
        (b"\x1f\x8b not gzip at all", "the gzip data is damaged"),
        (gzip.compress(CSV.encode() * 50, mtime=0)[:30] + b"\xff" * 40, "the gzip data"),
    ],
)
def test_what_is_no_trace_is_refused_in_one_clear_line(tmp_path: Path, data: bytes, says: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    line = str(caught.value)
    assert says in line
    assert line.startswith(path)
    assert "\n" not in line
    assert "; " in line  # how to mend it


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file; check the path"):
        read_trace(str(tmp_path / "none"))
    with pytest.raises(TraceError, match="is a folder"):
        read_trace(str(tmp_path))
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace("a\0b")


def test_a_file_of_somebody_else_is_said_to_be_so() -> None:
    refused = _unreadable("x", PermissionError(errno.EACCES, "Permission denied"))
    assert str(refused) == "x: may not be read by this user; check its permissions"


@pytest.mark.parametrize("data", [CSV.encode(), gzip.compress(CSV.encode(), mtime=0)])
def test_a_dash_is_standard_input(data: bytes) -> None:
    code = "from memwarden.sense.trace import read_trace; t = read_trace('-'); print(len(t), t.source)"
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.decode().split(maxsplit=1) == ["3", "standard input\n"]


def usable(data: bytes) -> Trace | None:
    """The one law: a trace that can be used, or a TraceError of one line."""
    try:
        trace = parse(data)
    except TraceError as exc:
        refused = str(exc)
    else:
        refused = ""
    assert "\n" not in refused
    if refused:
        return None
    times = list(trace.t_s)
    assert times == sorted(times)
    assert len(times) == len(trace.rss_bytes) > 0
    assert all(0 <= value <= 1 << 60 for value in trace.known()[1])
    return trace


@given(st.binary(max_size=300))
def test_no_bytes_at_all_raise_anything_else(data: bytes) -> None:
    usable(data)


edits = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 12), st.binary(max_size=8) | st.sampled_from([b'"', b"\n", b"{"]))
)


@settings(
    max_examples=int(os.environ.get("MEMWARDEN_SOAK", "0")) * 200_000 or 400,
    suppress_health_check=list(HealthCheck),
)
@given(st.sampled_from(SEEDS), edits)
def test_no_damage_to_a_trace_raises_anything_else(seed: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    data = bytearray(seed)
    for at, length, new in changes:
        data[at : at + length] = new
    usable(bytes(data))


@given(st.lists(st.tuples(st.floats(), st.integers() | st.floats() | st.none() | st.text(max_size=5))))
def test_no_json_values_raise_anything_else(rows: list[tuple[float, object]]) -> None:
    usable(json.dumps({"samples": [{"t_s": t, "rss_bytes": v} for t, v in rows]}).encode())
