"""VASparse: visual-aware token sparsification, sparse visual contrastive decoding, and a penalty on sinks.

Zhuang et al., "VASparse: Towards Efficient Visual Hallucination Mitigation via Visual-Aware Token Sparsification",
CVPR 2025, arXiv 2501.06553, eqs. 3 to 7.

Symbols: `delta_i = <q,K_i>^2 + lambda P_i` is `delta` (eq. 3); `P` is `saliency` (below eq. 3); `S` is `keep` times
the tokens in scope; eq. 6 is `contrasted`; `w` is `weights` (eq. 7); `lambda_`, `alpha`, `beta`, `mask_rate` keep their
names.

Readings, where paper and released code differ or are silent: `score` (raw inner product, or probability as the code),
`saliency_heads`, `scope`, `dropped`, `when`, `contrast`.  `P` and `w` are accumulated from the model's own
probabilities, before penalty and selection, else a row would depend on the rows before it within the prefill.
Clusters of dropped tokens: a tenth of them (`cluster_share`), density from the `neighbours` nearest; a dropped token is
merged at the step that drops it, in the prefill it is discarded.  With `evict`, the query heads that share keys decide
together.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.interventions.methods.contrast import contrasted, embedding_contrast
from interp.interventions.primitives.kv_cache import Marks, Memory, attending
from interp.models import LVLM, AttentionCall, Inputs

CHOICES = {
    "score": ("logits", "probs"),
    "saliency_heads": ("last", "mean"),
    "scope": ("generated", "all", "image"),
    "dropped": ("merge", "discard"),
    "when": ("step", "mask", "evict"),
    "contrast": ("pooled", "last"),
}


def top_mask(
    delta: Float[Tensor, "*row key"],
    scope: Bool[Tensor, "*row key"],
    keep: float,
    total: Int[Tensor, "*#row 1"] | None = None,
) -> Bool[Tensor, "*row key"]:
    """The `ceil(keep x total)` keys of largest `delta` among those in scope; the earlier one where they tie.

    `total` defaults to the number in scope.
    """
    number = (keep * (scope.sum(-1, keepdim=True) if total is None else total) - 1e-9).ceil()
    order = delta.masked_fill(~scope, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return (order.argsort(dim=-1) < number) & scope


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


@dataclass(frozen=True)
class VASparse:
    """Visual-aware token selection, contrast with the embeddings, and a penalty on sinks.

    `keep`: share of the tokens in `scope` that a query may attend to (1: no selection); `lambda_`: weight of their
    visual saliency; `alpha`: contrast with the embeddings (0: none); `beta`: penalty on sinks (0: none).  `when`:
    select for each query (`step`), drop for good but keep the memory (`mask`), or remove from the cache (`evict`).
    """

    keep: float = 0.9
    lambda_: float = 0.1
    alpha: float = 0.1
    beta: float = 0.1
    score: str = "logits"
    saliency_heads: str = "last"
    scope: str = "generated"
    dropped: str = "merge"
    when: str = "step"
    contrast: str = "pooled"
    mask_rate: float = 0.5
    plausibility: float = 0.1
    cluster_share: float = 0.1
    neighbours: int = 3
    seed: int = 0

    citation: ClassVar[str] = "Zhuang et al., CVPR 2025, arXiv 2501.06553"
    cost: ClassVar[str] = "attention scores of each step; one embedding pass"
    off: ClassVar[str] = "keep=1:alpha=0:beta=0"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name, low in (("keep", 0), ("mask_rate", 0), ("plausibility", 0), ("cluster_share", 0)):
            if not low <= getattr(self, name) <= 1:
                raise ValueError(f"{name} lies between 0 and 1, got {getattr(self, name)}")
        if self.neighbours < 1:
            raise ValueError(f"neighbours is a number of at least 1, got {self.neighbours}")

    @classmethod
    def paper(cls) -> "VASparse":
        """The paper's settings (the defaults)."""
        return cls()

    def _scope(self, call: AttentionCall, memory: Memory, marks: Marks) -> tuple[Tensor, Tensor, Tensor]:
        """Image keys and keys in scope `[batch, kv_head or 1, key]`, of the keys that are still there.

        And how many keys were ever in scope `[batch, 1, 1, 1]`: `S` is a share of these, else evictions would compound.
        """
        image, generated = (x[:, None] for x in marks.rows(call, memory.seen))
        padding = marks.padding(call, memory.seen)
        ever = {"generated": generated[:, 0], "image": image[:, 0], "all": ~padding}[self.scope]
        total = ever.sum(-1)[:, None, None, None]
        if "place" in memory.notes:  # after evictions, each key-value head has its own
            new = torch.arange(memory.seen - call.query.shape[2], memory.seen, device=image.device)
            place = memory.notes["place"]
            place = torch.cat([place, new.expand(*place.shape[:2], -1)], -1)
            memory.notes["place"] = place
            image, generated = image.expand(-1, place.shape[1], -1), generated.expand(-1, place.shape[1], -1)
            image, generated = image.gather(-1, place), generated.gather(-1, place)
        return image, {"generated": generated, "image": image, "all": torch.ones_like(image)}[self.scope], total

    def choose(self, _: int, call: AttentionCall, memory: Memory, marks: Marks) -> tuple[AttentionCall, Tensor] | None:
        """What a layer attends to; see `interp.interventions.primitives.kv_cache.Choose`."""
        heads, kv_heads, n_queries = call.query.shape[1], call.key.shape[1], call.query.shape[2]
        groups = heads // kv_heads
        image, scope, total = self._scope(call, memory, marks)
        if "alive" in memory.notes:
            alive = torch.nn.functional.pad(memory.notes["alive"], (0, n_queries), value=True)
            call = replace(call, mask=alive.repeat_interleave(groups, 1)[:, :, None].expand(-1, -1, n_queries, -1))
        visible = call.visible
        scores = call.scores().float()
        raw = call.pattern(scores)
        image, scope = (x if x.shape[1] == 1 else x.repeat_interleave(groups, 1) for x in (image, scope))

        def extended(name: str, new: Tensor) -> Tensor:
            before = memory.notes.get(name)
            return new if before is None else torch.cat([before, new], -1)

        if self.beta:
            before = memory.notes.get("received", raw.new_zeros(*raw.shape[:2], 0, dtype=torch.float32))
            before = torch.nn.functional.pad(before, (0, raw.shape[-1] - before.shape[-1]))
            received = before[:, :, None] + raw.float().cumsum(2)
            memory.notes["received"] = received[:, :, -1]
            weights = received.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)
            scores = penalised(scores, weights, self.beta)
        if self.keep == 1:
            return call, call.pattern(scores)
        paid = (raw.float() * image[:, :, None]).sum(-1)  # [batch, head, query]
        paid = paid[:, -1:] if self.saliency_heads == "last" else paid.mean(1, keepdim=True)
        everywhere = extended("paid", paid.expand(-1, kv_heads, -1))
        memory.notes["paid"] = everywhere
        inside = scope[:, :, None] & visible
        if not inside.any():  # nothing to choose from: the prefill, where generated tokens are in scope
            return (call, call.pattern(scores)) if self.beta else None
        saliency = running_softmax(everywhere.repeat_interleave(groups, 1), visible)
        importance = (call.scores() / call.scaling).float() if self.score == "logits" else raw.float()
        delta = torch.where(visible, importance, 0).square() if self.score == "logits" else importance
        delta = delta + self.lambda_ * saliency
        if self.when != "step":
            delta = delta.unflatten(1, (kv_heads, groups)).mean(2).repeat_interleave(groups, 1)
        inside = inside.expand_as(delta)
        kept = top_mask(delta, inside, self.keep, None if self.when == "step" else total) | (visible & ~inside)
        if self.when != "step":
            if n_queries > 1:  # the prefill attends to everything; its last query decides what stays
                self._forget(memory, kept[:, ::groups, -1])
                return call, call.pattern(scores)
            self._forget(memory, kept[:, ::groups, -1])
        pattern_call, gone = call, visible & ~kept
        if self.dropped == "merge" and n_queries == 1 and gone.any():
            pattern_call, extra = self._with_merged(call, gone[:, :, 0])
            scores = torch.cat([scores.masked_fill(gone, -torch.inf), extra], -1)
            return pattern_call, call.pattern(scores)
        return call, call.pattern(scores.masked_fill(gone, -torch.inf))

    def _forget(self, memory: Memory, keep: Bool[Tensor, "batch kv_head key"]) -> None:
        """Drop keys for the steps to come."""
        if self.when == "mask":
            memory.notes["alive"] = keep
            return
        order = memory.evict(keep)
        place = memory.notes.get("place")
        memory.notes["place"] = order if place is None else place.gather(-1, order)
        memory.notes["paid"] = memory.notes["paid"].gather(-1, order)
        if "received" in memory.notes:
            groups = memory.notes["received"].shape[1] // order.shape[1]
            memory.notes["received"] = memory.notes["received"].gather(-1, order.repeat_interleave(groups, 1))

    def _with_merged(self, call: AttentionCall, gone: Bool[Tensor, "batch head key"]) -> tuple[AttentionCall, Tensor]:
        """The call with the clusters of dropped tokens as further keys, and the scores of these."""
        groups = call.query.shape[1] // call.key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (call.key, call.value))
        pairs = [
            merged(key[row], value[row], gone[row], self.cluster_share, self.neighbours)
            if gone[row].any()
            else (key[row, :, :0], value[row, :, :0])
            for row in range(len(key))
        ]
        longest = max(k.shape[1] for k, _ in pairs)
        pads = [longest - k.shape[1] for k, _ in pairs]
        keys = torch.stack([torch.nn.functional.pad(k, (0, 0, 0, p)) for (k, _), p in zip(pairs, pads, strict=True)])
        values = torch.stack([torch.nn.functional.pad(v, (0, 0, 0, p)) for (_, v), p in zip(pairs, pads, strict=True)])
        extra = (call.query @ keys.mT).float() * call.scaling
        for row, p in enumerate(pads):
            extra[row, ..., longest - p :] = -torch.inf
        return replace(call, key=torch.cat([key, keys], 2), value=torch.cat([value, values], 2)), extra

    @contextmanager
    def _steer(self, model: LVLM, inputs: Inputs) -> Iterator[dict[str, Any]]:
        with ExitStack() as stack:
            options: dict[str, Any] = {}
            if self.keep < 1 or self.beta:
                options |= stack.enter_context(attending(model, inputs, self.choose))
            if self.alpha:
                phi = embedding_contrast(model, inputs, self.contrast, self.mask_rate, self.seed)
                options["logits_processor"] = [contrasted(phi, self.alpha, self.plausibility)]
            yield options

    @contextmanager
    def __call__(self, model: LVLM) -> Iterator[None]:
        """Steer `model.generate` while open."""
        with model.steered(lambda steered, inputs: self._steer(steered, inputs)):
            yield
