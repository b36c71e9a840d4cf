"""H2O: the keys that received most attention so far, and the latest.

Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", NeurIPS 2023,
arXiv 2306.14048.  Keys are hidden, and may be seen again.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from interp.interventions.base import Kept
from interp.interventions.primitives.hidden_keys import HidesKeys, Seen
from interp.interventions.primitives.kv_cache import Notes, received_so_far
from interp.metrics.selection import top_mask
from interp.models import AttentionCall


@dataclass
class Received(Notes):
    """The attention `[batch, head, key]` each key has received."""

    received: Tensor | None = None


@dataclass(frozen=True)
class H2O(HidesKeys):
    """Half of the kept share for heavy hitters, half for the latest keys; chosen before each query, head by head."""

    keep: Kept = 0.5

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
        received = received_so_far(notes.received, pattern)
        notes.received = received[:, :, -1]
        place = visible.int().cumsum(-1)
        recent = visible & (place > (1 - self.keep / 2) * place[..., -1:])
        return recent | top_mask(received, visible & ~recent, min(1.0, self.keep / 2 / (1 - self.keep / 2)))
