"""The mathematics of contrastive decoding: one distribution against another, among plausible tokens.

`theta` are the logits of the model, `phi` those of a weaker reader or of an earlier layer.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def contrast_logits(
    theta: Float[Tensor, "row vocabulary"], phi: Float[Tensor, "row vocabulary"], alpha: float, plausibility: float
) -> Float[Tensor, "row vocabulary"]:
    """Log-probabilities of the contrast, minus infinity where theta finds a token implausible."""
    log_theta = theta.float().log_softmax(-1)
    mixed = (1 + alpha) * log_theta - alpha * phi.float().to(theta.device)
    floor = log_theta.amax(-1, keepdim=True) + (math.log(plausibility) if plausibility else -torch.inf)
    return mixed.masked_fill(log_theta < floor, -torch.inf).log_softmax(-1)


def farthest(
    last: Float[Tensor, "row vocabulary"], early: Float[Tensor, "layer row vocabulary"]
) -> Float[Tensor, "row vocabulary"]:
    """Of early log-probabilities those of the layer farthest from the last one's, by Jensen-Shannon divergence."""
    middle = torch.logaddexp(last, early) - math.log(2)

    def kl(p: Tensor, q: Tensor) -> Tensor:  # a token that another processor has forbidden adds nothing
        return torch.where(p.isfinite(), p.exp() * (p - q), 0).sum(-1)

    divergence = kl(last.expand_as(early), middle) + kl(early, middle)
    return early.gather(0, divergence.argmax(0)[None, :, None].expand(1, -1, early.shape[-1]))[0]


def layer_contrast(
    scores: Float[Tensor, "row vocabulary"],
    last: Float[Tensor, "row vocabulary"],
    early: Float[Tensor, "layer row vocabulary"],
    plausibility: float,
) -> Float[Tensor, "row vocabulary"]:
    """DoLa (Chuang et al., ICLR 2024, arXiv 2309.03883): scores against the early layer farthest from the last one.

    `last` are the last layer's own log-probabilities, which choose the layer and the plausible tokens; `scores` are
    these, or what other methods have made of them.
    """
    floor = last.amax(-1, keepdim=True) + math.log(plausibility)
    mixed = scores.float().log_softmax(-1) - farthest(last, early)
    return mixed.masked_fill(last < floor, -torch.inf).log_softmax(-1)


def growing_weight(gamma: float, step: int) -> float:
    """M3ID's weight of the contrast at a step, from 1 (Favero et al., arXiv 2403.14003): `(1 - g) / g`, `g = e^-gt`."""
    return math.expm1(min(gamma * step, 700.0))  # beyond, a float64 is infinite
