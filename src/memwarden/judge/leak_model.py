"""How much the signs look like those of programs that leaked: the numbers, and what each says.

Written by `python -m benchmarks.leaks.fit` from 1454 recorded runs of 110 programs; do not edit. A score is
1 / (1 + exp(-(bias + sum of weight * tanh((sign - centre) / width)))), 0.5 is the line. A sign that is not known
counts nothing. There is a model for each set of columns: RSS alone, with Python's blocks, and with malloc's too.
"""

from __future__ import annotations

from math import exp, isnan, tanh

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# What each figure of a series says where it speaks for a leak, and where it speaks against one.
SAYS = {
    "growth": ("it grew", "it grew little"),
    "late": ("it grew in the later half", "it grew little in the later half"),
    "last": ("it grew in the last third", "it grew little in the last third"),
    "over_noise": ("growth is far above its noise", "growth is near its noise"),
    "late_over_noise": ("late growth is far above its noise", "late growth is near its noise"),
    "tau": ("its floors rise in order", "its floors are in no order"),
    "late_tau": ("its later floors rise in order", "its later floors are in no order"),
    "records": ("most floors are new records", "few floors are new records"),
    "late_records": ("most later floors are new records", "few later floors are new records"),
    "straight": ("a line fits", "no line fits"),
    "bend": ("it does not level off", "it levels off"),
    "saturation": ("it does not saturate", "it saturates"),
    "step": ("it is no step", "it is a step"),
    "stairs": ("it is no staircase", "it is a staircase of three levels"),
    "spread": ("growth is spread out", "growth is in two jumps"),
    "fall": ("it never fell far", "it fell again"),
    "clearance": ("its last floors are above its first", "its last floors are not above its first"),
    "kept_late": ("nothing was given back late", "some was given back late"),
    "noise": ("it is quiet", "it is noisy"),
    "coarse_tau": ("its coarse floors rise in order", "its coarse floors are in no order"),
    "coarse_growth": ("its coarse floors grew", "its coarse floors did not grow"),
    "coarse_late": ("its late coarse floors grew", "its late coarse floors did not grow"),
    "coarse_over_noise": ("coarse growth is far above its noise", "coarse growth is near its noise"),
    "low_tau": ("its lower quartiles rise in order", "its lower quartiles are in no order"),
    "low_sure": ("its lower quartiles surely grow", "its lower quartiles may not grow"),
    "mean_sure": ("its mean surely grows", "its mean may not grow"),
    "with_work": ("it follows the work done", "it does not follow the work done"),
    "traffic": ("traffic did not rise", "traffic rose"),
    "partial_growth": ("it grew at equal traffic", "it did not grow at equal traffic"),
    "partial_sure": ("it surely grew at equal traffic", "it may not have grown at equal traffic"),
    "explained": ("growth is in use", "growth is not in use"),
    "collected": ("collections found little", "collections found much"),
}
# The figures that speak against a leak the larger they are; all others speak for one.
AGAINST = frozenset(("bend", "saturation", "step", "stairs", "fall", "noise", "traffic", "collected"))
OF = {"resident": "resident memory", "blocks": "Python's blocks", "live": "what is in use"}
LINE = 0.5


def figure_of(sign: str) -> str:
    """The figure without the name of its series."""
    series, _, figure = sign.partition("_")
    return figure if series in OF else sign


class Term:
    """One sign: tanh((value - centre) / width) times the weight, so that none can shout down the others."""

    __slots__ = ("centre", "sign", "weight", "width")

    def __init__(self, sign: str, centre: float, width: float, weight: float) -> None:
        self.sign, self.centre, self.width, self.weight = sign, centre, width, weight

    def worth(self, found: Mapping[str, float]) -> float:
        """What this sign adds to the score's exponent."""
        value = found.get(self.sign)
        return 0.0 if value is None or isnan(value) else self.weight * tanh((value - self.centre) / self.width)

    def words(self, worth: float) -> str:
        """What it says, in words."""
        series, _, figure = self.sign.partition("_")
        said = SAYS[figure if series in OF else self.sign][worth < 0]
        return f"{OF[series]}: {said}" if series in OF else said


class Model:
    """A bias and its terms."""

    __slots__ = ("bias", "terms")

    def __init__(self, bias: float, terms: tuple[Term, ...]) -> None:
        self.bias, self.terms = bias, terms

    def score(self, found: Mapping[str, float]) -> float:
        """How much it looks like a leak, 0-1; `LINE` is the line."""
        total = self.bias + sum(term.worth(found) for term in self.terms)
        return 1 / (1 + exp(-min(max(total, -30.0), 30.0)))

    def reasons(self, found: Mapping[str, float], most: int = 3) -> list[str]:
        """The signs that weighed most towards the answer, in words."""
        accused = self.score(found) >= LINE
        worth = [(term.worth(found), term) for term in self.terms]
        telling = sorted((each for each in worth if (each[0] > 0) == accused), key=lambda each: -abs(each[0]))
        return [term.words(value) for value, term in telling[:most]]


def kind_of(found: Mapping[str, float]) -> str:
    """Which model the known columns call for."""
    return next(kind for kind in ("live", "blocks", "resident") if f"{kind}_growth" in found)


