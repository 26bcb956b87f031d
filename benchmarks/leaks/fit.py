"""Fit the numbers of `memwarden.judge.leak_model` to the recorded traces, and write them there.

`python -m benchmarks.leaks.fit` needs numpy, which nothing else here does. For each set of columns, a sum of rules of
two questions each: gradient boosting of small trees (Friedman, Annals of Statistics 29, 2001) on the recorded runs and
as much weight of generated series, whose twins judge recordings of hours as the runs judge those of a minute. The line
of each model is the lowest that keeps precision on runs of programs left out, and false alarms on other generated
series, where `PRECISION` and `FALSE` say.
"""

from __future__ import annotations

import os
import random
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import memwarden.judge.leak_model as shipped
from benchmarks.leaks.synthetic import DECLARED, HEALTHY, LEAKY, LIVE, RSS, Series, make
from benchmarks.leaks.traces import FITTED, Recorded, recorded
from memwarden.judge.leak import judge
from memwarden.judge.leak_model import Model
from memwarden.judge.signs import signs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from memwarden.judge.leak_model import Asked, Rule
    from memwarden.judge.signs import Columns

# Of 60 to 150 rules F1 on programs left out differs by less than 0.005.
RULES, RATE = 100, 0.2
# A question is asked at one of so many quantiles, must leave so many rows on either side, and its answers are drawn
# towards zero as by so much weight of rows without a leak's or a healthy one's mark.
LINES, LEAST_ROWS, SHRINK = 16, 30, 5.0
FOLDS = 10
# Generated series, per pattern, to fit; and others to set the line.
PER_PATTERN, SEED = {"resident": 400, "blocks": 200, "live": 200}, 20
TO_SET_LINE, SEED_OF_LINE = 100, 21
BLOCKS = (*RSS, "work_done", "python_blocks")
VIEWS_OF_GENERATED = {"resident": (RSS, (*RSS, "work_done")), "blocks": (BLOCKS,), "live": (LIVE, DECLARED)}
# Of the accused runs of programs left out the share that must leak, and of healthy generated series the share that may
# be accused. With RSS alone 0.975 would leave two thirds of the weak leaks unseen.
PRECISION = {"resident": 0.945, "blocks": 0.98, "live": 0.975}
FALSE = {"resident": 0.026, "blocks": 0.02, "live": 0.012}
# Not a figure of a shape.
UNASKED = frozenset(("lasted_s",))


class Made(NamedTuple):
    """A generated series in the place of a recorded one."""

    program: str
    leak: bool
    series: Series

    def columns(self, names: tuple[str, ...]) -> Columns:
        """Only these columns of it."""
        return self.series.only(*(name for name in names if name in self.series.columns))


@cache
def generated(per_pattern: int, seed: int) -> tuple[Made, ...]:
    """Some generated series."""
    rng = random.Random(seed)
    kinds = [(p, False) for p in HEALTHY] + [(p, True) for p in LEAKY]
    return tuple(Made(p.__name__, leak, make(p, leak=leak, rng=rng)) for p, leak in kinds for _ in range(per_pattern))


@cache
def beginnings() -> tuple[Made, ...]:
    """Generated series as they look to a watch before their end, where their leak has begun."""
    rng, found = random.Random(SEED), []
    for made in generated(PER_PATTERN["live"], SEED):
        series = made.series
        last = rng.randint(40, len(series.columns))
        if not made.leak or series.onset < 0.6 * last / len(series.columns):
            found.append(made._replace(series=series._replace(columns=series.columns.between(0, last))))
    return tuple(found)


@cache
def _signs(run: Recorded | Made, names: tuple[str, ...]) -> Mapping[str, float]:
    return signs(run.columns(names))


def _rows(runs: Sequence[Recorded | Made], kind: str, views: Sequence[tuple[str, ...]]) -> list[Any]:
    found = [(run.leak, _signs(run, names)) for run in runs for names in views]
    return [each for each in found if f"{kind}_growth" in each[1]]


