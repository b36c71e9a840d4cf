"""AvisC: Woo et al., Findings of ACL 2025, arXiv 2405.17820; sangminwoo/AvisC `avisc_utils/avisc_sample.py` @40b3fc0.

Attention is `[layer, head, image key]` of the last query of the prefill; the second reader sees only its blind tokens,
the embeddings of the others being zero.
"""

import numpy as np

from references.softmax import largest


def layers(attention: np.ndarray, share: float = 0.5) -> np.ndarray:
    """The layers that look at the picture most, as few as hold `share` of all layers' attention to it."""
    looks = attention.mean(1).sum(-1)
    order = largest(looks, len(looks))
    held = np.cumsum(looks[order] / looks.sum())
    return order[: int((held < share).sum()) + 1]


def blind(attention: np.ndarray, share: float = 0.5, deviations: float = 1.0) -> np.ndarray:
    """Which image tokens `[image key]` the second reader still sees: those from the mean plus `deviations` on."""
    looks = attention[layers(attention, share)].mean((0, 1))
    return looks >= looks.mean() + deviations * looks.std(ddof=1)


def contrast(theta: np.ndarray, phi: np.ndarray, alpha: float = 2.5, beta: float = 0.1) -> np.ndarray:
    """Logits `[token]` to draw from: VCD's formula."""
    mixed = (1 + alpha) * theta - alpha * phi
    return np.where(theta < np.log(beta) + theta.max(), -np.inf, mixed)
