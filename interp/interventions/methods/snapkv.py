"""SnapKV: of the prompt, the keys that its last queries attend to.

Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024, arXiv 2404.14469.  Votes are
pooled over neighbouring keys, as there.  Keys are hidden, not removed.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp.interventions.base import Count, Kept
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
    window: Count = 8
    pool: Count = 5

    citation: ClassVar = "Li et al., NeurIPS 2024, arXiv 2404.14469"
    off: ClassVar = "keep=1"
    notes: ClassVar = KeptOfPrompt

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
            pooled = torch.nn.functional.max_pool1d(votes, self.pool, 1, self.pool // 2)
            prompt = visible[:, :, -1].expand_as(votes).clone()
            prompt[..., -self.window :] = False
            kept = top_mask(pooled, prompt, self.keep)
            kept[..., -self.window :] = True
            notes.kept = kept
            return visible
        kept = notes.kept
        assert kept is not None, "the prefill comes first"
        return visible & torch.nn.functional.pad(kept, (0, pattern.shape[-1] - kept.shape[-1]), value=True)[:, :, None]