class Table:
    """The signs of many recordings as a matrix, with the truth and the weight of each row."""

    def __init__(self, runs: Sequence[Recorded], kind: str) -> None:
        rows = _rows(runs, kind, FITTED[kind])
        added = _rows(generated(PER_PATTERN[kind], SEED), kind, VIEWS_OF_GENERATED[kind])
        if kind == "live":
            added += _rows(beginnings(), kind, (DECLARED,))
        names = sorted({name for _, found in (*rows, *added) for name in found} - UNASKED)
        x = np.array([[found.get(name, -np.inf) for name in names] for _, found in (*rows, *added)])
        x = np.where(np.isnan(x), -np.inf, x)  # an unknown sign is above no line
        keep = [len(np.unique(column)) > 2 for column in x.T]
        self.names = [name for name, kept in zip(names, keep, strict=True) if kept]
        self.x = x[:, keep]
        self.leak = np.array([leak for leak, _ in (*rows, *added)])
        weight = np.concatenate([np.ones(len(rows)), np.full(len(added), len(rows) / len(added))])
        self.weight = weight / weight.mean()


class Boosting:
    """Rules added one by one, each the best next step of the logistic loss."""

    def __init__(self, table: Table) -> None:
        self.table = table
        quantiles = np.linspace(0, 1, LINES + 1)[1:-1]
        self.lines = [_rounded(np.quantile(c, quantiles, method="lower")) for c in table.x.T]
        places = np.stack([np.searchsorted(lines, c) for lines, c in zip(self.lines, table.x.T, strict=True)], 1)
        self.places = places
        self.flat = places + np.arange(places.shape[1]) * LINES

    def rules(self) -> tuple[float, list[Rule]]:
        """The bias and the rules."""
        leak, weight = self.table.leak, self.table.weight
        bias = float(np.log((weight * leak).sum() / (weight * ~leak).sum()))
        total, found = np.full(len(leak), bias), []
        for _ in range(RULES):
            chance = 1 / (1 + np.exp(-total))
            self.pull, self.bulk = (chance - leak) * weight, chance * (1 - chance) * weight
            rows = np.arange(len(leak))
            best = self._best(rows)
            if best is None:
                break
            sign, line = best
            above = self.places[:, sign] > line
            no, yes = self._second(rows[~above], sign), self._second(rows[above], sign)
            found.append((self.table.names[sign], float(self.lines[sign][line]), no[0], yes[0]))
            total[~above] += no[1]
            total[above] += yes[1]
        return bias, found

    def _best(self, rows: Any) -> tuple[int, int] | None:
        """The question that helps most: its sign and line by number."""
        pull, bulk, count = self._sums(rows)
        before = pull[:, -1:] ** 2 / (bulk[:, -1:] + SHRINK)
        rest = (pull[:, -1:] - pull) ** 2 / (bulk[:, -1:] - bulk + SHRINK)
        gain = pull**2 / (bulk + SHRINK) + rest - before
        gain[(count < LEAST_ROWS) | (count[:, -1:] - count < LEAST_ROWS)] = 0
        sign, line = np.unravel_index(gain.argmax(), gain.shape)
        return (int(sign), int(line)) if gain[sign, line] > 1e-6 else None

    def _sums(self, rows: Any) -> tuple[Any, Any, Any]:
        shape = (self.places.shape[1], LINES)
        flat = self.flat[rows].ravel()
        weights = (np.repeat(self.pull[rows], shape[0]), np.repeat(self.bulk[rows], shape[0]), None)
        pull, bulk, count = (
            np.bincount(flat, each, minlength=shape[0] * LINES).reshape(shape).cumsum(1) for each in weights
        )
        return pull, bulk, count

    def _second(self, rows: Any, first: int) -> tuple[Asked, Any]:
        """The second question on one side of the first, and what it adds to each row."""
        sign, line = self._best(rows) or (first, 0)
        above = self.places[rows, sign] > line
        low, high = (self._worth(rows[side]) for side in (~above, above))
        return (self.table.names[sign], float(self.lines[sign][line]), low, high), np.where(above, high, low)

    def _worth(self, rows: Any) -> float:
        return round(float(-RATE * self.pull[rows].sum() / (self.bulk[rows].sum() + SHRINK)), 3)


def _rounded(values: Any) -> Any:
    """To four digits, as they are written."""
    finite = values[np.isfinite(values)]
    return np.unique([float(f"{value:.4g}") for value in finite]) if len(finite) else np.array([0.0])


