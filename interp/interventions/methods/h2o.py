"""H2O: the keys that received most attention so far, and the latest.

Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", NeurIPS 2023,
arXiv 2306.14048.

Paper and released code (FMInference/H2O `utils_real_drop` @0ee6a85, `utils_hh` @61e8089; `evict=true`, the default):
the prompt is read whole; budgets are whole parts of shares of the prompt, half for heavy hitters and half for the
latest keys, fixed from then on; a key that is gone does not come back, and only attention that was paid counts.  Text
generation there kept a fifth.  `evict=false` is how interp read it before: a share of the current length, also while
the prompt is read, by the attention that would have been paid, and keys may be seen again.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from interp.interventions.base import Kept
from interp.interventions.primitives.hidden_keys import HidesKeys, Seen
from interp.interventions.primitives.kv_cache import Notes, received_so_far
from interp.metrics.selection import top_mask
from interp.models import AttentionCall


@dataclass
class Received(Notes):
    """The attention `[batch, head, key]` each key has received, which keys are left, and how many stay of a kind."""

    received: Tensor | None = None
    alive: Tensor | None = None
    budget: Tensor | None = None


@dataclass(frozen=True)
class H2O(HidesKeys):
    """Half of the kept share for heavy hitters, half for the latest keys; chosen before each query, head by head.

    `keep` is a share of the prompt; with `evict=false` of all keys so far, and what is hidden may be seen again.
    """

    keep: Kept = 0.2
    evict: bool = True

    citation: ClassVar = "Zhang et al., NeurIPS 2023, arXiv 2306.14048"
    off: ClassVar = "keep=1"
    notes: ClassVar = Received

    @property
    def is_off(self) -> bool:
        """Whether these settings change nothing."""
        return self.keep == 1

    def seen(self, call: AttentionCall, pattern: Tensor, notes: Received) -> Seen:
        """Which keys each query attends to."""
        visible = call.visible.expand_as(pattern)
        if self.evict:
            return self._left(visible, pattern, notes)
        received = received_so_far(notes.received, pattern)
        notes.received = received[:, :, -1]
        place = visible.int().cumsum(-1)
        recent = visible & (place > (1 - self.keep / 2) * place[..., -1:])
        return recent | top_mask(received, visible & ~recent, min(1.0, self.keep / 2 / (1 - self.keep / 2)))

    def _left(self, visible: Seen, pattern: Tensor, notes: Received) -> Seen:
        """What has not been evicted: the prompt sees all of itself, a later query what is left and itself."""
        if notes.alive is None or notes.received is None or notes.budget is None:
            notes.received, notes.alive = pattern.float().sum(2), visible[:, :, -1].clone()
            n_prompt = notes.alive.any(1).sum(-1)
            notes.budget = (self.keep / 2 * n_prompt + 1e-9).long()
            return visible
        alive, budget = notes.alive, notes.budget[:, None, None]
        place = alive.int().cumsum(-1)
        full = place[..., -1:] > 2 * budget
        recent = alive & (place > place[..., -1:] - budget)
        old = alive & ~recent
        heavy = top_mask(notes.received, old, 1.0, budget.expand(*old.shape[:2], 1))
        stays = torch.where(full, recent | heavy, alive)
        notes.alive = torch.nn.functional.pad(stays, (0, 1), value=True)
        paid = (pattern.float() * notes.alive[:, :, None])[:, :, 0]
        paid = paid / paid.sum(-1, keepdim=True)
        notes.received = torch.nn.functional.pad(notes.received, (0, 1)) + paid
        return notes.alive[:, :, None] & visible
