"""Fit the numbers of `memwarden.judge.leak_model` to the recorded traces, and write them there.

`python -m benchmarks.leaks.fit` needs numpy and scipy, which nothing else here does. One logistic regression per set
of columns, on signs squashed by tanh, each allowed to speak in its own direction only. The line is the lowest at
which 97.5 % of the accused runs leak, each judged by a model that was fitted without any run of that program.
"""

from __future__ import annotations

import os
import random
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

import memwarden.judge.leak_model as shipped
from benchmarks.leaks.synthetic import HEALTHY, LEAKY, Series, make
from benchmarks.leaks.traces import FITTED, Recorded, recorded
from memwarden.judge.leak import judge
from memwarden.judge.leak_model import AGAINST, Model, Term, figure_of
from memwarden.judge.signs import signs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from memwarden.judge.signs import Columns

# Weaker signs than this add nothing that a reader could follow.
LEAST_WEIGHT = 0.05
# Penalties of the sum of weights (which keeps signs few) and of their squares.
FEW, SMALL = 0.001, 0.001
# A sign saturates at this multiple of its usual deviation.
WIDTH = 0.7
FOLDS = 10
# Generated series beside the recorded ones, for the model of what is live only: there they teach traffic and long
# windows (precision on fresh series 0.95 -> 0.99 at the same F1 on programs left out); the other two they spoil
# (F1 on programs left out 0.89 -> 0.85 and 0.94 -> 0.93).
WITH_GENERATED = frozenset(("live",))
PER_PATTERN = 20
SEED = 20
PRECISION = 0.975


class Made(NamedTuple):
    """A generated series in the place of a recorded one."""

    program: str
    leak: bool
    series: Series

    def columns(self, names: tuple[str, ...]) -> Columns:
        """Only these columns of it."""
        return self.series.only(*(name for name in names if name in self.series.columns))


@cache
def generated() -> tuple[Made, ...]:
    """Some generated series: fewer than recorded ones, and long where those are short."""
    rng = random.Random(SEED)
    kinds = [(p, False) for p in HEALTHY] + [(p, True) for p in LEAKY]
    return tuple(Made(p.__name__, leak, make(p, leak=leak, rng=rng)) for p, leak in kinds for _ in range(PER_PATTERN))


@cache
def _signs(run: Recorded | Made, names: tuple[str, ...]) -> Mapping[str, float]:
    return signs(run.columns(names))


class Table:
    """The signs of many recordings as a matrix, with the truth of each row; generated series are added."""

    def __init__(self, runs: Sequence[Recorded], kind: str) -> None:
        added = generated() if kind in WITH_GENERATED else ()
        found = [(run, _signs(run, names)) for run in (*runs, *added) for names in FITTED[kind]]
        found = [each for each in found if f"{kind}_growth" in each[1]]
        names = max((each for _, each in found), key=len)
        x = np.array([[each.get(name, np.nan) for name in names] for _, each in found])
        self.names = [name for i, name in enumerate(names) if np.isfinite(x[:, i]).any()]
        self.x = x[:, np.isfinite(x).any(axis=0)]
        self.leak = np.array([run.leak for run, _ in found])


def fit(table: Table) -> Model:
    """The model of a table, whose score is the fitted chance of a leak."""
    centre = np.nanmedian(table.x, axis=0)
    width = WIDTH * np.nanpercentile(np.abs(table.x - centre), 75, axis=0) + 0.002
    towards = np.array([-1 if figure_of(name) in AGAINST else 1 for name in table.names])
    z = np.nan_to_num(np.tanh((table.x - centre) / width)) * towards
    keep = np.arange(z.shape[1])
    weights = _weights(z, table.leak)
    keep = keep[weights[1:] >= LEAST_WEIGHT]
    weights = _weights(z[:, keep], table.leak)
    terms = [
        Term(table.names[i], float(f"{centre[i]:.3g}"), float(f"{width[i]:.3g}"), round(float(w * towards[i]), 2))
        for i, w in zip(keep, weights[1:], strict=True)
    ]
    terms.sort(key=lambda term: -abs(term.weight))
    return Model(round(float(weights[0]), 2), tuple(terms))


