"""SnapKV: of the prompt, the keys that its last queries attend to.

Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024, arXiv 2404.14469.  Votes are
pooled over neighbouring keys, as there.  Keys are hidden, not removed.

Released code (FasterDecoding/SnapKV `snapkv_utils.py` @395b54d; the default): the votes of the last `window` queries
for the keys before them are summed, and pooled over neighbours among these, by the mean with zeros beyond the ends
(`average`).  `keep` is the share of these keys that stay, there `(capacity - window) / keys`.  The paper's runs:
window 32, pools of 7, the maximum [recalled].
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.interventions.base import Count, Kept, Preset
from interp.interventions.primitives.hidden_keys import HidesKeys, Seen
from interp.interventions.primitives.kv_cache import Notes
from interp.metrics.selection import top_mask
from interp.models import AttentionCall


@dataclass
class KeptOfPrompt(Notes):
    """Which keys `[batch, head, key]` of the prompt stay."""

    kept: Tensor | None = None


@dataclass(frozen=True)
class SnapKV(HidesKeys):
    """Of the prompt, the `keep` share of keys that its last `window` queries attend to most, and these themselves."""

    keep: Kept = 0.5
    window: Count = 32
    pool: Count = 5
    pooling: Literal["average", "max"] = "average"

    citation: ClassVar = "Li et al., NeurIPS 2024, arXiv 2404.14469"
    off: ClassVar = "keep=1"
    notes: ClassVar = KeptOfPrompt
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

    def seen(self, call: AttentionCall, pattern: Tensor, notes: KeptOfPrompt) -> Seen:
        """Which keys each query attends to: the prefill to all, later queries to what is left."""
        visible = call.visible
        if pattern.shape[2] > 1:
            votes: Float[Tensor, "batch head key"] = pattern[:, :, -self.window :].float().sum(2)
            prompt = visible[:, :, -1].expand_as(votes).clone()
            prompt[..., -self.window :] = False
            votes = torch.where(prompt, votes, 0)
            pool = torch.nn.functional.avg_pool1d if self.pooling == "average" else torch.nn.functional.max_pool1d
            kept = top_mask(pool(votes, self.pool, 1, self.pool // 2), prompt, self.keep)
            kept[..., -self.window :] = True
            notes.kept = kept
            return visible
        kept = notes.kept
        assert kept is not None, "the prefill comes first"
        return visible & torch.nn.functional.pad(kept, (0, pattern.shape[-1] - kept.shape[-1]), value=True)[:, :, None]
