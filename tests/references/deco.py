"""DeCo: Wang et al., ICLR 2025, arXiv 2410.11779; zjunlp/Deco `transformers/generation/utils.py` @a3ccc15.

Early logits are the head's reading of a hidden state after the final norm.
"""

import numpy as np

from references.softmax import largest, softmax


def candidates(theta: np.ndarray, top_p: float = 0.9, top_k: int = 20) -> np.ndarray:
    """The likeliest tokens, at most `top_k`, and as few as hold `top_p`, if they do."""
    order = largest(theta, top_k)
    held = np.cumsum(softmax(theta)[order])
    return order[: int((held < top_p).sum()) + 1]


def corrected(
    theta: np.ndarray, early: np.ndarray, alpha: float = 0.6, top_p: float = 0.9, top_k: int = 20
) -> np.ndarray:
    """Logits `[token]`: to the last layer's are added those of the early one `[layer, token]` surest of a candidate.

    They are weighted by that probability times `alpha`; what is no candidate cannot be drawn.
    """
    tokens = candidates(theta, top_p, top_k)
    sure = softmax(early)[:, tokens]
    layer = int(sure.max(-1).argmax())
    scores = np.full(len(theta), -np.inf)
    scores[tokens] = theta[tokens] + alpha * sure.max() * early[layer, tokens]
    return scores