def _weights(z: Any, leak: Any) -> Any:
    """Bias and weights of a logistic regression none of whose weights is negative."""
    side = np.where(leak, 1.0, -1.0)

    def loss(b: Any) -> tuple[float, Any]:
        margin = side * (z @ b[1:] + b[0])
        pull = -side / (1 + np.exp(np.clip(margin, -50, 50))) / len(side)
        value = np.logaddexp(0, -margin).mean() + FEW * b[1:].sum() + SMALL * (b[1:] ** 2).sum() / 2
        return value, np.concatenate([[pull.sum()], z.T @ pull + FEW + SMALL * b[1:]])

    bounds = [(None, None)] + [(0, None)] * z.shape[1]
    return minimize(loss, np.zeros(z.shape[1] + 1), jac=True, method="L-BFGS-B", bounds=bounds).x


def moved(model: Model, line: float) -> Model:
    """The same model with its score at 0.5 where it was `line`."""
    return Model(round(model.bias - float(np.log(line / (1 - line))), 2), model.terms)


def folds(runs: Sequence[Recorded]) -> Iterator[tuple[list[Recorded], list[Recorded]]]:
    """The runs as (to fit, to judge), whole programs in one or the other."""
    names = sorted({run.program for run in runs})
    for k in range(FOLDS):
        out = set(names[k::FOLDS])
        yield [run for run in runs if run.program not in out], [run for run in runs if run.program in out]


def left_out(runs: Sequence[Recorded], kind: str) -> tuple[Any, Any]:
    """The scores of all runs, each by a model that never saw its program, 0 where the gate is shut; and the truth."""
    score, leak = [], []
    for to_fit, to_judge in folds(runs):
        models = {kind: fit(Table(to_fit, kind))}
        for run in to_judge:
            look = judge(run.columns(FITTED[kind][0]), models=models)
            score.append(0.0 if look.barred else look.score or 0.0)
            leak.append(run.leak)
    return np.array(score), np.array(leak)


def line_for(score: Any, leak: Any) -> float:
    """The lowest line at which so many of the accused leak."""
    best = 0.95
    for line in sorted(set(score[score > 0]), reverse=True):
        accused = score >= line
        if accused.sum() > 20 and leak[accused].mean() >= PRECISION:
            best = float(line)
    return min(max(best, 0.05), 0.98)


def fitted(runs: Sequence[Recorded], kind: str, line: float) -> Model:
    """The model of one kind, with its line."""
    return moved(fit(Table(runs, kind)), line)


def lines(runs: Sequence[Recorded]) -> Mapping[str, float]:
    """The line of each kind."""
    return {kind: line_for(*left_out(runs, kind)) for kind in FITTED}


HEAD = '''"""How much the signs look like those of programs that leaked: the numbers, and what each says.

Written by `python -m benchmarks.leaks.fit` from {runs} recorded runs of {programs} programs; do not edit. A score is
1 / (1 + exp(-(bias + sum of weight * tanh((sign - centre) / width)))), 0.5 is the line. A sign that is not known
counts nothing. There is a model for each set of columns: RSS alone, with Python's blocks, and with malloc's too.
"""
'''


def main() -> None:
    """Fit all three, and write them into the module that ships."""
    runs = list(recorded())
    path = shipped.__file__
    with open(path) as file:
        code = "from __future__" + file.read().split("# --- numbers ---")[0].split("from __future__", 1)[1]
    head = HEAD.format(runs=len(runs), programs=len({run.program for run in runs}))
    text = [head, "\n", code, "# --- numbers ---\nMODELS = {\n"]
    for kind, line in lines(runs).items():
        model = fitted(runs, kind, line)
        print(f"{kind}: {len(model.terms)} signs, line {line:.2f}", file=sys.stderr)
        text.append(f'    "{kind}": Model(\n        {model.bias},\n        (\n')
        text += [f'            Term("{t.sign}", {t.centre:g}, {t.width:g}, {t.weight:g}),\n' for t in model.terms]
        text.append("        ),\n    ),\n")
    text.append("}\n")
    with open(path + ".new", "w") as file:
        file.write("".join(text))
    os.replace(path + ".new", path)


if __name__ == "__main__":
    main()
