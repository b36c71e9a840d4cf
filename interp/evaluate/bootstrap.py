"""Bootstrap intervals over images, and paired comparisons on the same images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest

Statistic = Callable[[Float[np.ndarray, "*resample column"], int], Mapping[str, np.ndarray]]
"""Rates from the column sums of n images."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % percentile interval."""

    value: float
    low: float
    high: float


def _resampled(
    table: Float[np.ndarray, "image column"], resamples: int, seed: int
) -> Float[np.ndarray, "resample column"]:
    """Column sums of resampled images; the same seed draws the same images, so results are paired."""
    if seed < 0:
        raise ValueError(f"seed is a whole number of at least 0, got {seed}")
    n = len(table)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return weights @ table


def intervals(
    table: Float[np.ndarray, "image column"], statistic: Statistic, resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Each rate over all images, with its bootstrap interval over images."""
    drawn = statistic(_resampled(table, resamples, seed), len(table))
    return {name: _interval(float(value), drawn[name]) for name, value in statistic(table.sum(0), len(table)).items()}


def differences(
    table: Float[np.ndarray, "image column"],
    baseline: Float[np.ndarray, "baseline_image column"],
    statistic: Statistic,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Each rate minus the baseline's on the same images, with its paired bootstrap interval."""
    if table.shape != baseline.shape:
        raise ValueError(f"a paired comparison needs the same images in both, got {len(table)} and {len(baseline)}")
    n = len(table)
    ours, theirs = statistic(_resampled(table, resamples, seed), n), statistic(_resampled(baseline, resamples, seed), n)
    now, then = statistic(table.sum(0), n), statistic(baseline.sum(0), n)
    return {name: _interval(float(now[name] - then[name]), ours[name] - theirs[name]) for name in now}


@dataclass(frozen=True)
class McNemar:
    """A paired test of two yes/no outcomes on the same images: how many changed either way, and the exact p-value."""

    better: int
    worse: int
    p: float


def mcnemar(ours: Bool[np.ndarray, " image"], theirs: Bool[np.ndarray, " theirs"]) -> McNemar:
    """McNemar's exact test; True is bad (the caption hallucinates), `better` counts images bad in `theirs` only."""
    if len(ours) != len(theirs):
        raise ValueError(f"a paired comparison needs the same images in both, got {len(ours)} and {len(theirs)}")
    better, worse = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    changed = better + worse
    return McNemar(better, worse, float(binomtest(better, changed).pvalue) if changed else 1.0)


def clustered_mcnemar(
    ours: Bool[np.ndarray, " question"],
    theirs: Bool[np.ndarray, " theirs"],
    image: Int[np.ndarray, " question"],
) -> McNemar:
    """The same where several questions are about one image, whose answers hang together: images are exchanged whole.

    Exact: of all ways to exchange the two outcomes image by image, the share in which the sum of changes is at least as
    far from 0.  With one question an image it is McNemar's exact test.
    """
    found = mcnemar(ours, theirs)
    changes = np.bincount(image, theirs.astype(float) - ours.astype(float)).round().astype(int)
    total, chance = int(abs(changes.sum())), np.ones(1)
    for size in np.abs(changes[changes != 0]):
        chance = (np.pad(chance, (0, 2 * size)) + np.pad(chance, (2 * size, 0))) / 2
    middle = len(chance) // 2
    p = float(chance[np.abs(np.arange(len(chance)) - middle) >= total].sum())
    return McNemar(found.better, found.worse, min(p, 1.0))


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))
