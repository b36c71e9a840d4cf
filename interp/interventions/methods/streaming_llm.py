"""StreamingLLM: the first tokens and a window.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024, arXiv 2309.17453.  Keys are hidden,
and keep their positions.

Released code (mit-han-lab/streaming-llm `kv_cache.py` @d729b3f): a query sees the first tokens, the latest `window`
earlier ones, and itself.  In a chat the prompt is read whole (`prefill=whole`, the default); in its perplexity runs
token by token (`prefill=windowed`).  There positions are counted inside the cache, which serves texts beyond the length
that a model was trained for; within it nothing needs mending, and that part is left out.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from interp.interventions.base import Within
from interp.interventions.primitives.hidden_keys import HidesKeys, Left, Seen, left, without
from interp.interventions.primitives.kv_cache import NotedLayer
from interp.models import AttentionCall


@dataclass(frozen=True)
class StreamingLLM(HidesKeys):
    """A query sees the first `sinks` tokens, the latest `window` ones and itself; `window=0` changes nothing."""

    sinks: Annotated[int, Within(0, 1_000_000)] = 4
    window: Annotated[int, Within(0, 1_000_000)] = 32
    prefill: Literal["whole", "windowed"] = "whole"

    citation: ClassVar = "Xiao et al., ICLR 2024, arXiv 2309.17453"
    off: ClassVar = "window=0"
    notes: ClassVar = Left

    @property
    def is_off(self) -> bool:
        """Whether these settings change nothing."""
        return self.window == 0

    def seen(self, call: AttentionCall, pattern: Tensor, notes: Any) -> Seen:
        """Which keys each query attends to."""
        visible = call.visible
        if self.prefill == "whole" and pattern.shape[2] > 1:
            return visible
        place = visible.int().cumsum(-1)  # among the keys a query can see, from 1
        return visible & ((place <= self.sinks) | (place > place[..., -1:] - self.window - 1))

    def attends(self, call: AttentionCall, cache: NotedLayer[Left]) -> tuple[AttentionCall, Tensor | None] | None:
        """The same where what no later query sees leaves the cache; a layer with a window hides."""
        if call.window is not None:
            return super().attends(call, cache)
        if call.query.shape[2] == 1:
            place = (alive := left(call, cache.notes)).int().cumsum(-1)
            last = place[..., -1:] - self.window - 1
            return without(call, cache, alive & ((place <= self.sinks) | (place > last))), None
        found = super().attends(call, cache) if self.prefill == "windowed" else None
        real = call.visible[:, :, -1].expand(*call.query.shape[:2], -1)
        place = real.int().cumsum(-1)
        without(call, cache, real & ((place <= self.sinks) | (place > place[..., -1:] - self.window)))
        return found
