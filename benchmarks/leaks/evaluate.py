"""How good the verdict is on programs that its numbers never saw: `python -m benchmarks.leaks.evaluate`.

Ten times a tenth of the programs is left out, the model is fitted to the rest (with the lines of the shipped one),
and the runs of those left out are judged as `analyze` judges them. Needs numpy.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.leaks.fit import FITTED, fitted, folds, lines
from benchmarks.leaks.traces import RECORDED, VIEWS, Recorded, recorded
from memwarden.judge.leakwatch import replay

if TYPE_CHECKING:
    from collections.abc import Sequence


class Judged(NamedTuple):
    """One run and what was said of it."""

    run: Recorded
    suspected: bool
    cause: str


def judged(runs: Sequence[Recorded]) -> dict[str, list[Judged]]:
    """For each view every run, judged by a model without its program."""
    at = lines(runs)
    found: dict[str, list[Judged]] = {view: [] for view in VIEWS}
    for to_fit, to_judge in folds(runs):
        models = {kind: fitted(to_fit, kind, at[kind]) for kind in FITTED}
        for view, names in VIEWS.items():
            for run in to_judge:
                end = replay(run.columns(names), models=models)
                found[view].append(Judged(run, end.suspected, end.look.cause))
    return found


def report(view: str, found: Sequence[Judged], *, names: bool) -> None:
    """Precision, recall, F1, recall by rate, and how often the cause was right."""
    hit = [j for j in found if j.suspected and j.run.leak]
    false = [j for j in found if j.suspected and not j.run.leak]
    missed = [j for j in found if not j.suspected and j.run.leak]
    precision, recall = len(hit) / max(1, len(hit) + len(false)), len(hit) / max(1, len(hit) + len(missed))
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    rates = {rate: [j for j in found if j.run.leak and j.run.rate == rate] for rate in ("strong", "medium", "weak")}
    shares = ", ".join(f"{rate} {sum(j.suspected for j in js) / max(1, len(js)):.2f}" for rate, js in rates.items())
    right = sum(j.cause in j.run.cause.split("|") for j in hit) / max(1, len(hit))
    print(
        f"{view:<20} precision {precision:.3f} recall {recall:.3f} F1 {f1:.3f} "
        f"(recall: {shares}; false {len(false)} of {len(false) + sum(not j.run.leak for j in found) - len(false)}; "
        f"cause right {right:.2f})"
    )
    if names:
        causes = [j for j in hit if j.cause not in {*j.run.cause.split("|"), "unknown"}]
        print("  false:", *sorted(j.run.name.removesuffix(".csv.gz") for j in false))
        print("  missed:", *sorted(j.run.name.removesuffix(".csv.gz") for j in missed))
        print("  cause:", *sorted(f"{j.run.name.removesuffix('.csv.gz')}={j.cause}" for j in causes))


def main() -> None:
    """Print the figures; `--names` prints the mistakes too."""
    folder = next((word for word in sys.argv[1:] if not word.startswith("-")), RECORDED)
    runs = list(recorded(folder))
    programs = {run.program for run in runs}
    leaking = {run.program for run in runs if run.leak}
    print(
        f"{len(runs)} runs of {len(programs)} programs ({len(leaking)} leaking), {sum(run.leak for run in runs)} leaks"
    )
    for view, found in judged(runs).items():
        report(view, found, names="--names" in sys.argv)


if __name__ == "__main__":
    main()
