"""VASparse: visual-aware token sparsification, sparse visual contrastive decoding, and a penalty on sinks.

Zhuang et al., "VASparse: Towards Efficient Visual Hallucination Mitigation via Visual-Aware Token Sparsification",
CVPR 2025, arXiv 2501.06553, eqs. 3 to 7.

Symbols: `delta_i = <q,K_i>^2 + lambda P_i` is `delta` (eq. 4); `P` is `saliency` (eq. 5); `S` is `keep` times the
tokens in scope (eq. 3 keeps the best); eq. 6 is `Contrast`; `w` is `weights` (eq. 7); `lambda_`, `alpha`, `beta`,
`mask_rate` keep their names.

The mathematics is in `interp.metrics.selection`.

Released code, as read in a copy (Omid-Nejati/MedVCD @f5bfa60): it stops with an error as published, so no number comes
from it; its selection lies in a branch that is switched off, squares the *probability*, averaged over heads and
queries, and its only caller gives a constant for `P`; what would run merges the oldest generated keys, in layer 0; its
contrast is `theta - 0.1 phi`, `phi` the head's reading of the last embedding (`form=released:contrast=last`); no sink
penalty is in the files read.

`score` says what the first term of eq. 4 is: `probs_squared` (default), `probs`, `logits_squared` (the paper's letter,
the raw inner product) or `scaled_squared` (divided by the square root of d).  The default is the one in which the
paper's `lambda` can act at all: `P` is a softmax over n keys and differs between them by less than 1.7 / n, against
squared inner products of 1 to 1,000, probabilities of about 1 / n, and squared ones of about 1 / n^2.

Other readings, where paper and code differ or are silent: `saliency_heads`, `scope`, `dropped`, `when`, `contrast`.
`P` and `w` are accumulated from the model's own probabilities, before penalty and selection, else a row would depend
on the rows before it within the prefill. Clusters of dropped tokens: a tenth of them (`cluster_share`), density from
the `neighbours` nearest; a dropped token is merged at the step that drops it, in the prefill it is discarded.  With
`evict`, the query heads that share keys decide together.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.interventions.base import Count, Method, Preset, Seed, Share, Weight
from interp.interventions.primitives.contrast import Contrast, EmbeddingContrast, EmbeddingReader, Subtraction
from interp.interventions.primitives.kv_cache import (
    Marks,
    NotedLayer,
    Notes,
    attending,
    kept_first,
    received_so_far,
)
from interp.metrics.selection import membership, penalised, running_softmax, share_of, top_mask
from interp.models import LVLM, AttentionCall, GenerateOptions, Inputs


@dataclass
class Kept(Notes):
    """What VASparse keeps beside the keys of a layer.

    `received` `[batch, head, key]`: the attention each key has received; `paid` `[batch, kv_head, key]`: what each
    token, as a query, paid to the image; `alive` `[batch, kv_head, key]`: which keys are not dropped; `place`
    `[batch, kv_head, key]`: which tokens the keys left after evictions are.
    """

    received: Tensor | None = None
    paid: Tensor | None = None
    alive: Tensor | None = None
    place: Tensor | None = None


@dataclass(frozen=True)
class Scope:
    """Of the keys that are still there, those of the image and those to choose from; `total` were ever in scope.

    `S` is a share of `total`, else evictions would compound.  `every`: that number where all rows have the same;
    `start`: none of the keys before is in scope.
    """

    image: Bool[Tensor, "batch #head key"]
    inside: Bool[Tensor, "batch #head key"]
    total: Int[Tensor, "batch 1 1 1"]
    every: int | None
    start: int


@dataclass(frozen=True)
class VASparse(Method):
    """Visual-aware token selection, contrast with the embeddings, and a penalty on sinks.

    `keep`: share of the tokens in `scope` that a query may attend to (1: no selection); `lambda_`: weight of their
    visual saliency; `alpha`: contrast with the embeddings (0: none); `beta`: penalty on sinks (0: none).  `when`:
    select for each query (`step`), drop for good but keep the memory (`mask`), or remove from the cache (`evict`).
    `form`: eq. 6 among plausible tokens, or the released code's difference of any.
    """

    keep: Share = 0.9
    lambda_: Weight = 0.1
    alpha: Weight = 0.1
    beta: Weight = 0.1
    score: Literal["probs_squared", "probs", "logits_squared", "scaled_squared"] = "probs_squared"
    saliency_heads: Literal["last", "mean"] = "last"
    scope: Literal["generated", "all", "image"] = "generated"
    dropped: Literal["merge", "discard"] = "merge"
    when: Literal["step", "mask", "evict"] = "step"
    contrast: EmbeddingContrast = "pooled"
    form: Literal["paper", "released"] = "paper"
    mask_rate: Share = 0.5
    plausibility: Share = 0.1
    cluster_share: Share = 0.1
    neighbours: Count = 3
    seed: Seed = 0

    citation: ClassVar = "Zhuang et al., CVPR 2025, arXiv 2501.06553"
    cost: ClassVar = "attention scores of each step; one embedding pass"
    off: ClassVar = "keep=1:alpha=0:beta=0"
    passes: ClassVar = {"main": "keys are dropped from the cache of the text that is written"}
    presets: ClassVar = {
        "paper": Preset({"score": "logits_squared"}, "the paper: lambda, alpha, beta 0.1, S 0.9 L, mask rate 0.5"),
        "code": Preset(
            {"keep": 1.0, "beta": 0.0, "contrast": "last", "form": "released"}, "what is left of its decoding file"
        ),
    }

    @classmethod
    def paper(cls) -> "VASparse":
        """The paper's letter: the defaults, with the raw inner product squared."""
        return cls(score="logits_squared")

    def choose(
        self, _: int, call: AttentionCall, cache: NotedLayer[Kept], marks: Marks
    ) -> tuple[AttentionCall, Tensor] | None:
        """What a layer attends to; see `interp.interventions.primitives.kv_cache.Choose`."""
        scope = self._scope(call, cache, marks)
        call = _without_the_dropped(call, cache.notes)
        if not call.sees_all:
            call = replace(call, mask=call.visible)
        products = call.products()
        scores = call.scores(products).float()
        raw = call.pattern(scores)
        if self.beta:
            scores = self._with_sink_penalty(scores, raw, call, cache.notes)
        if self.keep == 1:
            return call, call.pattern(scores)
        paid = self._paid(raw, scope, call.key.shape[1], cache.notes)
        if self._nothing_to_drop(call, scope):
            return (call, call.pattern(scores)) if self.beta else None
        inside = scope.inside[:, :, None] if call.sees_all else scope.inside[:, :, None] & call.visible
        chosen = self._chosen(call, products, raw, paid, inside, scope)
        if self.when != "step":
            kept = chosen | (call.visible & ~inside)
            self._forget(cache, kept[:, :: call.query.shape[1] // call.key.shape[1], -1])
            if call.query.shape[2] > 1:  # the prefill attends to everything; its last query decides what stays
                return call, call.pattern(scores)
        gone = inside & ~chosen
        if self.dropped == "merge" and call.query.shape[2] == 1:
            return call, self._merging(call, products, scores, gone, scope)
        return call, call.pattern(scores.masked_fill(gone, -torch.inf))

    def _scope(self, call: AttentionCall, cache: NotedLayer[Kept], marks: Marks) -> Scope:
        """Scope, by query head where key-value heads have keys of their own."""

        def make() -> Scope:
            image, generated = marks.rows(call, cache.seen)
            ever = image if self.scope == "image" else generated
            if self.scope == "all":
                ever = ~marks.padding(call, cache.seen)
            total = ever.sum(-1)
            numbers = set(total.tolist())
            inside = torch.ones_like(image) if self.scope == "all" else ever
            every = numbers.pop() if len(numbers) == 1 else None
            start = int(inside.any(0).int().argmax())
            return Scope(image[:, None], inside[:, None], total[:, None, None, None], every, start)

        scope = marks.once("scope", call, cache.seen, make)
        if cache.notes.place is None:
            return scope
        new = torch.arange(cache.seen - call.query.shape[2], cache.seen, device=call.query.device)
        place = torch.cat([cache.notes.place, new.expand(*cache.notes.place.shape[:2], -1)], -1)
        cache.notes.place = place
        groups = call.query.shape[1] // place.shape[1]
        image, inside = (
            x.expand(-1, place.shape[1], -1).gather(-1, place).repeat_interleave(groups, 1)
            for x in (scope.image, scope.inside)
        )
        return Scope(image, inside, scope.total, scope.every, 0)

    def _with_sink_penalty(self, scores: Tensor, raw: Tensor, call: AttentionCall, notes: Kept) -> Tensor:
        """Sink penalty (eq. 7): scores of keys that have received much made smaller."""
        received = received_so_far(notes.received, raw)
        notes.received = received[:, :, -1]
        if call.sees_all:
            return penalised(scores, received.softmax(-1), self.beta)
        weights = received.masked_fill(~call.visible, -torch.inf).softmax(-1).nan_to_num(0)
        return penalised(scores, weights, self.beta)

    def _paid(self, raw: Tensor, scope: Scope, kv_heads: int, notes: Kept) -> Float[Tensor, "batch kv_head key"]:
        """Saliency before its softmax: what each token paid to the image when it was the query.

        The same for all heads; written once for each key-value head where these evict keys of their own.
        """
        looks, image = raw, scope.image
        if self.saliency_heads == "last":
            looks, image = raw[:, -1:], image[:, -1:]
        paid = (looks.float() * image[:, :, None]).sum(-1)  # [batch, head, query]
        if paid.shape[1] > 1:
            paid = paid.mean(1, keepdim=True)
        if self.when == "evict":
            paid = paid.expand(-1, kv_heads, -1)
        notes.paid = paid if notes.paid is None else torch.cat([notes.paid, paid], -1)
        return notes.paid

    def _nothing_to_drop(self, call: AttentionCall, scope: Scope) -> bool:
        """Whether every query keeps all keys in scope, as the prefill does where generated tokens are in scope."""
        if scope.every == 0 or (self.scope == "generated" and call.query.shape[2] > 1):
            return True
        step = self.when == "step" and call.query.shape[2] == 1 and scope.every is not None
        return step and share_of(scope.every or 0, self.keep) == scope.every

    def _chosen(
        self, call: AttentionCall, products: Tensor, raw: Tensor, paid: Tensor, inside: Tensor, scope: Scope
    ) -> Bool[Tensor, "batch head query key"]:
        """Selection (eqs. 3 to 5): the `S` keys of largest `delta` in scope."""
        kv_heads, visible = call.key.shape[1], None if call.sees_all else call.visible
        if paid.shape[1] > 1 or (visible is not None and visible.shape[1] > 1):  # heads see keys of their own
            paid = paid.repeat_interleave(call.query.shape[1] // paid.shape[1], 1)
        delta = self.importance(call, raw, products) + self.lambda_ * running_softmax(paid, visible)
        if self.when == "step":
            delta, inside = delta[..., scope.start :], inside[..., scope.start :]  # fewer to sort
            chosen = top_mask(delta, inside, self.keep, scope.every if call.sees_all else None)
            return torch.nn.functional.pad(chosen, (scope.start, 0))
        groups = call.query.shape[1] // kv_heads
        delta = delta.unflatten(1, (kv_heads, groups)).mean(2).repeat_interleave(groups, 1)
        return top_mask(delta, inside, self.keep, scope.total)

    def importance(
        self, call: AttentionCall, raw: Tensor, products: Tensor | None = None
    ) -> Float[Tensor, "batch head query key"]:
        """The first term of eq. 4, as it is read, of every key, seen or not; `products`: those of the call."""
        if self.score == "probs":
            return raw.float()
        if self.score == "probs_squared":
            return raw.float().square()
        products = (call.products() if products is None else products).float()
        return (products if self.score == "logits_squared" else products * call.scaling).square()

    def _forget(self, cache: NotedLayer[Kept], keep: Bool[Tensor, "batch kv_head key"]) -> None:
        """Eviction: keys are dropped for the steps to come, from the memory as well or from sight only."""
        notes = cache.notes
        if self.when == "mask":
            notes.alive = keep
            return
        order, notes.alive = kept_first(keep)
        cache.evict(order)
        notes.place = order if notes.place is None else notes.place.gather(-1, order)
        assert notes.paid is not None, "saliency comes before"
        notes.paid = notes.paid.gather(-1, order)
        if notes.received is not None:
            groups = notes.received.shape[1] // order.shape[1]
            notes.received = notes.received.gather(-1, order.repeat_interleave(groups, 1))

    def _merging(
        self, call: AttentionCall, products: Tensor, scores: Tensor, gone: Tensor, scope: Scope
    ) -> Float[Tensor, "batch head 1 key"]:
        """Merging: the clusters of dropped tokens are further keys, for this query.

        A cluster's probability falls to each of its members, whose values it sums: rows may hold more than one.
        """
        member, empty = self._clusters(call, gone[:, :, 0], scope)
        of = member.to(products.dtype)
        extra = (products @ of.mT).float() * call.scaling
        if empty is not None:
            extra = extra.masked_fill(empty[:, :, None], -torch.inf)
        pattern = call.pattern(torch.cat([scores.masked_fill(gone, -torch.inf), extra], -1))
        n_keys = scores.shape[-1]
        return pattern[..., :n_keys] + pattern[..., n_keys:] @ of

    def _clusters(self, call: AttentionCall, gone: Tensor, scope: Scope) -> tuple[Tensor, Tensor | None]:
        """The clusters' members `[batch, head, cluster, key]`, and which clusters are empty, where rows have fewer."""
        key, by_group = call.key[:, :, None], gone.unflatten(1, (call.key.shape[1], -1))  # keys serve a group of heads
        share, neighbours = self.cluster_share, self.neighbours
        if self.when == "step" and call.sees_all and scope.every is not None:
            n = scope.every - share_of(scope.every, self.keep)
            return membership(key, by_group, n, share, neighbours).flatten(1, 2), None
        numbers = gone[:, 0].sum(-1).tolist()  # as many in each head
        rows = [membership(key[i], by_group[i], n, share, neighbours).flatten(0, 1) for i, n in enumerate(numbers)]
        most = max(row.shape[1] for row in rows)
        member = torch.stack([torch.nn.functional.pad(row, (0, 0, 0, most - row.shape[1])) for row in rows])
        return member, ~member.any(-1)

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Select, penalise and contrast in each step."""
        with ExitStack() as stack:
            options = GenerateOptions()
            if self.keep < 1 or self.beta:
                options = stack.enter_context(attending(model, inputs, self.choose, Kept))
            if self.alpha:
                phi = EmbeddingReader(model, inputs, self.contrast, self.mask_rate, self.seed)
                paper = self.form == "paper"
                contrast = Contrast(phi, self.alpha, self.plausibility) if paper else Subtraction(phi, self.alpha)
                options = replace(options, processors=(contrast,), in_step=True)
            yield options


def _without_the_dropped(call: AttentionCall, notes: Kept) -> AttentionCall:
    """The call with keys that were dropped out of sight."""
    if notes.alive is None:
        return call
    heads, kv_heads, n_queries = call.query.shape[1], call.key.shape[1], call.query.shape[2]
    alive = torch.nn.functional.pad(notes.alive, (0, n_queries), value=True)
    mask = alive.repeat_interleave(heads // kv_heads, 1)[:, :, None].expand(-1, -1, n_queries, -1)
    return replace(call, mask=mask)
