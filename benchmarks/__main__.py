"""Run the named benchmarks, or all of them, one after the other."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import traceback

from benchmarks import HEADING, NAMES


def machine() -> str:
    """What was measured on, as far as a reader needs it to compare."""
    load = "/".join(f"{x:.1f}" for x in os.getloadavg())
    return (
        f"Python {platform.python_version()}, Linux {platform.release()}, {platform.machine()}, "
        f"{os.cpu_count()} CPUs, load {load}"
    )


def main(names: list[str]) -> int:
    """Print the figures of each; 2 for a name that is none, 1 where one could not be measured to its end."""
    wrong = [name for name in names if name not in NAMES]
    if wrong:
        print(f"no benchmark named {wrong[0]!r}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    print(machine())
    failed = 0
    for name in names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        about = (module.__doc__ or "").partition("\n")[0]
        print(f"\n{name}: {about}\n{HEADING}", flush=True)
        try:
            for figure in module.main():
                print(figure.row(), flush=True)
        except Exception:  # whatever is wrong with one, the others are measured
            traceback.print_exc()
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
