"""H2O: the keys that received most attention so far, and the latest.

Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", NeurIPS 2023,
arXiv 2306.14048.

Paper and released code (FMInference/H2O `utils_real_drop` @0ee6a85, `utils_hh` @61e8089; `evict=true`, the default):
the prompt is read whole; budgets are whole parts of shares of the prompt, half for heavy hitters and half for the
latest keys, fixed from then on; a key that is gone does not come back, and only attention that was paid counts.  Text
generation there kept a fifth.  `evict=false` is how interp read it before: a share of the current length, also while
the prompt is read, by the attention that would have been paid, and keys may be seen again.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from interp.interventions.base import Kept
from interp.interventions.primitives.hidden_keys import HidesKeys, Left, Seen, left, without
from interp.interventions.primitives.kv_cache import NotedLayer, received_so_far
from interp.metrics.selection import top_mask
from interp.models import AttentionCall


@dataclass
class Received(Left):
    """Beside which keys are left: the attention `[batch, head, key]` each has received, and how many stay of a kind."""

    received: Tensor | None = None
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
        if notes.alive is None or notes.received is None:
            self._begin(notes, pattern.float().sum(2), visible[:, :, -1].clone())
            return visible
        notes.alive = torch.nn.functional.pad(self._stays(notes.alive, notes), (0, 1), value=True)
        paid = (pattern.float() * notes.alive[:, :, None])[:, :, 0]
        paid = paid / paid.sum(-1, keepdim=True)
        notes.received = torch.nn.functional.pad(notes.received, (0, 1)) + paid
        return notes.alive[:, :, None] & visible

    def _begin(self, notes: Received, received: Tensor, alive: Tensor) -> None:
        """What the prompt has paid, and the budgets that its length gives."""
        notes.received, notes.alive = received, alive
        notes.budget = (self.keep / 2 * alive.any(1).sum(-1) + 1e-9).long()

    def _stays(self, alive: Tensor, notes: Received) -> Tensor:
        """Of the keys that are left, those that stay for the next query."""
        assert notes.received is not None, "the prompt comes first"
        assert notes.budget is not None, "the prompt comes first"
        budget = notes.budget[:, None, None]
        place = alive.int().cumsum(-1)
        full = place[..., -1:] > 2 * budget
        recent = alive & (place > place[..., -1:] - budget)
        old = alive & ~recent
        heavy = top_mask(notes.received, old, 1.0, budget.expand(*old.shape[:2], 1))
        return torch.where(full, recent | heavy, alive)

    def attends(self, call: AttentionCall, cache: NotedLayer[Received]) -> tuple[AttentionCall, Tensor | None] | None:
        """The same where what is evicted leaves the cache; a layer with a window hides."""
        notes, n = cache.notes, call.query.shape[2]
        if not self.evict or call.window is not None:
            return super().attends(call, cache)
        if n > 1:
            last = call.block(n - 1, n).visible[:, :, 0]
            self._begin(notes, call.received(), last.expand(*call.query.shape[:2], -1).clone())
            return None
        assert notes.received is not None, "the prompt comes first"
        notes.received = torch.nn.functional.pad(notes.received, (0, 1))
        alive = left(call, notes)
        before = replace(notes, received=notes.received[..., :-1])
        stays = torch.nn.functional.pad(self._stays(alive[..., :-1], before), (0, 1), value=True)
        call = without(call, cache, stays, "received")
        pattern = call.pattern()
        notes.received = notes.received + pattern[:, :, 0].float()
        return call, pattern
