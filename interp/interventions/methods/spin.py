"""SPIN: heads that hardly look at the image are suppressed, for each query anew.

Sarkar et al., "Mitigating Hallucinations in Vision-Language Models through Image-Guided Head Suppression", 2025,
arXiv 2505.16411.  Scaling a head's probabilities scales its output.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from interp.interventions.base import Layers, Method, Share, Weight
from interp.interventions.primitives.kv_cache import Marks, NotedLayer, attending
from interp.models import LVLM, AttentionCall, GenerateOptions, Inputs


@dataclass(frozen=True)
class SPIN(Method):
    """Heads that pay least attention to the image are scaled by `factor`, for each text query anew.

    `suppress` is the share of a layer's heads; `layers` None: the first half, as the paper finds best for LLaVA-1.5.
    """

    suppress: Share = 0.1
    factor: Weight = 0.1
    layers: Layers = None

    citation: ClassVar = "Sarkar et al., 2025, arXiv 2505.16411"
    cost: ClassVar = "attention scores of each step"
    off: ClassVar = "factor=1"
    passes: ClassVar = {"main": "heads are judged by how the text that is written looks at the picture"}
    needs_vision: ClassVar = True

    def check(self, model: LVLM) -> None:
        """ValueError if no head of a layer would be suppressed, or a layer is not there."""
        super().check(model)
        if self.suppress and self.factor != 1 and not round(self.suppress * model.n_heads):
            raise ValueError(
                f"suppress of SPIN is a share of the {model.n_heads} heads of a layer: {self.suppress} of them is none"
            )

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Suppress heads in each step."""
        layers = range(model.n_layers // 2) if self.layers is None else self.layers
        number = round(self.suppress * model.n_heads)

        def choose(layer: int, call: AttentionCall, _: NotedLayer, marks: Marks) -> tuple[AttentionCall, Tensor] | None:
            if layer not in layers:
                return None
            image, _generated = marks.rows(call, call.key.shape[2])
            pattern = call.pattern()
            looked = (pattern.float() * image[:, None, None]).sum(-1)  # [batch, head, query]
            least = looked.argsort(dim=1, stable=True).argsort(dim=1) < number
            asks = ~image[:, None, -pattern.shape[2] :]
            return call, pattern * torch.where(least & asks, self.factor, 1.0)[..., None].to(pattern)

        if self.factor == 1 or not number:
            yield GenerateOptions()
            return
        with attending(model, inputs, choose) as options:
            yield options