def fit(table: Table) -> Model:
    """The model of a table, whose score is the fitted chance of a leak."""
    bias, rules = Boosting(table).rules()
    return Model(round(bias, 2), tuple(rules))


def moved(model: Model, line: float) -> Model:
    """The same model with its score at 0.5 where it was `line`."""
    return Model(round(model.bias - float(np.log(line / (1 - line))), 2), model.rules)


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
        model = fit(Table(to_fit, kind))
        for run in to_judge:
            score.append(_score(run, FITTED[kind][0], model))
            leak.append(run.leak)
    return np.array(score), np.array(leak)


@cache
def _barred(run: Recorded | Made, names: tuple[str, ...]) -> bool:
    look = judge(run.columns(names))
    return look.score is None or bool(look.barred)


def _score(run: Recorded | Made, names: tuple[str, ...], model: Model) -> float:
    return 0.0 if _barred(run, names) else model.score(_signs(run, names))


def line_for(score: Any, leak: Any, precision: float) -> float:
    """The lowest line at which so many of the accused leak."""
    best = 0.95
    for line in sorted(set(score[score > 0]), reverse=True):
        accused = score >= line
        if accused.sum() > 20 and leak[accused].mean() >= precision:
            best = float(line)
    return best


def line_of_generated(model: Model, kind: str) -> float:
    """The line above which so few of the healthy generated series lie."""
    healthy = [made for made in generated(TO_SET_LINE, SEED_OF_LINE) if not made.leak]
    view = VIEWS_OF_GENERATED[kind][0]
    return float(np.quantile([_score(made, view, model) for made in healthy], 1 - FALSE[kind]))


def fitted(runs: Sequence[Recorded], kind: str, line: float) -> Model:
    """The model of one kind, with its line."""
    return moved(fit(Table(runs, kind)), line)


@cache
def _line(runs: tuple[Recorded, ...], kind: str) -> float:
    on_runs = line_for(*left_out(runs, kind), PRECISION[kind])
    on_generated = line_of_generated(fit(Table(runs, kind)), kind)
    print(f"{kind}: line {on_runs:.3f} by the runs, {on_generated:.3f} by the generated", file=sys.stderr)
    return min(max(on_runs, on_generated, 0.05), 0.98)


def lines(runs: Sequence[Recorded]) -> Mapping[str, float]:
    """The line of each kind."""
    return {kind: _line(tuple(runs), kind) for kind in FITTED}


HEAD = '''"""How much the signs look like those of programs that leaked: the numbers, and what each says.

Written by `python -m benchmarks.leaks.fit` from {runs} recorded runs of {programs} programs and {made} generated
series; do not edit. A score is 1 / (1 + exp(-(bias + sum of what the rules say))), 0.5 is the line. There is a model
for each set of columns: RSS alone, with Python's blocks, and with malloc's too.
"""
'''


def _in_code(rule: Rule) -> str:
    sign, line, no, yes = rule
    return f'            ("{sign}", {line:g}, {_asked(no)},\n             {_asked(yes)}),\n'


def _asked(asked: Asked) -> str:
    return f'("{asked[0]}", {asked[1]:g}, {asked[2]:g}, {asked[3]:g})'


def main() -> None:
    """Fit all three, and write them into the module that ships."""
    runs = list(recorded())
    path = shipped.__file__
    with open(path) as file:
        code = "from __future__" + file.read().split("# --- numbers ---")[0].split("from __future__", 1)[1]
    made = len(generated(max(PER_PATTERN.values()), SEED))
    head = HEAD.format(runs=len(runs), programs=len({run.program for run in runs}), made=made)
    text = [head, "\n", code, "# --- numbers ---\n# fmt: off\nMODELS = {\n"]
    for kind, line in lines(runs).items():
        model = fitted(runs, kind, line)
        print(f"{kind}: {len(model.rules)} rules, line {line:.2f}", file=sys.stderr)
        text.append(f'    "{kind}": Model(\n        {model.bias},\n        (\n')
        text += [_in_code(rule) for rule in model.rules]
        text.append("        ),\n    ),\n")
    text.append("}\n# fmt: on\n")
    with open(path + ".new", "w") as file:
        file.write("".join(text))
    os.replace(path + ".new", path)


if __name__ == "__main__":
    main()
