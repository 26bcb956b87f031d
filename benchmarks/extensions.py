"""What Python, its standard library and popular extensions do when the fence refuses them memory.

    python -m benchmarks.extensions [--venv FOLDER] [--write docs/explanation/extensions-under-refusal.md] [NAME ...]

Makes an environment of its own (in a temporary folder, or FOLDER, which is kept), installs the packages there, and
runs each piece of code in a process of its own: first with much room, where it must succeed, then with the soft
RLIMIT_DATA 4, 16 and 60 MiB above what the process has. The table is Markdown.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

from benchmarks import Figure

ROOMS_MIB = (4, 16, 60)
CONTROL_MIB = 3000
_SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src")


class Row(NamedTuple):
    """One piece of code. `setup` is run with no fence, `act` behind it; `package` is empty for Python itself."""

    what: str
    setup: str
    act: str
    package: str = ""


_JSON = "text = b'[' + b','.join([b'{\"a\": [1.5, 2.5], \"b\": \"xyz\"}'] * 400_000) + b']'; "
_ROWS = "rows = [{'a': n, 'b': str(n) * 20} for n in range(400_000)]; "

PYTHON = (
    Row("bytes", "", "x = b'x' * (200 << 20)"),
    Row("bytearray, growing", "", "x = bytearray()\nfor _ in range(200): x += b'x' * (1 << 20)"),
    Row("str.join", "parts = ['x' * 1000] * 200_000", "x = ''.join(parts)"),
    Row("list of small objects", "", "x = [{'n': n} for n in range(1_000_000)]"),
    Row("dict", "", "x = {n: str(n) for n in range(2_000_000)}"),
    Row("set", "", "x = {str(n) for n in range(2_000_000)}"),
    Row("int, very large", "n = 3 ** 2_000_000", "x = n << 1_600_000_000"),
    Row("json.loads", _JSON + "import json", "x = json.loads(text)"),
    Row("json.dumps", "import json; rows = [{'a': n % 100, 'b': 'y' * 200} for n in range(1_000)] * 600",
        "x = json.dumps(rows)"),
    Row("pickle.loads", _ROWS + "import pickle; raw = pickle.dumps(rows); del rows", "x = pickle.loads(raw)"),
    Row("pickle.dumps", "import pickle; rows = [bytes([n % 256]) * 1000 for n in range(150_000)]",
        "x = pickle.dumps(rows)"),
    Row("zlib.decompress", "import zlib; raw = zlib.compress(bytes(200 << 20))", "x = zlib.decompress(raw)"),
    Row("lzma.decompress", "import lzma; raw = lzma.compress(bytes(200 << 20), preset=0)", "x = lzma.decompress(raw)"),
    Row("bz2.decompress", "import bz2; raw = bz2.compress(bytes(200 << 20), 1)", "x = bz2.decompress(raw)"),
    Row("sqlite3 fetchall", "import sqlite3; c = sqlite3.connect(':memory:'); q = 'with recursive n(x) as (select 1 "
        "union all select x + 1 from n where x < 1500000) select x, hex(x) from n'", "x = c.execute(q).fetchall()"),
    Row("sqlite3 in memory, insert", "import sqlite3; c = sqlite3.connect(':memory:'); c.execute('create table t(x)')",
        "c.execute('with recursive n(x) as (select 1 union all select x + 1 from n where x < 200000) "
        "insert into t select zeroblob(1000) from n')"),
    Row("re.findall", "import re; text = 'ab ' * 3_000_000", "x = re.findall('[a-z]+', text)"),
    Row("decimal", "import decimal; decimal.getcontext().prec = 10**8; d = decimal.Decimal(7)",
        "x = (d / 3) * (d / 11)"),
    Row("struct.pack", "import struct", "x = struct.pack('300000000x')"),
    Row("array", "import array", "x = array.array('d', bytes(8)) * 30_000_000"),
    Row("collections.deque", "import collections", "x = collections.deque(range(10_000_000))"),
    Row("csv.reader", "import csv, io; raw = io.StringIO('a,b,c,d\\n' * 1_000_000)", "x = list(csv.reader(raw))"),
    Row("xml.etree (expat)", "import xml.etree.ElementTree as e; text = '<r>' + '<a b=\"1\">x</a>' * 400_000 + '</r>'",
        "x = e.fromstring(text)"),
    Row("io.BytesIO", "import io; f = io.BytesIO()", "for _ in range(200): f.write(b'x' * (1 << 20))"),
    Row("mmap, anonymous private", "import mmap", "x = mmap.mmap(-1, 300 << 20, flags=mmap.MAP_PRIVATE)"),
    Row("ctypes.create_string_buffer", "import ctypes", "x = ctypes.create_string_buffer(300 << 20)"),
    Row("hashlib.scrypt", "import hashlib", "x = hashlib.scrypt(b'p', salt=b's', n=1 << 18, r=8, p=1, maxmem=1 << 30)"),
    Row("ast.parse", "import ast; text = 'x = [1, 2, (3, 4)]\\n' * 100_000", "x = ast.parse(text)"),
    Row("exec, deep recursion", "import sys; sys.setrecursionlimit(2_000_000)",
        "def f(n): return n and f(n - 1)\nf(1_900_000)"),
    Row("threading.Thread.start", "import threading, time; hold = threading.Event()",
        "try:\n  for _ in range(20): threading.Thread(target=hold.wait).start()\nfinally: hold.set()"),
    Row("os.fork", "import os", "pid = os.fork()\nif not pid: os._exit(0)\nos.waitpid(pid, 0)"),
    Row("subprocess (child needs memory)", "import subprocess, sys",
        "p = subprocess.run([sys.executable, '-S', '-c', 'x = b\"x\" * (300 << 20)'], capture_output=True)\n"
        "if p.returncode: raise RuntimeError(f'the child ended with {p.returncode}')"),
    Row("asyncio.run", "import asyncio", "async def f(): return [asyncio.ensure_future(asyncio.sleep(0)) "
        "for _ in range(200_000)]\nx = asyncio.run(f())"),
)  # fmt: skip

PACKAGES = (
    Row("numpy.ones", "import numpy", "x = numpy.ones(40_000_000)", "numpy"),
    Row("numpy matmul", "import numpy; a = numpy.ones((3000, 3000)); a @ a", "x = a @ a @ a @ a", "numpy"),
    Row("scipy.signal.fftconvolve", "import numpy, scipy.signal; a = numpy.ones(4_000_000)",
        "x = scipy.signal.fftconvolve(a, a)", "scipy"),
    Row("pandas.read_csv", "import pandas, io; raw = io.StringIO('a,b,c\\n' + '1,2.5,xyz\\n' * 2_000_000)",
        "x = pandas.read_csv(raw)", "pandas"),
    Row("pandas merge", "import pandas; a = pandas.DataFrame({'k': [1] * 4000, 'v': 1.0})", "x = a.merge(a, on='k')",
        "pandas"),
    Row("pyarrow.csv.read_csv", "import pyarrow.csv, io; raw = io.BytesIO(b'a,b\\n' + b'1,2.5\\n' * 15_000_000)",
        "x = pyarrow.csv.read_csv(raw)", "pyarrow"),
    Row("pyarrow.array", "import pyarrow; rows = list(range(1000)) * 30_000", "x = pyarrow.array(rows)", "pyarrow"),
    Row("polars.read_csv", "import polars; raw = b'a,b\\n' + b'1,2.5\\n' * 15_000_000", "x = polars.read_csv(raw)",
        "polars"),
    Row("polars.ones", "import polars", "x = polars.ones(40_000_000, eager=True)", "polars"),
    Row("duckdb query", "import duckdb, numpy; c = duckdb.connect(); c.execute('select 1').fetchnumpy()",
        "x = c.execute('select range, hash(range) from range(20000000)').fetchnumpy()", "duckdb"),
    Row("orjson.loads", _JSON + "import orjson", "x = orjson.loads(text)", "orjson"),
    Row("orjson.dumps", "import orjson; rows = ['y' * 1000] * 300_000", "x = orjson.dumps(rows)", "orjson"),
    Row("ujson.loads", _JSON + "import ujson", "x = ujson.loads(text)", "ujson"),
    Row("ujson.dumps", "import ujson; rows = ['y' * 1000] * 300_000", "x = ujson.dumps(rows)", "ujson"),
    Row("simplejson.loads", _JSON + "import simplejson", "x = simplejson.loads(text)", "simplejson"),
    Row("rapidjson.loads", _JSON + "import rapidjson", "x = rapidjson.loads(text)", "python-rapidjson"),
    Row("rapidjson.dumps", "import rapidjson; rows = ['y' * 1000] * 300_000", "x = rapidjson.dumps(rows)",
        "python-rapidjson"),
    Row("jiter.from_json", _JSON + "import jiter", "x = jiter.from_json(text)", "jiter"),
    Row("msgspec.json.decode", _JSON + "import msgspec", "x = msgspec.json.decode(text)", "msgspec"),
    Row("msgspec.json.encode", "import msgspec; rows = ['y' * 1000] * 300_000", "x = msgspec.json.encode(rows)",
        "msgspec"),
    Row("pydantic validate_json", _JSON + "import pydantic; A = pydantic.TypeAdapter(list[dict])",
        "x = A.validate_json(text)", "pydantic"),
    Row("pydantic dump_json", "import pydantic; A = pydantic.TypeAdapter(list[str]); rows = ['y' * 1000] * 300_000",
        "x = A.dump_json(rows)", "pydantic"),
    Row("msgpack.unpackb", "import msgpack; raw = msgpack.packb([{'a': n, 'b': 'xyz' * 5} for n in range(800_000)])",
        "x = msgpack.unpackb(raw)", "msgpack"),
    Row("msgpack.packb", "import msgpack; rows = ['y' * 1000] * 300_000", "x = msgpack.packb(rows)", "msgpack"),
    Row("cbor2.loads", "import cbor2; raw = cbor2.dumps([{'a': n, 'b': 'xyz' * 5} for n in range(800_000)])",
        "x = cbor2.loads(raw)", "cbor2"),
    Row("PyYAML, C loader", "import yaml; text = '- [a, b, {c: d}]\\n' * 30_000",
        "x = yaml.load(text, yaml.CSafeLoader)",
        "PyYAML"),
    Row("fastavro reader", "import fastavro, io; f = io.BytesIO(); fastavro.writer(f, {'type': 'record', 'name': 'r', "
        "'fields': [{'name': 'a', 'type': 'string'}]}, ({'a': 'x' * 20} for _ in range(1_000_000))); f.seek(0)",
        "x = list(fastavro.reader(f))", "fastavro"),
    Row("protobuf ListValue", "from google.protobuf import struct_pb2; v = struct_pb2.ListValue()",
        "for _ in range(3_000_000): v.values.add().number_value = 1.5", "protobuf"),
    Row("lxml.etree.fromstring", "import lxml.etree; text = b'<r>' + b'<a b=\"1\">x</a>' * 1_000_000 + b'</r>'",
        "x = lxml.etree.fromstring(text)", "lxml"),
    Row("lxml.etree.SubElement", "import lxml.etree as e; r = e.Element('r')",
        "for _ in range(1_500_000): e.SubElement(r, 'a', b='1')", "lxml"),
    Row("selectolax", "import selectolax.lexbor; text = '<p class=x>y</p>' * 800_000",
        "x = selectolax.lexbor.LexborHTMLParser(text)", "selectolax"),
    Row("regex.findall", "import regex; text = 'ab ' * 3_000_000", "x = regex.findall('[a-z]+', text)", "regex"),
    Row("Pillow, new and resize", "import PIL.Image; i = PIL.Image.new('RGB', (2000, 2000))",
        "x = i.resize((12000, 9000))", "Pillow"),
    Row("cryptography, AES-GCM", "from cryptography.hazmat.primitives.ciphers.aead import AESGCM; "
        "k = AESGCM(bytes(16)); raw = bytes(200 << 20)", "x = k.encrypt(bytes(12), raw, None)", "cryptography"),
    Row("cryptography, scrypt", "from cryptography.hazmat.primitives.kdf.scrypt import Scrypt; "
        "k = Scrypt(salt=b's' * 16, length=32, n=1 << 18, r=8, p=1)", "x = k.derive(b'p')", "cryptography"),
    Row("zstandard.decompress", "import zstandard; raw = zstandard.compress(bytes(300 << 20))",
        "x = zstandard.decompress(raw)", "zstandard"),
    Row("lz4.frame.decompress", "import lz4.frame; raw = lz4.frame.compress(bytes(300 << 20))",
        "x = lz4.frame.decompress(raw)", "lz4"),
    Row("brotli.decompress", "import brotli; raw = brotli.compress(bytes(300 << 20), quality=1)",
        "x = brotli.decompress(raw)", "Brotli"),
    Row("cramjam.snappy.decompress", "import cramjam; raw = cramjam.snappy.compress(bytes(300 << 20))",
        "x = cramjam.snappy.decompress(raw)", "cramjam"),
    Row("h5py dataset", "import h5py, numpy; f = h5py.File('x', 'w', driver='core', backing_store=False); "
        "d = f.create_dataset('d', (40_000_000,), dtype='f8')", "x = d[:]", "h5py"),
    Row("shapely buffer", "import shapely, numpy; p = shapely.points(numpy.random.rand(20_000, 2))",
        "x = shapely.buffer(p, 0.1, quad_segs=200)", "shapely"),
    Row("rpds HashTrieMap", "import rpds", "m = rpds.HashTrieMap()\nfor n in range(2_000_000): m = m.insert(n, n)",
        "rpds-py"),
    Row("lmdb put", "import lmdb, tempfile; t = lmdb.open(tempfile.mkdtemp(), map_size=1 << 30).begin(write=True)",
        "for n in range(400_000): t.put(b'%d' % n, bytes(1000))\nt.abort()", "lmdb"),
    Row("rapidfuzz cdist", "import numpy, rapidfuzz.process; a = [str(n) for n in range(8000)]",
        "x = rapidfuzz.process.cdist(a, a)", "rapidfuzz"),
    Row("bitarray", "import bitarray", "x = bitarray.bitarray(4_000_000_000)", "bitarray"),
    Row("tokenizers (BPE)", "import tokenizers; t = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0, '?': 1}, "
        "unk_token='?')); t.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace(); text = 'a ' * 2_000_000",
        "x = t.encode(text)", "tokenizers"),
    Row("pyzmq send", "import zmq; s = zmq.Context().socket(zmq.PAIR); s.bind('inproc://x')\n"
        "o = zmq.Context.instance().socket(zmq.PAIR); s.set_hwm(0); o.set_hwm(0); o.bind('inproc://y'); "
        "p = zmq.Context.instance().socket(zmq.PAIR); p.set_hwm(0); p.connect('inproc://y')",
        "for _ in range(300): o.send(b'x' * (1 << 20))", "pyzmq"),
    Row("gevent.spawn", "import gevent", "x = [gevent.spawn(gevent.sleep, 0) for _ in range(300_000)]", "gevent"),
    Row("multidict (aiohttp)", "import multidict", "x = multidict.CIMultiDict((str(n), 'x') for n in range(1_000_000))",
        "multidict"),
    Row("numexpr", "import numexpr, numpy; a = numpy.ones(20_000_000)", "x = numexpr.evaluate('a * 2 + 1')", "numexpr"),
    Row("blake3", "import blake3; raw = bytes(100 << 20)",
        "x = blake3.blake3(raw, max_threads=2).digest() * 10_000_000", "blake3"),
)  # fmt: skip

# In the child: the fence is a plain soft limit, as `memwarden run` sets it.
_CHILD = r"""
import json, resource, sys
setup, act, room_mib = sys.argv[1], sys.argv[2], int(sys.argv[3])
scope = {}
exec(compile(setup, "setup", "exec"), scope)
def field(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) << 10
code = compile(act, "act", "exec")
import memwarden.act.fence as fence
print("ready", flush=True)
data = field("VmData")
resource.setrlimit(resource.RLIMIT_DATA, (data + (room_mib << 20), resource.RLIM_INFINITY))
outcome = "ok", "", False
try:
    exec(code, scope)
