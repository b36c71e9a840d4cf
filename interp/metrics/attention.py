"""Statistics of attention probabilities.

Gu et al., "When Attention Sink Emerges in Language Models: An Empirical View", arXiv 2410.10781, section 3.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def received(attention: Float[Tensor, "*head query key"]) -> Float[Tensor, "*head key"]:
    """`alpha_k`: the mean attention a position receives from itself and all later queries (causal maps)."""
    length = attention.shape[-1]
    return attention.sum(-2) / torch.arange(length, 0, -1, device=attention.device)


def sink_rate(attention: Float[Tensor, "*head query key"], key: int = 0, eps: float = 0.3) -> float:
    """`Sink_k^eps` in percent: the share of heads (layers, samples) in which a position receives more than `eps`."""
    return 100 * (received(attention)[..., key] > eps).float().mean().item()
