"""Inside the attention kernel, whatever the backend: what it receives, scores and probabilities from that.

A wrapper of the model's own kernel is registered with transformers' attention interface; it shows each call to a
watcher and then runs the kernel itself, unless the watcher changed something.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.models import compat

PREFIX = "interp-"


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention kernel: queries and keys after rotation, and which key a query may see.

    `mask` is None (causal), `[batch, 1, query, key]` (bool, or added to the scores), or `[batch, key]` (padding).
    """

    query: Float[Tensor, "batch head query d_head"]
    key: Float[Tensor, "batch kv_head key d_head"]
    value: Float[Tensor, "batch kv_head key d_head"]
    mask: Tensor | None
    scaling: float
    softcap: float | None = None
    window: int | None = None
    first: int | None = None
    """Place of the first query among the keys; None: the queries are the last ones."""

    @property
    def start(self) -> int:
        """Place of the first query among the keys."""
        return self.key.shape[2] - self.query.shape[2] if self.first is None else self.first

    @property
    def sees_all(self) -> bool:
        """Whether it is a single query that may attend to every key, itself the last."""
        n_keys = self.key.shape[2]
        last = self.query.shape[2] == 1 and self.start == n_keys - 1
        return last and self.mask is None and (self.window is None or self.window >= n_keys)

    @property
    def visible(self) -> Bool[Tensor, "#batch #head query key"]:
        """Which keys each query may attend to."""
        n_queries, n_keys = self.query.shape[2], self.key.shape[2]
        if self.sees_all:
            return self.query.new_ones(1, 1, 1, n_keys, dtype=torch.bool)
        if self.mask is not None and self.mask.ndim == 4:
            mask = self.mask[..., :n_keys]
            return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        keys = torch.arange(n_keys, device=self.query.device)
        queries = keys[self.start : self.start + n_queries, None]
        seen = queries >= keys if self.window is None else (queries >= keys) & (queries - keys < self.window)
        return seen[None, None] if self.mask is None else seen & self.mask[:, None, None, -n_keys:].bool()

    def at(self, positions: Int[Tensor, "batch query"]) -> "AttentionCall":
        """The same call for some of the queries only."""
        index = positions[:, None, :, None]
        visible = self.visible.expand(len(positions), -1, -1, -1)
        return replace(self, query=self.query.take_along_dim(index, 2), mask=visible.take_along_dim(index, 2))

    def block(self, start: int, stop: int) -> "AttentionCall":
        """The same call for a stretch of its queries, without the keys that come after them; nothing is copied."""
        first, last, mask = self.start + start, self.start + stop, self.mask
        if mask is not None and mask.ndim == 4:  # it may show a query what comes later
            mask, last = mask[:, :, start:stop], self.key.shape[2]
        elif mask is not None:
            mask = mask[:, -self.key.shape[2] :][:, :last]
        query, key, value = self.query[:, :, start:stop], self.key[:, :, :last], self.value[:, :, :last]
        return replace(self, query=query, key=key, value=value, mask=mask, first=first)

    def products(self) -> Float[Tensor, "batch head query key"]:
        """Inner products `q k^T` of all queries with all keys, seen or not."""
        together = self.query.unflatten(1, (self.key.shape[1], -1)).flatten(2, 3)  # the queries of a key-value head
        return (together @ self.key.mT).view(*self.query.shape[:3], -1)

    def scores(
        self, products: Float[Tensor, "batch head query key"] | None = None
    ) -> Float[Tensor, "batch head query key"]:
        """Scaled scores, minus infinity where a key cannot be seen; `products`: those of the call, if at hand."""
        scores = (self.products() if products is None else products) * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if self.sees_all:
            return scores
        causal = self.mask is None and self.window is None
        rest = self.start if causal else 0  # what comes before, every query sees
        scores[..., rest:].masked_fill_(~self.visible[..., rest:], -torch.inf)
        return scores

    def pattern(self, scores: Tensor | None = None) -> Float[Tensor, "batch head query key"]:
        """Attention probabilities; a query that can see nothing (padding) attends to nothing."""
        scores = self.scores() if scores is None else scores
        pattern = scores.softmax(-1, dtype=torch.float32)
        return (pattern if self.mask is None else pattern.nan_to_num(0.0)).to(self.query.dtype)

    def received(self, block: int = 128) -> Float[Tensor, "batch head key"]:
        """The attention that each key receives from all queries together; no whole map is kept.

        A row and a block of queries at a time, so that they stay in the processor's cache.
        """
        batch, n_queries, n_keys = len(self.query), self.query.shape[2], self.key.shape[2]
        total = self.query.new_zeros(batch, self.query.shape[1], n_keys, dtype=torch.float32)
        for row, start in product(range(batch), range(0, n_queries, block)):
            part = self.block(start, min(start + block, n_queries))._of_row(row)
            total[row, :, : part.key.shape[2]] += part.pattern()[0].float().sum(1)
        return total

    def _of_row(self, row: int) -> "AttentionCall":
        """The same call for a row alone."""
        one, mask = slice(row, row + 1), self.mask
        mask = mask if mask is None else mask[row % len(mask), None]
        return replace(self, query=self.query[one], key=self.key[one], value=self.value[one], mask=mask)

    def head_outputs(self, pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch query head d_head"]:
        """What the heads read from the values with these probabilities."""
        together = pattern.unflatten(1, (self.value.shape[1], -1)).flatten(2, 3)  # the queries of a key-value head
        return (together @ self.value).view(*pattern.shape[:3], -1).transpose(1, 2).contiguous()


Watch = Callable[[AttentionCall], tuple[AttentionCall, Tensor | None] | None]
"""Sees a call; may return another call to make, and probabilities `[batch, head, query, key]` to make it with.

Without these the model's own kernel makes the call; its mask must then be one that the backend takes."""

WATCH = "_interp_watch"
"""Where an attention module keeps its open watch: a registered kernel is given nothing else to find it by."""


def _watched(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *_: Any,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    scaling = options.get("scaling")
    call = AttentionCall(
        query,
        key,
        value,
        mask,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        options.get("softcap"),
        options.get("sliding_window"),
    )
    watch: Watch | None = module.__dict__.get(WATCH)
    changed = None if watch is None else watch(call)
    if changed is not None:
        call, pattern = changed
        if pattern is not None:
            return call.head_outputs(pattern), pattern
        query, key, value, mask = call.query, call.key, call.value, call.mask
    return compat.kernel(name, module)(module, query, key, value, mask, **options)


@contextmanager
def watched(configs: list[Any], watches: dict[nn.Module, Watch]) -> Iterator[None]:
    """While open, each of these attention modules shows its calls to its watch; inside another one, instead of that."""
    backend = compat.backend_of(configs[0]).removeprefix(PREFIX)
    name = PREFIX + backend
    compat.register_kernel(name, partial(_watched, backend), backend)
    before = {module: module.__dict__.get(WATCH) for module in watches}
    for module, watch in watches.items():
        module.__dict__[WATCH] = watch
    try:
        with compat.attention_backend(configs, name):
            yield
    finally:
        for module, old in before.items():
            if old is None:
                del module.__dict__[WATCH]
            else:
                module.__dict__[WATCH] = old
