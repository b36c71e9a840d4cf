"""Plain top-k attention: the keys of largest probability, for each query.

VASparse compares with a "vanilla top-K" that is said to choose in layer 1 only (`layers=1`); its files as stored hold
no such code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from interp.interventions.base import Kept, Layers
from interp.interventions.primitives.hidden_keys import HidesKeys, Seen
from interp.metrics.selection import top_mask
from interp.models import LVLM, AttentionCall


@dataclass(frozen=True)
class TopK(HidesKeys):
    """For each query and head, the `keep` share of the keys it attends to most; `layers` auto: in all."""

    keep: Kept = 0.5
    layers: Layers = None

    citation: ClassVar = "plain top-k"
    off: ClassVar = "keep=1"

    @property
    def is_off(self) -> bool:
        """Whether these settings change nothing."""
        return self.keep == 1 or self.layers == ()

    def chosen_layers(self, model: LVLM) -> Sequence[int]:
        """The layers in which keys are hidden."""
        return range(model.n_layers) if self.layers is None else self.layers

    def seen(self, call: AttentionCall, pattern: Tensor, notes: Any) -> Seen:
        """Which keys each query attends to."""
        return top_mask(pattern, call.visible.expand_as(pattern), self.keep)
