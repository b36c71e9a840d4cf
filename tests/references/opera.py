"""OPERA's over-trust penalty and way back: Huang et al., CVPR 2024, arXiv 2311.17911.

`paper_*` after the paper's text, `released_*` after shikiw/OPERA `transformers-4.29.2/.../generation/utils.py`,
`opera_beam_search`, @5fc3aa4.  Attention is the last layer's, `[head, token, token]` over prompt and text.
`references.opera_search` is the search around it.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from references.softmax import largest, log_softmax

NOTHING = -999.0
"""The logit of a token that is no candidate, and of one rejected on the way back."""


def pooled(attention: np.ndarray, normalised: bool) -> np.ndarray:
    """The largest probability over heads `[token, token]`, rows over all keys made to sum to one again."""
    rows = attention.astype(np.float64).max(0)
    return rows / rows.sum(-1, keepdims=True) if normalised else rows


def columns(window: np.ndarray, sigma: float) -> np.ndarray:
    """The product down each column, from the diagonal on, of the scaled window `[token, token]`."""
    return np.array([np.prod(sigma * window[j:, j]) for j in range(len(window))])


def paper_penalty(attention: np.ndarray, start: int, sigma: float, size: int | None = None) -> tuple[float, int]:
    """`phi` of the text from `start` on, over its last `size` tokens, and the text token where it lies."""
    first = start if size is None else max(start, attention.shape[-1] - size)
    products = columns(pooled(attention, normalised=True)[first:, first:], sigma)
    return float(products.max()), int(products.argmax()) + first - start


def released_penalty(attention: np.ndarray, start: int, image: np.ndarray, sigma: float = 50.0) -> tuple[float, int]:
    """What is taken from a candidate's logit, and the text token of its largest column.

    The candidate is the last token; `image` are the places of image keys.  Among the first ten tokens of a text the
    attention to the image is a reward; columns are held in float16, hence 0 or infinite at the ends.
    """
    rows = pooled(attention, normalised=True)
    with np.errstate(over="ignore"):
        products = (1e-7 * columns(rows[start:, start:], sigma)).astype(np.float16).astype(np.float64)
    place = int(products.argmax())
    if len(rows) - start <= 10:
        return -float(rows[-1, image].sum()), place
    return float(products[place]), place


def released_scores(logits: np.ndarray, tokens: Sequence[int], penalties: Sequence[float], weight: float) -> np.ndarray:
    """Log-probabilities `[vocabulary]` of a beam: its candidate tokens, penalised, among themselves."""
    scores = np.full(len(logits), NOTHING)
    scores[list(tokens)] = logits[list(tokens)] - weight * np.asarray(penalties)
    return log_softmax(scores)


def paper_scores(logits: np.ndarray, tokens: Sequence[int], phis: Sequence[float], alpha: float) -> np.ndarray:
    """The same after the paper: a softmax of `H(h) - alpha phi` over the candidate set, nothing elsewhere."""
    scores = np.full(len(logits), -np.inf)
    scores[list(tokens)] = logits[list(tokens)] - alpha * np.asarray(phis)
    return log_softmax(scores)


def mode(values: Sequence[int]) -> int:
    """The most frequent value, the smallest of them."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def released_return(
    history: Sequence[Sequence[int]], place: int, used: Counter[int], candidates: int = 5, threshold: int = 15
) -> int | None:
    """How many text tokens to keep, or None: `history` are the places of each step, one for each beam slot.

    `used` counts the returns to a length.  More than `threshold` steps of every slot must agree with the last `place`;
    the first ten tokens are never returned to.
    """
    slots = range(len(history[0]))
    agreed = all(sum(step[slot] == place for step in history) > threshold for slot in slots)
    if not agreed or place < 10:
        return None
    return next((length for length in (place + 1, place) if used[length] < candidates), None)


def paper_return(
    places: Sequence[int], earliest: int, used: Counter[int], recent: int, threshold: int = 15, returns: int = 5
) -> int | None:
    """The same after the paper, for one beam: at least `threshold` of the last `recent` places agree; never back."""
    last = list(places[-recent:])
    place = mode(last)
    if last.count(place) < threshold or place < earliest:
        return None
    return next((length for length in (place + 1, place) if used[length] < returns), None)


def returned_scores(logits: np.ndarray, rejected: Sequence[int]) -> np.ndarray:
    """Log-probabilities `[vocabulary]` of a beam after a way back: all tokens but those taken before."""
    scores = logits - logits.min() + NOTHING
    scores[list(rejected)] = NOTHING
    return log_softmax(scores)


def candidates_of(logits: np.ndarray, number: int) -> list[int]:
    """The tokens of largest logit, largest first."""
    return [int(token) for token in largest(logits, number)]
