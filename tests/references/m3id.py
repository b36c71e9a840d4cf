"""M3ID: Favero et al., CVPR 2024, arXiv 2403.14003; no official code is known.

`avisc` is what later papers call M3ID: sangminwoo/AvisC `avisc_utils/avisc_sample.py` @40b3fc0.  `step` counts tokens
from 1.
"""

import numpy as np

from references.softmax import log_softmax


def weight(step: int, forgetting: float) -> float:
    """`(1 - g) / g` with `g = exp(-forgetting step)`."""
    left = np.exp(-forgetting * step)
    return (1 - left) / left


def paper(theta: np.ndarray, phi: np.ndarray, step: int, forgetting: float, confidence: float) -> np.ndarray:
    """Scores `[token]`: the contrast where the likeliest token is less likely than `confidence`."""
    with_image, without = log_softmax(theta), log_softmax(phi)
    if with_image.max() >= np.log(confidence):
        return with_image
    return with_image + weight(step, forgetting) * (with_image - without)


def avisc(theta: np.ndarray, phi: np.ndarray, step: int, forgetting: float = 0.02, beta: float = 0.1) -> np.ndarray:
    """Scores `[token]`: the contrast always, among plausible tokens."""
    with_image, without = log_softmax(theta), log_softmax(phi)
    mixed = with_image + weight(step, forgetting) * (with_image - without)
    return np.where(theta < np.log(beta) + theta.max(), -np.inf, mixed)
