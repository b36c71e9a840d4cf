"""SPIN: Sarkar et al., 2025, arXiv 2505.16411; YUECHE77/SPIN `attentionSPIN.py` @70ff131.

The released code ranks heads by the last query's scores before the softmax, summed over image keys, and scales outputs
at the last position only; the paper's text speaks of attention, for each text query.
"""

import numpy as np

from references.softmax import softmax


def factors(looks: np.ndarray, kept: float, factor: float) -> np.ndarray:
    """What each head's output is multiplied by: 1 for the `int(kept heads)` that look most `[head]`."""
    order = np.argsort(-looks, kind="stable")
    result = np.full(len(looks), factor, dtype=np.float64)
    result[order[: int(kept * len(looks))]] = 1.0
    return result


def released(scores: np.ndarray, image: np.ndarray, kept: float, factor: float) -> np.ndarray:
    """Factors `[head, query]` from scaled, masked scores `[head, query, key]` and image keys `[key]`."""
    result = np.ones(scores.shape[:2])
    result[:, -1] = factors(scores[:, -1][:, image].sum(-1), kept, factor)
    return result


def paper(scores: np.ndarray, image: np.ndarray, text: np.ndarray, kept: float, factor: float) -> np.ndarray:
    """Factors `[head, query]` by attention to the image, for every query that is `text` `[query]`."""
    attention = softmax(scores)[:, :, image].sum(-1)
    result = np.ones(scores.shape[:2])
    for query in np.flatnonzero(text):
        result[:, query] = factors(attention[:, query], kept, factor)
    return result
