"""The mathematics of contrastive decoding: one distribution against another, among plausible tokens.

`theta` are the logits of the model, `phi` those of a weaker reader or of an earlier layer.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Divergence = Literal["reversed", "jensen-shannon"]


def contrast_logits(
    theta: Float[Tensor, "row vocabulary"], phi: Float[Tensor, "row vocabulary"], alpha: float, plausibility: float
) -> Float[Tensor, "row vocabulary"]:
    """Log-probabilities of the contrast, minus infinity where theta finds a token implausible."""
    mixed = (1 + alpha) * theta.float().log_softmax(-1) - alpha * phi.float().to(theta.device)
    return mixed.masked_fill(~plausible(theta, plausibility), -torch.inf).log_softmax(-1)


def plausible(theta: Float[Tensor, "row vocabulary"], plausibility: float) -> Bool[Tensor, "row vocabulary"]:
    """Tokens of at least `plausibility` times the largest probability; at 0 all."""
    theta = theta.float()
    return theta >= theta.amax(-1, keepdim=True) + (math.log(plausibility) if plausibility else -torch.inf)


def distances(
    last: Float[Tensor, "row vocabulary"], early: Float[Tensor, "layer row vocabulary"], divergence: Divergence
) -> Float[Tensor, "layer row"]:
    """How far early log-probabilities are from the last layer's.

    `jensen-shannon`: `(KL(last || m) + KL(early || m)) / 2` with the middle `m`; `reversed`: both terms the other way
    round, as DoLa's released code has them.
    """
    middle = torch.logaddexp(last, early) - math.log(2)

    def kl(p: Tensor, q: Tensor) -> Tensor:  # a token that another processor has forbidden adds nothing
        return torch.where(p.isfinite() & q.isfinite(), p.exp() * (p - q), 0).sum(-1)

    if divergence == "reversed":
        return (kl(middle, last) + kl(middle, early)) / 2
    return (kl(last.expand_as(early), middle) + kl(early, middle)) / 2


def farthest(
    last: Float[Tensor, "row vocabulary"],
    early: Float[Tensor, "layer row vocabulary"],
    divergence: Divergence = "jensen-shannon",
) -> Float[Tensor, "row vocabulary"]:
    """Of early log-probabilities those of the layer farthest from the last one's, each row by itself."""
    chosen = distances(last, early, divergence).argmax(0)
    return early.gather(0, chosen[None, :, None].expand(1, -1, early.shape[-1]))[0]


def layer_contrast(
    scores: Float[Tensor, "row vocabulary"],
    last: Float[Tensor, "row vocabulary"],
    early: Float[Tensor, "layer row vocabulary"],
    plausibility: float,
    divergence: Divergence = "jensen-shannon",
) -> Float[Tensor, "row vocabulary"]:
    """DoLa (Chuang et al., ICLR 2024, arXiv 2309.03883): scores against the early layer farthest from the last one.

    `last` are the last layer's own log-probabilities, which choose the layer and the plausible tokens; `scores` are
    these, or what other methods have made of them.
    """
    floor = last.amax(-1, keepdim=True) + math.log(plausibility)
    mixed = scores.float().log_softmax(-1) - farthest(last, early, divergence)
    return mixed.masked_fill(last < floor, -torch.inf).log_softmax(-1)


def layer_correction(
    scores: Float[Tensor, "row vocabulary"],
    last: Float[Tensor, "row vocabulary"],
    early: Float[Tensor, "layer row vocabulary"],
    alpha: float,
    top_p: float,
    top_k: int,
) -> Float[Tensor, "row vocabulary"]:
    """DeCo (Wang et al., ICLR 2025, arXiv 2410.11779): logits plus those of the early layer surest of a candidate.

    Candidates are the likeliest tokens by the `last` layer's log-probabilities, at most `top_k` and as few as hold
    `top_p`; the largest probability that an early layer gives one of them, times `alpha`, weighs that layer's logits.
    Tokens that are no candidates are minus infinity.
    """
    order = last.argsort(dim=-1, descending=True, stable=True)[:, :top_k]
    held = last.gather(-1, order).exp().cumsum(-1)
    number = (held < top_p).sum(-1, keepdim=True) + 1
    candidate = torch.arange(order.shape[1], device=order.device) < number
    index = order[None].expand(len(early), -1, -1)
    sure = early.float().softmax(-1).gather(-1, index).masked_fill(~candidate, -1.0).amax(-1)  # [layer, row]
    weight, layer = sure.max(0)
    chosen = early.gather(0, layer[None, :, None].expand(1, -1, early.shape[-1]))[0].float()
    mixed = scores.float() + alpha * weight[:, None] * chosen
    kept = torch.zeros_like(mixed, dtype=torch.bool).scatter(-1, order, candidate)
    return mixed.masked_fill(~kept, -torch.inf)


def growing_weight(gamma: float, step: int) -> float:
    """M3ID's weight of the contrast at a step, from 1 (Favero et al., arXiv 2403.14003): `(1 - g) / g`, `g = e^-gt`."""
    return math.expm1(min(gamma * step, 700.0))  # beyond, a float64 is infinite
