"""PAI: Liu et al., ECCV 2024, arXiv 2407.21771; LALBJ/PAI `attention.py` @f04eeb9, `CFG.py` @4a085d1.

With the contrast on, the released code leaves attention alone in the first forward pass, the prefill: its switch is
thrown by the logits processor, after that pass.
"""

import numpy as np

from references.softmax import log_softmax


def pushes(step: int, gamma: float | None) -> bool:
    """Whether the forward pass for token `step`, from 0, pushes attention; `gamma` None: no contrast at all."""
    return step > 0 or gamma is None


def pushed(scores: np.ndarray, image: np.ndarray, alpha: float) -> np.ndarray:
    """Scaled, masked scores `[head, query, key]`, those of the last query for image keys `[key]` raised."""
    new = np.array(scores, dtype=np.float64)
    last = new[:, -1]
    last[:, image] = last[:, image] + alpha * np.abs(last[:, image])
    return new


def contrast(theta: np.ndarray, phi: np.ndarray, gamma: float) -> np.ndarray:
    """Scores `[token]` from the logits with and without the picture; `gamma` 1: no floor either."""
    conditional, text = log_softmax(theta), log_softmax(phi)
    if gamma == 1:
        return conditional
    mixed = gamma * (conditional - text) + text
    return np.where(conditional < np.log(0.1) + conditional.max(), -np.inf, mixed)
