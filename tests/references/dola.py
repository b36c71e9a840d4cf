"""DoLa: Chuang et al., ICLR 2024, arXiv 2309.03883; voidism/DoLa.

`dola_greedy_decode` @82dcec5, `modeling_llama.py` @18e99ca.

Hidden state 0 is the embedding, i what layer i, from 1, gives.  The released code reads an early one with the head
alone, without the final norm, and its divergence has the arguments of both Kullback-Leibler terms exchanged.
"""

import numpy as np

from references.softmax import log_softmax


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """`KL(p || q)` of log-probabilities `[token]`."""
    return float((np.exp(p) * (p - q)).sum())


def divergence(final: np.ndarray, early: np.ndarray, released: bool) -> float:
    """Jensen-Shannon divergence of two log-distributions (paper), or its terms the other way round (released)."""
    middle = np.logaddexp(final, early) - np.log(2)
    if released:
        return (kl(middle, final) + kl(middle, early)) / 2
    return (kl(final, middle) + kl(early, middle)) / 2


def chosen(final: np.ndarray, early: np.ndarray, released: bool) -> int:
    """Which of the early logits `[layer, row, token]` is farthest from the final ones `[row, token]`, rows averaged."""
    rows = range(len(final))
    far = [[divergence(log_softmax(final[r]), log_softmax(e[r]), released) for r in rows] for e in early]
    return int(np.mean(far, axis=1).argmax())


def contrast(final: np.ndarray, early: np.ndarray, floor: float = 0.1) -> np.ndarray:
    """Scores `[token]`: log-probabilities of the last layer minus those of the early one, among plausible tokens."""
    last, before = log_softmax(final), log_softmax(early)
    return np.where(last < last.max() + np.log(floor), -np.inf, last - before)


def candidates(n_layers: int, which: str, tied: bool) -> list[int]:
    """The hidden states that transformers' `dola_layers="low"` or `"high"` tries; `tied`: head and embedding."""
    if which == "high":
        return list(range(n_layers // 2 if n_layers <= 40 else n_layers - 20, n_layers, 2))
    start = 0 if not tied else min(2, n_layers - 1)
    end = n_layers // 2 if n_layers <= 40 else 20
    return [start] if start == n_layers // 2 else list(range(start, end, 2))
