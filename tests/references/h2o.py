"""H2O: Zhang et al., NeurIPS 2023, arXiv 2306.14048; FMInference/H2O.

`dropped` after `h2o_hf/utils_real_drop/modify_llama.py` @0ee6a85, `masked` after `h2o_hf/utils_hh/modify_llama.py`
@61e8089, whose budgets are shares of the prompt: the same keys.  Both for one head, of scaled scores `[token, token]`
over prompt and text; the prompt is read whole, and attention counts only if it was paid.
"""

import numpy as np

from references.softmax import causal, largest, softmax


def start(scores: np.ndarray, prompt: int) -> tuple[np.ndarray, np.ndarray]:
    """What the prompt's queries see `[token, token]`, and the attention each key received from them `[token]`."""
    n = len(scores)
    received = np.zeros(n)
    received[:prompt] = causal(scores[None, :prompt, :prompt])[0].sum(0)
    return np.tri(n, dtype=bool) & (np.arange(n)[:, None] < prompt), received


def dropped(scores: np.ndarray, prompt: int, heavy: int, recent: int) -> np.ndarray:
    """What each query sees `[query, key]`: the last `recent` earlier keys, the `heavy` best of the others, itself."""
    seen, received = start(scores, prompt)
    cache = np.arange(prompt)
    for query in range(prompt, len(scores)):
        if len(cache) > heavy + recent:
            old, new = cache[: len(cache) - recent], cache[len(cache) - recent :]
            cache = np.concatenate([np.sort(old[largest(received[old], heavy)]), new])
        cache = np.append(cache, query)
        seen[query, cache] = True
        received[cache] += softmax(scores[query, cache])
    return seen


def masked(scores: np.ndarray, prompt: int, heavy_share: float, recent_share: float) -> np.ndarray:
    """The same with a mask: the scores of hidden keys become zero.  Without `recent` keys nothing is ever hidden."""
    seen, received = start(scores, prompt)
    heavy, recent = int(heavy_share * prompt), int(recent_share * prompt)
    for query in range(prompt, len(scores)):
        now = np.arange(len(scores)) <= query
        if query > heavy + recent and recent > 0:
            now[: query - recent] = False
            now[largest(received[: query - recent], heavy)] = True
        received[~now] = 0
        seen[query] = now
        received[now] += softmax(scores[query, now])
    return seen
