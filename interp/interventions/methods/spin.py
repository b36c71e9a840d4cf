"""SPIN: heads that hardly look at the image are suppressed, for each query anew.

Sarkar et al., "Mitigating Hallucinations in Vision-Language Models through Image-Guided Head Suppression", 2025,
arXiv 2505.16411.  Scaling a head's probabilities scales its output.

Paper: "for each text query token" heads with low attention to the picture are suppressed.  Released code
(YUECHE77/SPIN `attentionSPIN.py` @70ff131, which gave its numbers; the default): heads are ranked by their scores
before the softmax, summed over image keys, of the last query only, and only the last position is scaled; the heads
kept are the whole part of their share.  `by=probabilities:queries=text` is the paper's text.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from interp.interventions.base import Layers, Method, Preset, Share, Weight
from interp.interventions.primitives.kv_cache import Marks, NotedLayer, attending
from interp.models import LVLM, AttentionCall, GenerateOptions, Inputs

README = "YUECHE77/SPIN README @34c0565"


@dataclass(frozen=True)
class SPIN(Method):
    """Heads that pay least attention to the image are scaled by `factor`, for each query anew.

    `suppress` is the share of a layer's heads, rounded up; `by`: what a head pays, in `scores` before the softmax or in
    `probabilities`; `queries`: the last one of each pass, or all that are text; `layers` auto: all.
    """

    suppress: Share = 0.05
    factor: Weight = 0.08
    layers: Layers = None
    by: Literal["scores", "probabilities"] = "scores"
    queries: Literal["last", "text"] = "last"

    citation: ClassVar = "Sarkar et al., 2025, arXiv 2505.16411"
    cost: ClassVar = "attention scores of each step"
    off: ClassVar = "factor=1"
    passes: ClassVar = {"main": "heads are judged by how the text that is written looks at the picture"}
    presets: ClassVar = {
        "llava-1.5": Preset({"suppress": 0.05, "factor": 0.08, "layers": tuple(range(32))}, f"{README}, CHAIR"),
        "llava-1.5-pope": Preset({"suppress": 0.2, "factor": 0.1, "layers": tuple(range(32))}, f"{README}, POPE"),
        "llava-13b-mmhal": Preset({"suppress": 0.1, "factor": 0.0, "layers": tuple(range(20))}, f"{README}, MMHal"),
        "qwen-vl": Preset({"suppress": 0.3, "factor": 0.08, "layers": tuple(range(20))}, f"{README}, CHAIR and MMHal"),
    }
    needs_vision: ClassVar = True

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Suppress heads in each step."""
        layers = range(model.n_layers) if self.layers is None else self.layers
        number = model.n_heads - int((1 - self.suppress) * model.n_heads + 1e-9)

        def choose(layer: int, call: AttentionCall, _: NotedLayer, marks: Marks) -> tuple[AttentionCall, Tensor] | None:
            if layer not in layers:
                return None
            image, _generated = marks.rows(call, call.key.shape[2])
            scores = call.scores()
            pattern = call.pattern(scores)
            paid = pattern.float() if self.by == "probabilities" else scores.float().masked_fill(~call.visible, 0)
            looked = (paid * image[:, None, None]).sum(-1)  # [batch, head, query]
            most = looked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            least = most >= model.n_heads - number
            asks = ~image[:, None, -pattern.shape[2] :]
            if self.queries == "last":
                asks = torch.arange(asks.shape[2], device=asks.device).eq(asks.shape[2] - 1).expand_as(asks)
            return call, pattern * torch.where(least & asks, self.factor, 1.0)[..., None].to(pattern)

        if self.factor == 1 or not number:
            yield GenerateOptions()
            return
        with attending(model, inputs, choose) as options:
            yield options
