"""StreamingLLM: the first tokens and a window.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024, arXiv 2309.17453.  Keys are hidden,
and keep their positions.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from interp.interventions.base import Within
from interp.interventions.primitives.hidden_keys import HidesKeys, Seen
from interp.models import AttentionCall


@dataclass(frozen=True)
class StreamingLLM(HidesKeys):
    """The first `sinks` tokens and the latest `window` ones; `window=0` changes nothing."""

    sinks: Annotated[int, Within(0, 1_000_000)] = 4
    window: Annotated[int, Within(0, 1_000_000)] = 32

    citation: ClassVar = "Xiao et al., ICLR 2024, arXiv 2309.17453"
    off: ClassVar = "window=0"

    @property
    def is_off(self) -> bool:
        """Whether these settings change nothing."""
        return self.window == 0

    def seen(self, call: AttentionCall, pattern: Tensor, notes: Any) -> Seen:
        """Which keys each query attends to."""
        visible = call.visible
        place = visible.int().cumsum(-1)  # among the keys a query can see, from 1
        return visible & ((place <= self.sinks) | (place > place[..., -1:] - self.window))
