"""A linear detector: ridge-penalised logistic regression, cross-validated by group.

Features come in blocks.  Blocks of more columns than `COMPONENTS` are reduced to that many principal components of the
training part.  The block called first (the baselines) is penalised with 1, the rest with a strength chosen among
`STRENGTHS` by the log-loss of an inner cross-validation, by group again: no picture is on both sides, at either level.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

COMPONENTS = 200
STRENGTHS = (1.0, 10.0, 100.0, 1000.0, 10000.0)
Matrix = Float[np.ndarray, "_ _"]
"""Items by columns."""


def ridge_logistic(
    x: Matrix, y: Bool[np.ndarray, " item"], penalty: Float[np.ndarray, " column"], steps: int = 30
) -> tuple[Float[np.ndarray, " column"], float]:
    """Weights and intercept that minimise the log-loss (summed) plus half of `penalty` times squared weights.

    Newton's method, halving steps that do not improve; the intercept is free.
    """
    design = np.column_stack([x, np.ones(len(x))])
    cost = np.append(penalty, 1e-8)
    weights = np.zeros(design.shape[1])

    def loss(w: np.ndarray) -> float:
        scores = design @ w
        return float(np.logaddexp(0, np.where(y, -scores, scores)).sum() + 0.5 * (cost * w * w).sum())

    now = loss(weights)
    for _ in range(steps):
        p = sigmoid(design @ weights)
        gradient = design.T @ (p - y) + cost * weights
        curvature = (design * (p * (1 - p))[:, None]).T @ design + np.diag(cost)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while loss(weights - size * step) > now and size > 1e-6:
            size /= 2
        weights = weights - size * step
        before, now = now, loss(weights)
        if before - now < 1e-9 * max(1.0, now):
            break
    return weights[:-1], float(weights[-1])


def sigmoid(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The logistic function, without overflow."""
    return np.exp(-np.logaddexp(0, -x))


class _Scaling:
    """Standardised columns, or their principal components, as the training part has them."""

    def __init__(self, x: Matrix) -> None:
        self.mean, self.scale = x.mean(0), x.std(0)
        self.scale[self.scale == 0] = 1.0
        self.axes = None
        if x.shape[1] > COMPONENTS:
            self.axes = _principal_axes((x - self.mean) / self.scale)

    def __call__(self, x: Matrix) -> Matrix:
        z = (x - self.mean) / self.scale
        return z if self.axes is None else z @ self.axes


def _principal_axes(z: Matrix) -> Matrix:
    """The first `COMPONENTS` right singular vectors, by way of the smaller of the two products of `z` with itself."""
    few = len(z) <= z.shape[1]
    values, vectors = np.linalg.eigh(z @ z.T if few else z.T @ z)
    kept = np.flatnonzero(values > 1e-10 * values[-1])[-COMPONENTS:]
    return z.T @ vectors[:, kept] / np.sqrt(values[kept]) if few else vectors[:, kept]


def _fold_of(groups: Int[np.ndarray, " item"], n: int, seed: int) -> Int[np.ndarray, " item"]:
    """A fold for each item, groups whole, drawn by seed."""
    names, place = np.unique(groups, return_inverse=True)
    if len(names) < n:
        raise ValueError(f"cross-validation by picture in {n} folds needs as many pictures, got {len(names)}")
    return (np.random.default_rng(seed).permutation(len(names)) % n)[place]


def _parts(blocks: Sequence[Matrix], train: np.ndarray, test: np.ndarray) -> tuple[Matrix, Matrix, np.ndarray]:
    """Training and test features side by side, and the block of each column."""
    scalings = [_Scaling(block[train]) for block in blocks]
    left, right = ([s(b[rows]) for s, b in zip(scalings, blocks, strict=True)] for rows in (train, test))
    return np.hstack(left), np.hstack(right), np.repeat(range(len(blocks)), [b.shape[1] for b in left])


def _penalty(block: np.ndarray, strength: float, has_baseline: bool) -> np.ndarray:
    return np.where((block == 0) & has_baseline, 1.0, strength)


def cross_validated(
    blocks: Sequence[Matrix],
    y: Bool[np.ndarray, " item"],
    groups: Int[np.ndarray, " item"],
    *,
    has_baseline: bool = False,
    folds: int = 5,
    inner: int = 3,
    seed: int = 0,
) -> Float[np.ndarray, " item"]:
    """The score (log-odds) that each item gets from a detector trained on other groups.

    `has_baseline` says that the first block is penalised with 1 whatever is chosen for the others.
    Raises ValueError where there are fewer groups than folds, or one class only.
    """
    if not 0 < y.sum() < len(y):
        raise ValueError(f"a detector needs hallucinated and correct words, got {int(y.sum())} of {len(y)}")
    scores, fold = np.zeros(len(y)), _fold_of(groups, folds, seed)
    for held in range(folds):
        train, test = np.flatnonzero(fold != held), np.flatnonzero(fold == held)
        strength = STRENGTHS[0]
        if not (has_baseline and len(blocks) == 1):
            strength = _chosen_strength([b[train] for b in blocks], y[train], groups[train], has_baseline, inner, seed)
        x, x_test, block = _parts(blocks, train, test)
        weights, intercept = ridge_logistic(x, y[train], _penalty(block, strength, has_baseline))
        scores[test] = x_test @ weights + intercept
    return scores


def _chosen_strength(
    blocks: Sequence[Matrix], y: np.ndarray, groups: np.ndarray, has_baseline: bool, inner: int, seed: int
) -> float:
    losses = np.zeros(len(STRENGTHS))
    fold = _fold_of(groups, inner, seed + 1)
    for held in range(inner):
        train, test = np.flatnonzero(fold != held), np.flatnonzero(fold == held)
        x, x_test, block = _parts(blocks, train, test)
        for i, strength in enumerate(STRENGTHS):
            weights, intercept = ridge_logistic(x, y[train], _penalty(block, strength, has_baseline))
            scores = x_test @ weights + intercept
            losses[i] += np.logaddexp(0, np.where(y[test], -scores, scores)).sum()
    return STRENGTHS[int(losses.argmin())]
