"""PAI: attention to the image amplified, and contrast with the text alone.

Liu et al., "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs", ECCV 2024,
arXiv 2407.21771.  Scores of image keys become `s + alpha |s|` for text queries; logits `gamma theta - (gamma - 1) phi`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from interp.interventions.base import Layers, Method, Share, Weight, Within
from interp.interventions.primitives.contrast import Contrast, WeakerReader
from interp.interventions.primitives.kv_cache import Marks, NotedLayer, attending
from interp.models import LVLM, AttentionCall, GenerateOptions, Inputs, image_free


@dataclass(frozen=True)
class PAI(Method):
    """Attention to the image amplified, and contrast with the text alone.

    `layers` are those whose attention is pushed; None: from a sixteenth of the depth on, as layer 2 of 32 in the paper.
    """

    alpha: Weight = 0.5
    gamma: Annotated[float, Within(1, 1000)] = 1.1
    plausibility: Share = 0.1
    layers: Layers = None

    citation: ClassVar = "Liu et al., ECCV 2024, arXiv 2407.21771"
    cost: ClassVar = "attention scores of each step; a second forward pass, without the picture"
    off: ClassVar = "alpha=0:gamma=1"
    passes: ClassVar = {"main": "it has the picture to look at; the contrast pass has none"}
    needs_vision: ClassVar = True

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Push attention, and contrast the logits of each step."""
        layers = range(round(model.n_layers / 16), model.n_layers) if self.layers is None else self.layers

        def choose(layer: int, call: AttentionCall, _: NotedLayer, marks: Marks) -> tuple[AttentionCall, Tensor] | None:
            if layer not in layers:
                return None
            image, _generated = marks.rows(call, call.key.shape[2])
            scores = call.scores()
            asks = ~image[:, -scores.shape[2] :]
            pushed = asks[:, None, :, None] & image[:, None, None] & scores.isfinite()
            return call, call.pattern(torch.where(pushed, scores + self.alpha * scores.abs(), scores))

        with ExitStack() as stack:
            options = GenerateOptions()
            if self.alpha and layers:
                options = stack.enter_context(attending(model, inputs, choose))
            if self.gamma > 1:
                contrast = Contrast(WeakerReader(model, image_free(model, inputs)), self.gamma - 1, self.plausibility)
                options = replace(options, processors=(contrast,), in_step=True)
            yield options
