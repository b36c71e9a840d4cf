"""FastV: Chen et al., ECCV 2024, arXiv 2403.06764; pkunlp-icler/FastV.

`src/transformers/.../modeling_llama.py` @915bc16 masks and ranks anew at each token; `src/FastV/llava-hf/.../
modeling_llama.py` @e5faf2a ranks at the prefill and drops.  The paper speaks of attention from all other tokens; all
codes take the last query's, in the layer before the first one that goes without.
"""

import numpy as np

from references.softmax import largest


def number_kept(n_image: int, ratio: float) -> int:
    """How many image keys stay, in the version that drops."""
    return round(n_image * (1 - ratio))


def kept(attention: np.ndarray, image: np.ndarray, number: int) -> np.ndarray:
    """Which keys stay `[key]`, by attention `[head, query, key]`: all but image keys that the last query looks at less.

    `image` are the places of image keys.
    """
    looks = attention[:, -1].mean(0)
    stays = np.ones(attention.shape[-1], dtype=bool)
    stays[image] = False
    stays[image[largest(looks[image], number)]] = True
    return stays


def seen(attention: np.ndarray, image: np.ndarray, number: int, prompt: int, again: bool) -> np.ndarray:
    """What each query sees in later layers `[query, key]`, for causal attention `[head, token, token]`.

    The prefill's queries see its keys by the last one's choice; later ones by that too, or choose `again`.  In the
    version that chooses again each pass computes the earlier rows anew, all by its own choice; here is its last row.
    """
    n = attention.shape[-1]
    result = np.tri(n, dtype=bool)
    for query in range(n):
        chooser = query if again and query >= prompt else prompt - 1
        stays = np.ones(n, dtype=bool)
        stays[: chooser + 1] = kept(attention[:, : chooser + 1, : chooser + 1], image, number)
        result[query] &= stays
    return result
