"""SnapKV: Li et al., NeurIPS 2024, arXiv 2404.14469; FasterDecoding/SnapKV.

`snapkv/monkeypatch/snapkv_utils.py` @395b54d.  Once, after the prefill, which attends to
everything; each query head chooses for itself.
"""

import numpy as np

from references.softmax import causal, largest


def pooled(votes: np.ndarray, kernel: int, pooling: str) -> np.ndarray:
    """Mean or maximum over `kernel` neighbours, an odd number; beyond the ends there are zeros for the mean."""
    side = kernel // 2
    padded = np.pad(votes.astype(np.float64), side, constant_values=0.0 if pooling == "average" else -np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel)
    return windows.mean(-1) if pooling == "average" else windows.max(-1)


def kept(scores: np.ndarray, window: int, capacity: int, kernel: int = 5, pooling: str = "average") -> np.ndarray:
    """The places of the prompt's keys that stay, in order, of one head's scaled scores `[token, token]`."""
    n = len(scores)
    if n < capacity:
        return np.arange(n)
    votes = causal(scores[None, -window:])[0][:, :-window].sum(0)
    best = largest(pooled(votes, kernel, pooling), capacity - window)
    return np.concatenate([np.sort(best), np.arange(n - window, n)])
