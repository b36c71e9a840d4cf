"""How well a score separates two groups, with a confounder held fixed if asked, and how alike two rankings are."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata


def auroc(scores: ArrayLike, positive: ArrayLike) -> float | None:
    """P(score of a positive > score of a negative), ties counted half, in 0..1; None if a group is empty."""
    wins, pairs = _wins(np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool))
    return wins / pairs if pairs else None


def stratified_auroc(scores: ArrayLike, positive: ArrayLike, strata: ArrayLike) -> float | None:
    """The same over pairs within a stratum only: what the score tells beyond the confounder.

    Strata are weighted by their number of pairs; None if no stratum has both groups.
    """
    s, p, g = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool), np.asarray(strata)
    results = [_wins(s[g == stratum], p[g == stratum]) for stratum in np.unique(g)]
    pairs = sum(n for _, n in results)
    return sum(w for w, _ in results) / pairs if pairs else None


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Rank correlation; None where one of them does not vary."""
    x, y = np.ravel(np.asarray(a, dtype=float)), np.ravel(np.asarray(b, dtype=float))
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else None


def _wins(scores: np.ndarray, positive: np.ndarray) -> tuple[float, int]:
    """The Mann-Whitney U statistic of the positives, and the number of pairs."""
    n = int(positive.sum())
    if not len(scores):
        return 0.0, 0
    return float(rankdata(scores)[positive].sum() - n * (n + 1) / 2), n * (len(scores) - n)