except BaseException as error:
    scope.clear()  # else it holds what fills the room, and nothing below could be said
    name, text = type(error).__name__, str(error)[:90]
    told = fence.refusal(error) is not None
    del error
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    outcome = name, text, told
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps(outcome), flush=True)
import os
os._exit(0)
"""


def try_one(python: str, row: Row, room_mib: int) -> dict[str, Any]:
    """Run one row once; `kind` is one of ok, clean, disguised, abort, crash, hang, setup."""
    words = [python, "-c", _CHILD, row.setup, row.act, str(room_mib)]
    environ = {
        **os.environ,
        "PYTHONPATH": _SOURCE,
        "OMP_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "POLARS_MAX_THREADS": "2",
        "RAYON_NUM_THREADS": "2",
    }
    try:
        ended = subprocess.run(words, capture_output=True, text=True, errors="replace", env=environ, timeout=60)
    except subprocess.TimeoutExpired:
        return {"kind": "hang", "what": "still running after 60 s"}
    said = ended.stdout.split("\n")
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        last = (ended.stderr.strip().splitlines() or [""])[-1][:80]
        kind = "setup" if said[0] != "ready" else "abort" if name == "SIGABRT" else "crash"
        return {"kind": kind, "what": f"{name} {last}".strip()}
    if ended.returncode or said[0] != "ready" or len(said) < 2 or not said[1]:
        last = (ended.stderr.strip().splitlines() or [""])[-1]
        if said[0] == "ready" and ended.returncode == 1 and last.startswith("MemoryError"):
            return {"kind": "clean", "what": "MemoryError, and again in the code that handled it"}
        kind = "abort" if said[0] == "ready" else "setup"
        return {
            "kind": kind,
            "what": f"exit {ended.returncode} " + (ended.stderr.strip().splitlines() or [""])[-1][:80],
        }
    name, text, told = json.loads(said[1])
    if name == "ok":
        return {"kind": "ok", "what": ""}
    clean = name in ("MemoryError", "_ArrayMemoryError", "ArrowMemoryError", "MemoryError")
    return {"kind": "clean" if clean else "disguised", "what": f"{name}: {text}" if text else name, "told": told}


_WORST = ("setup", "hang", "crash", "abort", "disguised", "clean", "ok")


def judge(python: str, row: Row) -> dict[str, Any]:
    """The control, then every room; the worst outcome counts, and all are kept."""
    control = try_one(python, row, CONTROL_MIB)
    seen = [try_one(python, row, room) for room in ROOMS_MIB] if control["kind"] == "ok" else []
    worst = min(seen or [control], key=lambda one: _WORST.index(one["kind"]))
    return {"row": row.what, "package": row.package, "control": control, "seen": seen, **worst}


def versions(python: str) -> dict[str, str]:
    """Installed packages by name in lower case."""
    words = [python, "-m", "pip", "list", "--format", "json"]
    listed = json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    return {each["name"].lower(): each["version"] for each in listed}


def environment(folder: str) -> str:
    """A virtual environment with every package; its Python."""
    python = os.path.join(folder, "bin", "python")
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    names = sorted({row.package for row in PACKAGES})
    pip = [python, "-m", "pip", "install", "-q", "--only-binary", ":all:", *names]
    subprocess.run(pip, check=True, stdout=sys.stderr)
    return python


_WORDS = {
    "clean": "clean `MemoryError`",
    "disguised": "**disguised**",
    "abort": "**aborts the process**",
    "crash": "**crashes the process**",
    "hang": "**hangs**",
    "ok": "does not notice",
    "setup": "not tested",
}


def table(found: list[dict[str, Any]], installed: dict[str, str]) -> str:
    """The outcomes as Markdown."""
    lines = [
        "| Code | Version | Behaviour | What was seen (4 / 16 / 60 MiB of room) | `relabelled` |",
        "|---|---|---|---|---|",
    ]
    for each in found:
        version = f"{each['package']} {installed.get(each['package'].lower(), '?')}" if each["package"] else "CPython"
        outcomes = list(dict.fromkeys(one["what"] or "fits" for one in each["seen"])) or [each["what"]]
        seen = "; ".join(outcomes).replace("|", "\\|").replace("\n", " ")
        told = [one["told"] for one in each["seen"] if "told" in one]
        right = "" if not told else "yes" if all(told) else "**no**"
        lines.append(f"| {each['row']} | {version} | {_WORDS[each['kind']]} | {seen} | {right} |")
    return "\n".join(lines)


def campaign(python: str, names: list[str]) -> list[dict[str, Any]]:
    """Every row, or those whose name begins with one of the names."""
    rows = [row for row in (*PYTHON, *PACKAGES) if not names or any(row.what.startswith(name) for name in names)]
    found = []
    for row in rows:
        found.append(judge(python, row))
        print(
            f"{found[-1]['row']}: {found[-1]['kind']} {[one['what'] for one in found[-1]['seen']]}",
            file=sys.stderr,
            flush=True,
        )
    return found


def main() -> list[Figure]:
    """The rows of Python itself, as counts: the packages need a network, so they run only when asked for."""
    found = [judge(sys.executable, row) for row in PYTHON]
    kinds = [each["kind"] for each in found]
    return [
        Figure(
            f"of {len(found)} pieces of Python itself: end the process", kinds.count("abort") + kinds.count("crash")
        ),
        Figure(f"of {len(found)} pieces of Python itself: clean MemoryError", kinds.count("clean")),
    ]


def _begin(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extensions")
    parser.add_argument("--venv")
    parser.add_argument("--write")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="memwarden-extensions-") as folder:
        python = environment(os.path.abspath(args.venv) if args.venv else folder)
        found = campaign(python, args.names)
        text = table(found, versions(python))
    today = dt.datetime.now(tz=dt.UTC).date()
    kernel = ".".join(platform.release().split(".")[:2])
    about = f"Measured {today}, CPython {platform.python_version()}, Linux {kernel} {platform.machine()}."
    if args.write:
        with open(args.write, encoding="utf-8") as file:
            before, mark, _ = file.read().partition("<!-- from here on written by benchmarks.extensions -->")
        with open(args.write, "w", encoding="utf-8") as file:
            file.write(f"{before}{mark}\n\n{about}\n\n{text}\n")
    else:
        print(f"{about}\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(_begin(sys.argv[1:]))
