"""Statistics of attention probabilities, row by row, so that no whole map need exist.

Sinks: Gu et al., "When Attention Sink Emerges in Language Models: An Empirical View", arXiv 2410.10781, section 3.
Sparsity, saliency and sink weights: Zhuang et al., VASparse, CVPR 2025, arXiv 2501.06553, section 3 and eqs. 4, 5 and
7.

Symbols: `a` is `pattern`; `alpha_k` is `received`; `P` is `saliency`; `w` is `sink_weights`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FRACTIONS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of the keys at which sparsity curves are read."""
RECALLS = (0.9, 0.95, 0.98)
"""Shares of the mass whose smallest set of keys is measured."""
KINDS = ("image", "prompt", "generated")
PADDING = -1
SELECTED = (0.1, 0.5, 0.9)
"""Shares of the keys for which selection by squared logit is measured."""
STRONG = -1.0
"""A scaled score below this is strongly negative: e times less attention than a score of 0."""


def received(attention: Float[Tensor, "*head query key"]) -> Float[Tensor, "*head key"]:
    """`alpha_k`: the mean attention a position receives from itself and all later queries (causal maps)."""
    length = attention.shape[-1]
    return attention.sum(-2) / torch.arange(length, 0, -1, device=attention.device)


def sink_rate(attention: Float[Tensor, "*head query key"], key: int = 0, eps: float = 0.3) -> float:
    """`Sink_k^eps` in percent: the share of heads (layers, samples) in which a position receives more than `eps`."""
    return 100 * (received(attention)[..., key] > eps).float().mean().item()


def entropy(pattern: Float[Tensor, "*query key"]) -> Float[Tensor, "*query"]:
    """Entropy of each query's attention, in nats."""
    return -torch.xlogy(pattern, pattern).sum(-1)


def mass_by_kind(
    pattern: Float[Tensor, "batch head query key"], kinds: Int[Tensor, "batch key"]
) -> Float[Tensor, "batch head query kind"]:
    """How much of each query's attention goes to image, prompt and generated keys."""
    of_kind = torch.stack([kinds == kind for kind in range(len(KINDS))], -1).to(pattern)
    return pattern @ of_kind[:, None]


def saliency(
    image_mass: Float[Tensor, "batch head token"], real: Bool[Tensor, "batch token"], heads: str = "last"
) -> Float[Tensor, "batch token"]:
    """`P` (VASparse, eq. 5): softmax over tokens of the attention each paid, as a query, to the image.

    `heads` is `last` (the paper's) or `mean`.
    """
    if heads not in ("last", "mean"):
        raise ValueError(f"saliency is read from the last head or the mean of all, got {heads!r}")
    paid = image_mass[:, -1] if heads == "last" else image_mass.mean(1)
    return paid.masked_fill(~real, -torch.inf).softmax(-1)


def sink_weights(
    received_sum: Float[Tensor, "batch head token"], real: Bool[Tensor, "batch token"]
) -> Float[Tensor, "batch head token"]:
    """`w` (VASparse, eq. 7): softmax over tokens of the attention each received from all queries so far."""
    return received_sum.masked_fill(~real[:, None], -torch.inf).softmax(-1)


@dataclass(frozen=True)
class Sparsity:
    """How few keys hold how much of a row's attention; `rest` leaves out the first token and renormalises.

    `recall[..., i]` is the mass in the top `FRACTIONS[i]` of the keys, `share[..., i]` the smallest share of the keys
    that holds `RECALLS[i]` of the mass, `kept[..., i, kind]` what the top `FRACTIONS[i]` of the keys are.
    A row with nothing left once the first token is gone has `nan` there.
    """

    recall: Float[Tensor, "*query fraction"]
    share: Float[Tensor, "*query recall"]
    recall_rest: Float[Tensor, "*query fraction"]
    share_rest: Float[Tensor, "*query recall"]
    kept: Float[Tensor, "*query fraction kind"]