# --- numbers ---
MODELS = {
    "resident": Model(
        -0.7,
        (
            Term("resident_records", 0.435, 0.306, 1.19),
            Term("resident_late_records", 0.364, 0.384, 0.72),
            Term("resident_last", 0.0871, 0.2, 0.63),
            Term("resident_coarse_growth", 0.137, 0.145, 0.6),
            Term("resident_growth", 0.117, 0.146, 0.59),
            Term("resident_partial_sure", 8.76, 15.4, 0.45),
            Term("resident_coarse_late", 0.104, 0.193, 0.36),
            Term("resident_low_tau", 0.844, 0.174, 0.31),
            Term("resident_mean_sure", 7.49, 11.1, 0.31),
            Term("resident_late_tau", 0.758, 0.31, 0.25),
            Term("resident_coarse_over_noise", 10.4, 16.6, 0.25),
            Term("resident_with_work", 0, 0.0321, 0.15),
            Term("resident_over_noise", 12.4, 16.2, 0.1),
            Term("resident_step", -0.284, 1.7, -0.1),
            Term("resident_partial_growth", 0.126, 0.162, 0.08),
            Term("resident_late_over_noise", 9.11, 19.3, 0.06),
        ),
    ),
    "blocks": Model(
        -0.78,
        (
            Term("blocks_coarse_over_noise", 2.7, 33.1, 2.52),
            Term("resident_coarse_growth", 0.137, 0.145, 0.98),
            Term("blocks_bend", 0.00687, 0.22, -0.93),
            Term("resident_records", 0.435, 0.306, 0.91),
            Term("blocks_saturation", -0.0164, 1.14, -0.84),
            Term("blocks_coarse_late", 0.0193, 0.237, 0.55),
            Term("blocks_stairs", 0.26, 1.47, -0.51),
            Term("resident_last", 0.0871, 0.2, 0.48),
            Term("blocks_coarse_tau", 0.411, 0.414, 0.48),
            Term("resident_growth", 0.117, 0.146, 0.44),
            Term("resident_low_sure", 7.42, 11.2, 0.39),
            Term("resident_partial_sure", 8.76, 15.4, 0.37),
            Term("resident_mean_sure", 7.49, 11.1, 0.34),
            Term("blocks_last", 0.0452, 0.256, 0.3),
            Term("resident_late_records", 0.364, 0.384, 0.28),
            Term("collected", 0, 0.002, -0.26),
            Term("resident_step", -0.284, 1.7, -0.24),
            Term("resident_coarse_over_noise", 10.4, 16.6, 0.22),
            Term("resident_late_tau", 0.758, 0.31, 0.17),
            Term("resident_coarse_late", 0.104, 0.193, 0.17),
            Term("traffic", 0.018, 0.185, -0.17),
            Term("resident_over_noise", 12.4, 16.2, 0.15),
            Term("blocks_noise", 0.0133, 0.0113, -0.14),
            Term("blocks_with_work", 0, 0.00687, 0.13),
            Term("resident_with_work", 0, 0.0321, 0.07),
            Term("resident_low_tau", 0.844, 0.174, 0.07),
        ),
    ),
    "live": Model(
        0.77,
        (
            Term("live_coarse_tau", 0.714, 0.477, 1.66),
            Term("blocks_coarse_over_noise", 3.88, 32.9, 1.59),
            Term("blocks_bend", 0.00708, 0.318, -1.23),
            Term("resident_coarse_growth", 0.131, 0.138, 0.56),
            Term("resident_records", 0.391, 0.306, 0.55),
            Term("live_coarse_over_noise", 7.63, 28.4, 0.54),
            Term("live_bend", 0, 0.297, -0.53),
            Term("live_saturation", -0.0628, 1.43, -0.52),
            Term("resident_late_tau", 0.712, 0.331, 0.51),
            Term("blocks_saturation", -0.0146, 1.36, -0.44),
            Term("live_last", 0.0921, 0.235, 0.36),
            Term("live_tau", 0.556, 0.374, 0.33),
            Term("traffic", 0.00799, 0.143, -0.33),
            Term("explained", 0.47, 0.376, 0.29),
            Term("live_partial_growth", 0.073, 0.198, 0.25),
            Term("resident_partial_sure", 7.66, 10.5, 0.24),
            Term("resident_last", 0.0823, 0.189, 0.23),
            Term("resident_step", -0.181, 1.61, -0.23),
            Term("resident_coarse_late", 0.101, 0.179, 0.21),
            Term("blocks_last", 0.0448, 0.283, 0.21),
            Term("blocks_coarse_tau", 0.5, 0.352, 0.2),
            Term("resident_partial_growth", 0.123, 0.148, 0.17),
            Term("resident_low_tau", 0.808, 0.218, 0.16),
            Term("resident_coarse_over_noise", 10.2, 15.8, 0.1),
            Term("resident_with_work", 0, 0.0197, 0.1),
            Term("live_kept_late", 0.496, 0.349, 0.1),
            Term("resident_stairs", 0.253, 1.71, -0.07),
            Term("live_stairs", 0.177, 1.79, -0.06),
            Term("blocks_with_work", 0, 0.007, 0.06),
        ),
    ),
}
