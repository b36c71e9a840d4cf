"""H2O: Zhang et al., NeurIPS 2023, arXiv 2306.14048; FMInference/H2O.

`dropped` after `h2o_hf/utils_real_drop/modify_llama.py` @0ee6a85, `masked` after `h2o_hf/utils_hh/modify_llama.py`
@61e8089.  Both for one head, of scaled scores `[token, token]` over prompt and text; the prompt is read whole.
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
    """What each query sees `[query, key]`: after each step `recent` keys stay, and the `heavy` best of the others."""
    seen, received = start(scores, prompt)
    cache = np.arange(prompt)
    for query in range(prompt, len(scores) + 1):
        if len(cache) > heavy + recent:
            old, new = cache[: len(cache) - recent], cache[len(cache) - recent :]
            cache = np.concatenate([np.sort(old[largest(received[old], heavy)]), new])
        if query < len(scores):
            cache = np.append(cache, query)
            seen[query, cache] = True
            received[cache] += softmax(scores[query, cache])
    return seen


def masked(scores: np.ndarray, prompt: int, heavy_ratio: float, recent_ratio: float) -> np.ndarray:
    """What each query sees `[query, key]`: the prompt's length sets the budgets; `recent` counts the query itself.

    The key that just left the recent ones is hidden for one step and stands for election in the next.
    """
    seen, received = start(scores, prompt)
    heavy, recent = int(heavy_ratio * prompt), int(recent_ratio * prompt)
    for n in range(prompt, len(scores)):
        now = np.ones(n + 1, dtype=bool)
        if n > heavy + recent:
            now[: n + 1 - recent] = False
            now[largest(received[: n - recent], heavy)] = True
            received[: n - recent] *= now[: n - recent]
        seen[n, : n + 1] = now
        received[: n + 1][now] += softmax(scores[n, : n + 1][now])
    return seen
