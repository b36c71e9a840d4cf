"""The mathematics of choosing keys: the largest ones, sinks made smaller, dropped ones clustered.

VASparse: Zhuang et al., CVPR 2025, arXiv 2501.06553, eqs. 3 to 7; `delta`, `P` and `w` are named there.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def top_mask(
    delta: Float[Tensor, "*row key"],
    scope: Bool[Tensor, "*#row key"],
    keep: float,
    total: Int[Tensor, "*#row 1"] | int | None = None,
) -> Bool[Tensor, "*row key"]:
    """The `ceil(keep x total)` keys of largest `delta` among those in scope; the earlier one where they tie.

    `total` defaults to the number in scope; an int is that number in every row.
    """
    inside = delta.masked_fill(~scope, -torch.inf)
    order = inside.argsort(dim=-1, descending=True, stable=True)
    kept = torch.zeros_like(order, dtype=torch.bool)
    if isinstance(total, int):
        return kept.scatter_(-1, order[..., : share_of(total, keep)], True)
    number = (keep * (scope.sum(-1, keepdim=True) if total is None else total).double() - 1e-9).ceil()
    best = torch.arange(delta.shape[-1], device=delta.device) < number
    return kept.scatter_(-1, order, best.expand_as(order)) & scope


def share_of(number: int, share: float) -> int:
    """`ceil(share x number)`, as `top_mask` counts it."""
    return math.ceil(share * number - 1e-9)


def running_softmax(
    values: Float[Tensor, "*batch key"], visible: Bool[Tensor, "*#batch query key"] | None = None
) -> Float[Tensor, "*batch query key"]:
    """For each query the softmax of a per-key value over the keys it can see (None: one query, all); 0 elsewhere."""
    if visible is None:
        return values.softmax(-1)[..., None, :]
    rows = values[..., None, :].expand(*values.shape[:-1], visible.shape[-2], -1)
    return rows.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)


def penalised(
    scores: Float[Tensor, "*row key"], weights: Float[Tensor, "*row key"], beta: float
) -> Float[Tensor, "*row key"]:
    """Scores with sinks made smaller: `(1 + beta) s - beta w s` (eq. 7); minus infinity stays."""
    return scores * (1 + beta - beta * weights)


def density_peaks(
    points: Float[Tensor, "*batch point d"], n_clusters: int, neighbours: int
) -> Int[Tensor, "*batch point"]:
    """k-nearest-neighbour density-peak clustering: the cluster of each point.

    Density is `exp(-mean squared distance to the k nearest)`; peaks are the points of largest density times distance to
    the nearest denser one; every other point joins the nearest peak.
    """
    n = points.shape[-2]
    distance = torch.cdist(points.float(), points.float())
    nearest = distance.topk(min(neighbours + 1, n), largest=False).values[..., 1:]
    density = (-nearest.square().mean(-1).nan_to_num(0)).exp()
    ahead = torch.ones(n, n, dtype=torch.bool, device=points.device).tril(-1)  # of equal ones the earlier is denser
    denser = density[..., None, :] - density[..., :, None]
    denser = (denser > 0) | ((denser == 0) & ahead)
    apart = distance.masked_fill(~denser, torch.inf).amin(-1)
    apart = torch.where(apart.isinf(), distance.amax(-1), apart)
    peaks = (density * apart).topk(n_clusters, dim=-1).indices
    to_peaks = distance.gather(-1, peaks[..., None, :].expand(*distance.shape[:-1], n_clusters))
    return to_peaks.argmin(-1).scatter(
        -1, peaks, torch.arange(n_clusters, device=points.device).expand(*peaks.shape).contiguous()
    )


def membership(
    key: Float[Tensor, "*#batch key d"], dropped: Bool[Tensor, "*batch key"], n: int, share: float, neighbours: int
) -> Bool[Tensor, "*batch cluster key"]:
    """Which dropped keys, `n` in each row, belong to which of their clusters.

    A cluster's key and value are the sums of those of its members, so that the inner product with its key is the sum of
    theirs, and what is read from it is read from each of them.
    """
    n_clusters = max(1, share_of(n, share))
    if n_clusters == 1:
        return dropped[..., None, :]
    which = (~dropped).int().argsort(dim=-1, stable=True)[..., :n]
    cluster = density_peaks(key.take_along_dim(which[..., None], -2), n_clusters, neighbours)
    members = torch.zeros(*dropped.shape[:-1], n_clusters * dropped.shape[-1], dtype=torch.bool, device=key.device)
    return members.scatter_(-1, cluster * dropped.shape[-1] + which, True).unflatten(-1, (n_clusters, -1))


def blind_tokens(attention: Float[Tensor, "layer head key"], share: float, deviations: float) -> Bool[Tensor, " key"]:
    """AvisC's blind image tokens (Woo et al., arXiv 2405.17820), by the last query's attention to image keys.

    Of the fewest layers that hold `share` of all attention, the keys from the mean plus `deviations` standard
    deviations (of the sample) on.
    """
    looks = attention.mean(1).sum(-1)
    order = looks.argsort(descending=True, stable=True)
    held = (looks[order] / looks.sum()).cumsum(0)
    mean = attention[order[: int((held < share).sum()) + 1]].mean((0, 1))
    return mean >= mean.mean() + deviations * mean.std()