def sparsity(
    pattern: Float[Tensor, "batch head query key"],
    n_keys: Int[Tensor, "batch query"],
    first: Int[Tensor, " batch"],
    kinds: Int[Tensor, "batch key"],
) -> Sparsity:
    """Sparsity of each row over the `n_keys` keys it can see; `first` is the index of each sample's first token.

    Keys of equal probability at the edge of the kept ones all count in `kept`.
    """
    ascending = _sorted(pattern)
    largest = ascending.shape[-1]
    mass = ascending.flip(-1).cumsum(-1)
    n = n_keys[:, None, :, None].expand(*pattern.shape[:3], 1)
    fractions = torch.tensor(FRACTIONS, dtype=torch.float64, device=pattern.device)
    recalls = pattern.new_tensor(RECALLS).expand(*pattern.shape[:3], -1)

    def top(keys: Tensor) -> Tensor:  # the epsilon keeps 0.1 x 30 at 3
        return (fractions * keys - 1e-9).ceil().long().clamp(min=1)

    def below(wanted: Tensor) -> Tensor:  # how many keys, largest first, before the mass is reached
        return torch.searchsorted(mass, wanted.contiguous())

    k = top(n)
    edge = ascending.gather(-1, largest - k)
    kept = _at_least(pattern, ascending, edge, kinds)
    v = pattern.gather(-1, first[:, None, None, None].expand(*pattern.shape[:3], 1))
    at = largest - torch.searchsorted(ascending, v.contiguous(), right=True)  # the first token's rank
    n_rest = n - (v > 0).long()  # a window may hide the first token
    left = (1 - v).where((n_rest > 0) & (1 - v > 1e-6), torch.nan)
    k_rest = top(n_rest.clamp(min=1))
    includes = at < k_rest
    before = below(recalls * left.nan_to_num(1))
    share_rest = torch.where(before < at, before + 1, below(recalls * left.nan_to_num(1) + v)) / n_rest
    return Sparsity(
        mass.gather(-1, k - 1),
        ((below(recalls) + 1) / n).clamp(max=1),
        (mass.gather(-1, (k_rest - 1 + includes).clamp(max=largest - 1)) - v * includes) / left,
        share_rest.clamp(max=1).where(~left.isnan(), torch.nan),
        kept / kept.sum(-1, keepdim=True).clamp(min=1),
    )


@dataclass(frozen=True)
class SquaredSelection:
    """What choosing keys by their squared score (VASparse, eq. 4 without `P`) chooses.

    `squared[..., i, :]` tells of the top `SELECTED[i]` of the keys: the share whose score is negative, the share below
    `STRONG`, the attention they hold, and the attention held by as many keys chosen by probability.
    """

    squared: Float[Tensor, "*query selected 4"]


def squared_selection(
    scores: Float[Tensor, "batch head query key"], pattern: Float[Tensor, "batch head query key"]
) -> SquaredSelection:
    """Selection by squared score among the keys each query can see; `scores` are scaled, minus infinity where not."""
    visible = scores.isfinite()
    order = scores.square().masked_fill(~visible, -1.0).argsort(dim=-1, descending=True)
    chosen, mass = scores.gather(-1, order), pattern.gather(-1, order).cumsum(-1)
    most = pattern.sort(dim=-1, descending=True).values.cumsum(-1)
    n = visible.sum(-1, keepdim=True)
    fractions = torch.tensor(SELECTED, dtype=torch.float64, device=scores.device)
    number = (fractions * n - 1e-9).ceil().long().clamp(min=1)
    found = [(chosen < 0).cumsum(-1).gather(-1, number - 1) / number]
    found += [(chosen < STRONG).cumsum(-1).gather(-1, number - 1) / number]
    found += [mass.gather(-1, number - 1), most.gather(-1, number - 1)]
    return SquaredSelection(torch.stack(found, -1).float())


def _at_least(
    pattern: Float[Tensor, "batch head query key"],
    ascending: Float[Tensor, "batch head query key"],
    edge: Float[Tensor, "batch head query fraction"],
    kinds: Int[Tensor, "batch key"],
) -> Float[Tensor, "batch head query fraction kind"]:
    """How many keys of each kind reach each edge; the most frequent kind is what the others leave."""
    edge = edge.clamp(min=1e-30).contiguous()  # hidden keys reach none
    counts = []
    for rows, whole, edges, of in zip(pattern, ascending, edge, kinds, strict=True):
        numbers = torch.stack([(of == kind).sum() for kind in range(len(KINDS))])
        found = []
        for kind in range(len(KINDS)):
            some = _sorted(rows[..., (of == kind).nonzero()[:, 0]]) if kind != numbers.argmax() else whole
            found.append(some.shape[-1] - torch.searchsorted(some, edges))
        most = int(numbers.argmax())
        found[most] = 2 * found[most] - sum(found)
        counts.append(torch.stack(found, -1))
    return torch.stack(counts).float()


def _sorted(x: Tensor) -> Tensor:
    """Rows in ascending order; numpy's sort is six times as fast as torch's on a CPU."""
    return torch.from_numpy(np.sort(x.numpy(), -1)) if x.device.type == "cpu" else x.sort(-1).values
