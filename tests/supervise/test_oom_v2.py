"""The same kills and the ladder on a kernel with cgroup v2, in user-mode Linux."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from tests.uml.kernel import run_in_uml, uml_missing_reason

if TYPE_CHECKING:
    from collections.abc import Mapping

MISSING = uml_missing_reason()
pytestmark = [
    pytest.mark.uml,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.timeout(1800 if os.environ.get("MEMWARDEN_SOAK") else 240),
]

ROUNDS = 50 if os.environ.get("MEMWARDEN_SOAK") else 10


def test_every_death_is_told_right_on_v2() -> None:
    """Real kernel kills, kills of a grandchild only, and plain SIGKILLs."""
    words = [sys.executable, "-m", "benchmarks.oom_attribution", str(ROUNDS)]
    seen = run_in_uml(words, timeout_s=1700 if ROUNDS == 50 else 200).checked().json()
    counts = len(seen["kills_s"]), len(seen["below_s"]), seen["mistaken"]
    assert counts == (ROUNDS, ROUNDS, 0)
    assert max(seen["kills_s"] + seen["below_s"]) < 1.0
    assert max(seen["ages_s"]) <= 0.1


# What all places have in common: a memwarden run in some cgroup, and what it and its child see there.
_PLACES = textwrap.dedent(
    """
    import json, os, subprocess, sys
    ROOT = "/sys/fs/cgroup"
    SCRIPT = "src/memwarden/supervise/__main__.py"
    HOG = "b = []\\nwhile True: b.append(b'x' * (2 << 20))"

    def write(path, text):
        with open(f"{ROOT}/{path}", "w") as file: file.write(text)

    def read(path):
        with open(f"{ROOT}/{path}") as file: return file.read().strip()

    def make(path, *, hands_on=False, **limits):
        os.mkdir(f"{ROOT}/{path}")
        for name, value in limits.items(): write(f"{path}/{name.replace('_', '.')}", value)
        if hands_on: write(f"{path}/cgroup.subtree_control", "+memory")

    def run(*words, inside="", env=None, **settings):
        join = (lambda: write(f"{inside}/cgroup.procs", str(os.getpid()))) if inside else None
        options = [f"{k}={v}" for k, v in {"limit_bytes": 64 << 20, "fence": "off", **settings}.items()]
        done = subprocess.run([sys.executable, "-I", "-S", SCRIPT, *options, "--", *words],
                              capture_output=True, text=True, preexec_fn=join, env=env, timeout=60)
        return {"code": done.returncode, "out": done.stdout, "err": done.stderr}

    def tree(path=""):
        return sorted(p for p, _, _ in os.walk(f"{ROOT}/{path}") if "memwarden" in p)

    WHERE = ["sh", "-c", "cat /proc/self/cgroup /proc/$PPID/cgroup"]
    SHOW = ["sh", "-c", "d=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); cd $d;"
            " cat memory.max memory.high memory.swap.max memory.oom.group"]
    """
)


def places(program: str, **options: Any) -> Mapping[str, Any]:
    """What the program, which may use the above, says about a fresh guest."""
    result = run_in_uml(_PLACES + textwrap.dedent(program), timeout_s=120, **options).checked().json()
    assert isinstance(result, dict)
    return result


def test_every_rung_of_v2_holds_or_says_why_and_leaves_nothing() -> None:
    seen = places(
        """
        out = {"root": run(*WHERE)}
        make("alone")
        out["alone"] = run(*WHERE, inside="alone")
        out["alone_after"] = [read("alone/cgroup.subtree_control"), *tree("alone")]
        make("slice", hands_on=True); make("slice/a")
        enter = lambda: write("slice/a/cgroup.procs", str(os.getpid()))
        other = subprocess.Popen(["sleep", "600"], preexec_fn=enter)
        out["beside"] = run(*WHERE, inside="slice/a")
        write("slice/a/memory.max", str(300 << 20))
        out["escape"] = run(*WHERE, inside="slice/a")
        out["required"] = run("true", inside="slice/a", cgroup="require")
        other.kill(); other.wait()
        make("bare"); make("bare/x")
        out["no_controller"] = run(*WHERE, inside="bare/x")
        make("tight", hands_on=True, memory_max=str(32 << 20)); make("tight/in")
        out["outer"] = run(*WHERE, inside="tight/in")
        out["left"] = tree()
        print(json.dumps(out))
        """
    )
    assert "/memwarden-" in seen["root"]["out"].splitlines()[0]
    child, supervisor = seen["alone"]["out"].splitlines()
    assert child.startswith("0::/alone/memwarden-")
    assert supervisor == child + "-self"
    assert seen["alone_after"] == [""]
    child, supervisor = seen["beside"]["out"].splitlines()
    assert (child.startswith("0::/slice/memwarden-"), supervisor) == (True, "0::/slice/a")
    assert "would escape its memory.max" in seen["escape"]["err"]
    assert "RLIMIT_DATA" in seen["escape"]["err"]
    assert (seen["required"]["code"], "no memory cgroup can be made" in seen["required"]["err"]) == (125, True)
    assert "memory controller is not offered here" in seen["no_controller"]["err"]
    assert "a limit of 32 MiB is set on this container" in seen["outer"]["err"]
    assert seen["left"] == []


def test_limits_of_v2_are_all_set() -> None:
    seen = places(
        """
        print(json.dumps({"plain": run(*SHOW), "swap": run(*SHOW, swap_bytes=8 << 20, oom_group=1)}))
        """,
        swap_bytes=64 << 20,
    )
    high = str(int((64 << 20) * 0.93) // 4096 * 4096)
    assert seen["plain"]["out"].split() == [str(64 << 20), high, "0", "0"]
    assert seen["swap"]["out"].split() == [str(64 << 20), high, str(8 << 20), "1"]


def test_the_alarm_line_never_holds_a_living_program_longer_than_the_brake_time() -> None:
    """Control arm: the same line left in place slows the same work, which fits the limit, to a crawl."""
    seen = places(
        """
        import time
        work = "held = b'x' * (59 << 20)\\nfor _ in range(200): more = b'y' * (1 << 19)"
        def timed(brake):
            start, before = time.monotonic(), os.times()
            done = run(sys.executable, "-I", "-S", "-c", work, brake_s=brake)
            after = os.times()
            worked = sum(after[2:4]) - sum(before[2:4])  # page faults are slow here, and are work
            return {"waited_s": time.monotonic() - start - worked, **done}
        print(json.dumps({"braked": timed(0.3), "held": timed(30.0)}))
        """
    )
    assert [seen[name]["code"] for name in ("braked", "held")] == [0, 0]
    assert seen["held"]["waited_s"] > seen["braked"]["waited_s"] + 0.5


def test_a_cgroup_in_which_one_process_is_killed_can_take_all_with_it() -> None:
    seen = places(
        """
        both = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOG!r}]); print('lived on')"
        words = sys.executable, "-c", both
        print(json.dumps({"one": run(*words), "all": run(*words, oom_group=1)}))
        """
    )
    assert (seen["one"]["code"], seen["one"]["out"]) == (0, "lived on\n")
    assert (seen["all"]["code"], seen["all"]["out"]) == (137, "")
    assert "(OOM kill)" in seen["all"]["err"]


def test_without_a_v2_controller_the_machines_counter_still_tells() -> None:
    """In the root cgroup, which has no counter, and with no limit of ours: /proc/vmstat, and called probable."""
    seen = places(
        """
        os.mkdir(f"{ROOT}/box"); write("box/memory.max", str(48 << 20))
        hog = "open('/sys/fs/cgroup/box/cgroup.procs', 'w').write('0')\\n" + HOG
        done = subprocess.run([sys.executable, "-I", "-S", SCRIPT, "fence=off", "--", sys.executable, "-c", hog],
                              capture_output=True, text=True)
        print(json.dumps({"code": done.returncode, "err": done.stderr}))
        """
    )
    assert seen["code"] == 137
    assert "(OOM kill)" in seen["err"]


def test_a_systemd_scope_is_entered_where_it_gives_a_cgroup() -> None:
    """systemd itself cannot run here: a stand-in makes the scope as systemd-run does, by exec in its cgroup."""
    seen = places(
        """
        os.makedirs("/run/systemd/system"); os.mkdir("/run/bin")
        make("full", hands_on=True); make("full/user", memory_max=str(600 << 20))

        def systemd_run(text):
            with open("/run/bin/systemd-run", "w") as file: file.write("#!/bin/sh\\n" + text)
            os.chmod("/run/bin/systemd-run", 0o755)

        systemd_run('limit=max; while [ "$1" != -- ]; do'
                    ' case "$1" in MemoryMax=*) limit=${1#MemoryMax=};; esac; shift; done; shift;'
                    ' d=/sys/fs/cgroup/run-$$.scope; mkdir $d; echo $limit > $d/memory.max;'
                    ' echo $$ > $d/cgroup.procs; exec "$@"')
        enter = lambda: write("full/user/cgroup.procs", str(os.getpid()))
        other = subprocess.Popen(["sleep", "600"], preexec_fn=enter)
        env = {**os.environ, "PATH": "/run/bin:" + os.environ["PATH"]}
        scope = run(*WHERE, inside="full/user", env=env)
        systemd_run("exit 1")
        refused = run(*WHERE, inside="full/user", env=env)
        other.kill(); other.wait()
        print(json.dumps({"scope": scope, "refused": refused, "left": tree()}))
        """
    )
    child, supervisor = seen["scope"]["out"].splitlines()
    assert child.startswith("0::/run-")
    assert supervisor == child + "-self"
    assert "did not get its limit" in seen["refused"]["err"]
    assert seen["left"] == []
