"""Softmax and its logarithm over the last axis, minus infinity meaning not there, for all references."""

import numpy as np


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Log-probabilities of `[..., n]` scores, at least one of them finite in each row."""
    x = np.asarray(x, dtype=np.float64)
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def softmax(x: np.ndarray) -> np.ndarray:
    """Probabilities of `[..., n]` scores."""
    return np.exp(log_softmax(x))


def causal(scores: np.ndarray) -> np.ndarray:
    """Attention `[head, query, key]` of scores, the queries being the last ones of the keys."""
    n_queries, n_keys = scores.shape[-2:]
    seen = np.arange(n_keys)[None] <= np.arange(n_keys - n_queries, n_keys)[:, None]
    return softmax(np.where(seen, scores, -np.inf))


def largest(values: np.ndarray, number: int) -> np.ndarray:
    """The places of the `number` largest of `[n]` values, largest first, the earlier one where they tie."""
    return np.argsort(-np.asarray(values), kind="stable")[:number]
