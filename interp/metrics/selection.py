"""The mathematics of choosing keys: the largest ones, sinks made smaller, dropped ones clustered.

VASparse: Zhuang et al., CVPR 2025, arXiv 2501.06553, eqs. 3 to 7; `delta`, `P` and `w` are named there.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def top_mask(
    delta: Float[Tensor, "*row key"],
    scope: Bool[Tensor, "*row key"],
    keep: float,
    total: Int[Tensor, "*#row 1"] | None = None,
) -> Bool[Tensor, "*row key"]:
    """The `ceil(keep x total)` keys of largest `delta` among those in scope; the earlier one where they tie.

    `total` defaults to the number in scope.
    """
    number = (keep * (scope.sum(-1, keepdim=True) if total is None else total).double() - 1e-9).ceil()
    order = delta.masked_fill(~scope, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    best = torch.arange(delta.shape[-1], device=delta.device) < number
    return torch.empty_like(order, dtype=torch.bool).scatter_(-1, order, best.expand_as(order)) & scope


def running_softmax(
    values: Float[Tensor, "*batch key"], visible: Bool[Tensor, "*#batch query key"]
) -> Float[Tensor, "*batch query key"]:
    """For each query the softmax of a per-key value over the keys it can see; 0 elsewhere."""
    rows = values[..., None, :].expand(*values.shape[:-1], visible.shape[-2], -1)
    return rows.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)


def penalised(
    scores: Float[Tensor, "*row key"], weights: Float[Tensor, "*row key"], beta: float
) -> Float[Tensor, "*row key"]:
    """Scores with sinks made smaller: `(1 + beta) s - beta w s` (eq. 7)."""
    return torch.where(scores.isfinite(), (1 + beta - beta * weights) * scores, scores)


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


def merged(
    key: Float[Tensor, "head key d"],
    value: Float[Tensor, "head key d"],
    dropped: Bool[Tensor, "head key"],
    share: float,
    neighbours: int,
) -> tuple[Tensor, Tensor]:
    """Dropped keys and values clustered and summed: `[head, cluster, d]` of each.  Heads drop the same number."""
    n = int(dropped[0].sum())
    which = (~dropped).int().argsort(dim=-1, stable=True)[:, :n, None]
    keys, values = key.take_along_dim(which, 1), value.take_along_dim(which, 1)
    clusters = max(1, -int(-share * n // 1))
    cluster = density_peaks(keys, clusters, neighbours)[..., None]
    empty = keys.new_zeros(len(keys), clusters, keys.shape[-1])
    index = cluster.expand_as(keys)
    return empty.scatter_add(1, index, keys), empty.scatter_add(1, index, values)


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
