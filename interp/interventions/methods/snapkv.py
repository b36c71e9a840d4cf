"""SnapKV: of the prompt, the keys that its last queries attend to.

Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024, arXiv 2404.14469.  Votes are
pooled over neighbouring keys, as there.  The others leave the cache.

Released code (FasterDecoding/SnapKV `snapkv_utils.py` @395b54d; the default): the votes of the last `window` queries
for the keys before them are summed, and pooled over neighbours among these, by the mean with zeros beyond the ends
(`average`).  `keep` is the share of these keys that stay, there `(capacity - window) / keys`.  The paper's runs:
window 32, pools of 7, the maximum [recalled].
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.interventions.base import Count, Kept, Preset
from interp.interventions.primitives.hidden_keys import HidesKeys, Left, Seen, left, over, without
from interp.interventions.primitives.kv_cache import NotedLayer
from interp.metrics.selection import top_mask
from interp.models import AttentionCall


@dataclass(frozen=True)
class SnapKV(HidesKeys):
    """Of the prompt, the `keep` share of keys that its last `window` queries attend to most, and these themselves."""

    keep: Kept = 0.5
    window: Count = 32
    pool: Count = 5
    pooling: Literal["average", "max"] = "average"

    citation: ClassVar = "Li et al., NeurIPS 2024, arXiv 2404.14469"
    off: ClassVar = "keep=1"
    notes: ClassVar = Left
    presets: ClassVar = {
        "monkeypatch": Preset({"window": 32, "pool": 5, "pooling": "average"}, "FasterDecoding/SnapKV @395b54d"),
        "paper": Preset({"window": 32, "pool": 7, "pooling": "max"}, "the paper's runs [recalled]"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool % 2 == 0:
            raise ValueError(f"pool of SnapKV is an odd number, got {self.pool}")

    @property
    def is_off(self) -> bool:
        """Whether these settings change nothing."""
        return self.keep == 1

    def seen(self, call: AttentionCall, pattern: Tensor, notes: Left) -> Seen:
        """Which keys each query attends to: the prefill to all, later queries to what is left."""
        visible = call.visible
        if pattern.shape[2] > 1:
            notes.alive = self.kept(pattern[:, :, -self.window :], visible[:, :, -1])
            return visible
        return visible & left(call, notes)[:, :, None]

    def kept(self, last: Tensor, real: Bool[Tensor, "#batch #head key"]) -> Bool[Tensor, "batch head key"]:
        """Which keys stay, by what the last queries attend to."""
        votes: Float[Tensor, "batch head key"] = last.float().sum(2)
        prompt = real.expand_as(votes).clone()
        prompt[..., -self.window :] = False
        votes = torch.where(prompt, votes, 0)
        pool = torch.nn.functional.avg_pool1d if self.pooling == "average" else torch.nn.functional.max_pool1d
        kept = top_mask(pool(votes, self.pool, 1, self.pool // 2), prompt, self.keep)
        kept[..., -self.window :] = True
        return kept

    def attends(self, call: AttentionCall, cache: NotedLayer[Left]) -> tuple[AttentionCall, Tensor | None] | None:
        """The same where what is not seen leaves the cache; a layer with a window counts places, and hides."""
        n = call.query.shape[2]
        if call.window is not None:
            return super().attends(call, cache)
        if n == 1:
            return over(call, cache, cache.notes), None
        last = call.block(max(0, n - self.window), n)
        real = last.visible[:, :, -1]
        without(call, cache, self.kept(last.pattern(), real) & real)
        return None
