"""StreamingLLM: Xiao et al., ICLR 2024, arXiv 2309.17453; mit-han-lab/streaming-llm.

`streaming_llm/kv_cache.py` @d729b3f (what stays after each token), `pos_shift/modify_llama.py` @d729b3f (positions).
"""

import numpy as np


def kept(n: int, sinks: int, recent: int) -> list[int]:
    """The earlier tokens that query `n`, from 0, still finds; it sees itself besides."""
    if n <= sinks + recent:
        return list(range(n))
    return [*range(sinks), *range(n - recent, n)]


def seen(n: int, prompt: int, sinks: int, recent: int) -> np.ndarray:
    """What each query sees `[query, key]`: the prompt is read whole."""
    result = np.tri(n, dtype=bool)
    for query in range(prompt, n):
        result[query] = False
        result[query, [*kept(query, sinks, recent), query]] = True
    return result


def positions(n: int, sinks: int, recent: int) -> tuple[list[int], int]:
    """Rotary positions of the kept tokens and of query `n`: places in the cache, not in the text."""
    size = len(kept(n, sinks, recent))
    return list(range(size)), size
