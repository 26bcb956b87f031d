"""What memwarden weighs in the process that it guards, beside psutil.

Fresh isolated interpreters that take turns, byte code present, medians; each starts from its own resident
size just before the import.
"""

from __future__ import annotations

from benchmarks import Figure
from benchmarks.arms import fresh_medians

_MIB = 1 << 20

# What every program ends with: the growth since `before`, and whose modules came.
_END = """
after = rss_bytes()
came = set(sys.modules) - modules
foreign = {name.partition(".")[0] for name in came} - set(sys.stdlib_module_names) - {"memwarden"}
tell(rss=after - before, modules=len(came), foreign=len(foreign))
"""
_BEGIN = "modules = set(sys.modules); before = rss_bytes()\n"
_START = """
import memwarden, tempfile, time
with tempfile.TemporaryDirectory() as folder:
    warden = memwarden.Warden(interval="50ms", directory=folder)
    warden.start()
    time.sleep(1.0)  # twenty ticks: what a first tick allocates is there
    while_running = rss_bytes()
    warden.stop()
after = while_running
"""
# Two hours of samples for the leak verdict at once, with every look that is due: what a whole day of it holds.
_JUDGED = """
    findings, reading = warden._findings, warden.reading
    for number in range(480):
        size = (100 << 20) + number * (1 << 18) + number % 7 * 4096
        findings.sample(reading.replace(monotonic_s=reading.monotonic_s + number * 15.0, rss_bytes=size))
    assert findings.leak.evidence
"""
# tempfile and time are the benchmark's own: loaded before the count.
_HOST = "import tempfile, time\n"


def _judged() -> str:
    return _START.replace("    while_running", _JUDGED.lstrip("\n") + "    while_running")


PROGRAMS = {
    "nothing": _BEGIN + _END,
    "psutil": _BEGIN + "import psutil\n" + _END,
    "memwarden": _BEGIN + "import memwarden\n" + _END,
    "every name": _BEGIN + "import memwarden\nfor name in memwarden.__all__: getattr(memwarden, name)\n" + _END,
    "bare": _HOST + _BEGIN + _START + _END.replace("after = rss_bytes()", ""),
    "bare, judged": _HOST + _BEGIN + _judged() + _END.replace("after = rss_bytes()", ""),
    "host, judged": "import asyncio, ssl\n" + _HOST + _BEGIN + _judged() + _END.replace("after = rss_bytes()", ""),
    "host": "import asyncio, ssl\n" + _HOST + _BEGIN + _START + _END.replace("after = rss_bytes()", ""),
}


def main() -> list[Figure]:
    """The import, every public name, and a running Warden."""
    found = fresh_medians(PROGRAMS)
    peer = f"psutil {found['psutil']['rss'] / _MIB:.2f} MiB, {found['psutil']['modules']:.0f} modules"
    noise = f"; importing nothing {found['nothing']['rss'] / _MIB:.2f}"

    def mib(what: str, name: str, bound: float | None = None) -> Figure:
        return Figure(what, found[name]["rss"] / _MIB, " MiB", at_most=bound, beside=peer + noise)

    return [
        mib("import memwarden, over a bare interpreter", "memwarden", 6.0),
        Figure("modules that it loads", found["memwarden"]["modules"], at_most=70),
        Figure("of them from third parties", found["memwarden"]["foreign"], at_most=0),
        mib("every public name touched, which is what the lazy import puts off", "every name", 6.0),
        Figure("modules that they load", found["every name"]["modules"], at_most=70),
        mib("a running Warden, in a bare interpreter", "bare", 8.0),
        Figure("modules that it loads, started", found["bare"]["modules"]),
        mib("a running Warden, in a host with asyncio and ssl", "host", 5.0),
        mib("bare, after two hours of samples and looks for leaks", "bare, judged", 8.0),
        mib("the same in a host with asyncio and ssl", "host, judged", 5.0),
    ]
