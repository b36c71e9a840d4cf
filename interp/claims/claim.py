"""What a claim is: whose, what is measured, and the criterion, written before anything runs.

A criterion is a pure function of the measured numbers.  It says `holds`, `does not hold` or `inconclusive`, and why.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from interp.evaluate.bootstrap import Interval

Outcome = Literal["holds", "does not hold", "inconclusive", "not measured"]
Measured = Mapping[str, Interval]


@dataclass(frozen=True)
class Verdict:
    """What the criterion says of the measured numbers, and why."""

    outcome: Outcome
    why: str


@dataclass(frozen=True)
class Claim:
    """One claim: `says` in the paper's sense, `where` it stands, what is measured here, and what decides it.

    `measure` gets the bench (`interp.claims.bench.Bench`); `judge` is the criterion that `criterion` puts into words.
    `paper` is the paper's own value, None where it gives none.  `pictures`: whether it takes a vision-language model.
    """

    name: str
    citation: str
    where: str
    says: str
    measures: str
    criterion: str
    measure: Callable[[Any], Measured]
    judge: Callable[[Measured], Verdict]
    paper: str | None = None
    pictures: bool = True


def shown(value: Interval) -> str:
    """A number with its interval, with as many digits as its size needs."""
    size = max(abs(value.value), abs(value.low), abs(value.high))
    form = ".1f" if size >= 10 or size == 0 else ".2f" if size >= 0.1 else ".4f"
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def above(name: str, bound: float) -> Callable[[Measured], Verdict]:
    """Holds if the whole interval is above a bound, does not hold if the whole of it is below."""

    def judge(measured: Measured) -> Verdict:
        value = measured[name]
        if math.isnan(value.value) or math.isnan(value.low):
            return Verdict("inconclusive", f"{name} is not defined here")
        if value.low > bound:
            return Verdict("holds", f"{name} {shown(value)} is above {bound:g}")
        if value.high <= bound:
            return Verdict("does not hold", f"{name} {shown(value)} is not above {bound:g}")
        return Verdict("inconclusive", f"{name} {shown(value)} lies on both sides of {bound:g}")

    return judge


def below(name: str, bound: float) -> Callable[[Measured], Verdict]:
    """Holds if the whole interval is below a bound, does not hold if the whole of it is above."""

    def judge(measured: Measured) -> Verdict:
        value = measured[name]
        if math.isnan(value.value) or math.isnan(value.low):
            return Verdict("inconclusive", f"{name} is not defined here")
        if value.high < bound:
            return Verdict("holds", f"{name} {shown(value)} is below {bound:g}")
        if value.low >= bound:
            return Verdict("does not hold", f"{name} {shown(value)} is not below {bound:g}")
        return Verdict("inconclusive", f"{name} {shown(value)} lies on both sides of {bound:g}")

    return judge


def all_of(*judges: Callable[[Measured], Verdict]) -> Callable[[Measured], Verdict]:
    """Holds if every part holds; does not hold if one does not; else inconclusive."""

    def judge(measured: Measured) -> Verdict:
        found = [part(measured) for part in judges]
        for outcome in ("does not hold", "inconclusive"):
            reasons = [v.why for v in found if v.outcome == outcome]
            if reasons:
                return Verdict(outcome, "; ".join(reasons))
        return Verdict("holds", "; ".join(v.why for v in found))

    return judge


def only_if(condition: Callable[[Measured], Verdict], judge: Callable[[Measured], Verdict], otherwise: str) -> Any:
    """The second criterion where the first one holds; inconclusive, with `otherwise` as the reason, where not."""

    def judged(measured: Measured) -> Verdict:
        asked = condition(measured)
        return judge(measured) if asked.outcome == "holds" else Verdict("inconclusive", f"{otherwise}: {asked.why}")

    return judged


def lower_at_no_loss(chair: str, recall: str) -> Callable[[Measured], Verdict]:
    """Holds if hallucination falls and recall does not; a fall of both is inconclusive, for less may be named."""

    def judge(measured: Measured) -> Verdict:
        fewer, less = below(chair, 0)(measured), measured[recall]
        if fewer.outcome == "holds" and less.high < 0:
            return Verdict("inconclusive", f"{fewer.why}, but {recall} falls too: {shown(less)}")
        return Verdict(fewer.outcome, f"{fewer.why}; {recall} {shown(less)}")

    return judge


def by_image(
    n_images: int, statistic: Callable[[np.ndarray], float | None], seed: int = 0, resamples: int = 500
) -> Interval:
    """A statistic of image numbers (with repeats) on all images, and its 95 % bootstrap interval over images.

    nan where the statistic is None; the interval is of the resamples in which it is not.
    """
    value = statistic(np.arange(n_images))
    if value is None or n_images < 2:
        return Interval(math.nan if value is None else float(value), math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(0, n_images, n_images)) for _ in range(resamples)]
    low, high = np.percentile([d for d in drawn if d is not None], [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def mean_over(values: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """The mean of one number an image (nan: does not count), with its bootstrap interval."""
    array = np.asarray(values, dtype=float)
    array = array[~np.isnan(array)]
    if not len(array):
        return Interval(math.nan, math.nan, math.nan)
    return by_image(len(array), lambda rows: float(array[rows].mean()), seed)


def share_of_trials(successes: int, trials: int) -> Interval:
    """A share in percent; the interval is exact (one-sided) where every trial, or none, succeeded, else Wilson's."""
    p = successes / trials
    if successes in (0, trials):
        end = 0.025 ** (1 / trials)
        return Interval(100 * p, 100 * end if successes else 0.0, 100.0 if successes else 100 * (1 - end))
    z = 1.959964
    middle = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    return Interval(100 * p, 100 * (middle - half), 100 * (middle + half))
