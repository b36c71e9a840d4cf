"""Taking the sink away: the first tokens are hidden from later queries, or keep their attention and give nothing.

A probe, not a paper's method: what of a caption rests on the sink.  It is named by its path,
`interp.interventions.methods.sink_edit:SinkEdit:op=drain`.  For the penalty see VASparse's `beta`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from interp.interventions.base import Count, Method
from interp.interventions.primitives.kv_cache import Marks, NotedLayer, attending
from interp.models import LVLM, AttentionCall, GenerateOptions, Inputs


@dataclass(frozen=True)
class SinkEdit(Method):
    """Later queries do not see the first tokens (`mask`), or read nothing from them (`drain`).

    `tokens` is how many are first, from the first that is no padding; they themselves attend as before.  `op=none`
    changes nothing.
    """

    op: Literal["mask", "drain", "none"] = "mask"
    tokens: Count = 1

    citation: ClassVar = "a probe of interp; sinks: Gu et al., arXiv 2410.10781"
    cost: ClassVar = "attention scores of each step"
    off: ClassVar = "op=none"
    passes: ClassVar = {"main": "the sink is taken from the cache of the text that is written"}

    def choose(self, _: int, call: AttentionCall, __: NotedLayer, ___: Marks) -> tuple[AttentionCall, Tensor]:
        """What a layer attends to; see `interp.interventions.primitives.kv_cache.Choose`."""
        scores, visible = call.scores(), call.visible
        place = visible.int().cumsum(-1)  # among the keys a query sees, from 1
        gone = visible & (place <= self.tokens) & (place[..., -1:] > self.tokens)
        if self.op == "mask":
            return call, call.pattern(scores.masked_fill(gone, -torch.inf))
        return call, call.pattern(scores).masked_fill(gone, 0)

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Take the sink away in each step."""
        if self.op == "none":
            yield GenerateOptions()
            return
        with attending(model, inputs, self.choose) as options:
            yield options
