"""VASparse: Zhuang et al., CVPR 2025, arXiv 2501.06553, eqs. 3 to 7; what the released code does in its place.

Released: `minigpt4/sparse/utils.py`, `minigpt4/sparse/LlamaModelPatching.py` and
`decoder_zoo/VASparse/vasparse_decoding.py`, read in the copy Omid-Nejati/MedVCD @f5bfa60.
No sink penalty is in the files read, and the only call of the selection gives a constant visual term.
"""

import numpy as np

from references.softmax import largest, log_softmax, softmax

READINGS = ("logits", "scaled", "probs", "probs_squared")


def importance(query: np.ndarray, keys: np.ndarray, reading: str) -> np.ndarray:
    """The first term of eq. 4 `[key]`, of the keys `[key, d]` that `query` `[d]` sees, in one of the readings."""
    inner = keys @ query
    scaled = inner / np.sqrt(len(query))
    return {
        "logits": inner**2,
        "scaled": scaled**2,
        "probs": softmax(scaled),
        "probs_squared": softmax(scaled) ** 2,
    }[reading]


def saliency(paid: np.ndarray) -> np.ndarray:
    """P `[key]`: softmax of the attention `[key]` that each visible token, as the query, paid to image keys."""
    return softmax(paid)


def delta(query: np.ndarray, keys: np.ndarray, paid: np.ndarray, weight: float, reading: str) -> np.ndarray:
    """Importance plus `weight`, lambda, times P."""
    return importance(query, keys, reading) + weight * saliency(paid)


def kept(values: np.ndarray, scope: np.ndarray, keep: float) -> np.ndarray:
    """Which keys stay `[key]`: the `ceil(keep n)` best of the n in scope, the earlier on ties, and all out of scope."""
    inside = np.flatnonzero(scope)
    number = int(np.ceil(round(keep * len(inside), 9)))
    stays = ~scope
    stays[inside[largest(values[inside], number)]] = True
    return stays


def released_kept(attention: np.ndarray, visual: np.ndarray | float = 1.0, weight: float = 1.0) -> np.ndarray:
    """Image keys kept `[key]`, by prompt attention `[head, query, image key]`; this is switched off there."""
    scores = attention.mean(0).mean(0) ** 2 + weight * visual
    n = attention.shape[-1]
    stays = np.zeros(n, dtype=bool)
    stays[largest(scores, min(int(0.75 * n), n - 1))] = True
    return stays


def released_merge(generated: np.ndarray, rate: float = 0.9) -> np.ndarray:
    """Generated keys or values `[token, d]` after a sparsification: the earliest tenth are replaced by their mean."""
    number = int((1 - rate) * len(generated))
    if number == 0:
        return generated
    return np.concatenate([generated[:number].mean(0, keepdims=True), generated[number:]])


def contrast(theta: np.ndarray, phi: np.ndarray, alpha: float = 0.1, floor: float = 0.1) -> np.ndarray:
    """Logits `[token]` of eq. 6, among plausible tokens; `phi` are the head's logits for bare embeddings."""
    plausible = log_softmax(theta) >= np.log(floor) + log_softmax(theta).max()
    return np.where(plausible, (1 + alpha) * theta - alpha * phi, -np.inf)


def released_contrast(theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """The released form: no sum of weights to one, no floor."""
    return theta - 0.1 * phi


def penalised(scores: np.ndarray, beta: float) -> np.ndarray:
    """Eq. 7: causal scores `[query, key]`, every key weighted by the attention it has received up to each query."""
    result = np.array(scores, dtype=np.float64)
    received = np.zeros(scores.shape[-1])
    first = scores.shape[-1] - len(scores)
    for i, row in enumerate(scores):
        seen = slice(0, first + i + 1)
        received[seen] += softmax(row[seen])
        result[i, seen] = (1 + beta) * row[seen] - beta * softmax(received[seen]) * row[seen]
    return result
