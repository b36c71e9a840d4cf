"""Plain top-k attention: the keys of largest probability, for each query."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from interp.interventions.base import Kept
from interp.interventions.primitives.hidden_keys import HidesKeys, Seen
from interp.metrics.selection import top_mask
from interp.models import AttentionCall


@dataclass(frozen=True)
class TopK(HidesKeys):
    """For each query and head, the `keep` share of the keys it attends to most."""

    keep: Kept = 0.5

    citation: ClassVar = "plain top-k"
    off: ClassVar = "keep=1"

    @property
    def is_off(self) -> bool:
        """Whether these settings change nothing."""
        return self.keep == 1

    def seen(self, call: AttentionCall, pattern: Tensor, notes: Any) -> Seen:
        """Which keys each query attends to."""
        return top_mask(pattern, call.visible.expand_as(pattern), self.keep)
