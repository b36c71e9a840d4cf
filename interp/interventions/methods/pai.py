"""PAI: attention to the image amplified, and contrast with the text alone.

Liu et al., "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs", ECCV 2024,
arXiv 2407.21771.  Scores of image keys become `s + alpha |s|`; logits `gamma theta - (gamma - 1) phi`.

Released code (LALBJ/PAI `attention.py` @f04eeb9, `CFG.py` @4a085d1), and the paper's text, push for the token that is
written: the last query only.  With the contrast on, the released code throws the switch after the prefill, so that the
push begins with the second token (`prefill`, auto: only if gamma is 1); an answer of one word is contrasted only.  Its
floor, 0.1, falls away with gamma 1.  In beams it contrasts each with another one's text; here each with its own.
`queries=text` pushes every text token of the prompt, as interp did before.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.interventions.base import Layers, Method, Preset, Share, Weight, Within
from interp.interventions.primitives.contrast import Contrast
from interp.interventions.primitives.kv_cache import Marks, NotedLayer, attending
from interp.interventions.primitives.side_by_side import SideBySide
from interp.models import LVLM, AttentionCall, GenerateOptions, Inputs, image_free


@dataclass(frozen=True)
class PAI(Method):
    """Attention to the image amplified, and contrast with the text alone.

    `layers` are those whose attention is pushed; auto: from a sixteenth of the depth on, as layer 2 of 32 there.
    `queries`: the last one of each pass, or all that are text; `prefill`: whether the prompts' own pass is pushed.
    """

    alpha: Weight = 0.2
    gamma: Annotated[float, Within(1, 1000)] = 1.1
    plausibility: Share = 0.1
    layers: Layers = None
    queries: Literal["last", "text"] = "last"
    prefill: bool | None = None

    citation: ClassVar = "Liu et al., ECCV 2024, arXiv 2407.21771"
    cost: ClassVar = "attention scores of each step; a second forward pass, without the picture"
    off: ClassVar = "alpha=0:gamma=1"
    passes: ClassVar = {"main": "it has the picture to look at; the contrast pass has none"}
    presets: ClassVar = {
        "readme": Preset({"alpha": 0.2, "gamma": 1.1}, "LALBJ/PAI README: all models, CHAIR and POPE"),
        "script": Preset({"alpha": 0.2, "gamma": 2.0}, "defaults of LALBJ/PAI chair_eval.py"),
        "llava-1.5": Preset({"alpha": 0.5, "gamma": 1.1}, "the paper [recalled]"),
        "shikra": Preset({"alpha": 0.6, "gamma": 1.1}, "the paper [recalled]"),
        "minigpt-4": Preset({"alpha": 0.2, "gamma": 1.1}, "the paper [recalled]"),
    }
    needs_vision: ClassVar = True

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Push attention, and contrast the logits of each step."""
        layers = range(round(model.n_layers / 16), model.n_layers) if self.layers is None else self.layers
        from_start = self.gamma == 1 if self.prefill is None else self.prefill
        phi = SideBySide(model, image_free(model, inputs)) if self.gamma > 1 else None

        def choose(layer: int, call: AttentionCall, _: NotedLayer, marks: Marks) -> tuple[AttentionCall, Tensor] | None:
            first = not model.now.goes_on(call.query.shape[2])
            if layer not in layers or (first and not from_start):
                return None
            scores = call.scores()
            pushed = marks.once("pushed", call, call.key.shape[2], lambda: self._pushed(call, marks, phi))
            pushed = pushed & call.visible
            return call, call.pattern(torch.where(pushed, scores + self.alpha * scores.abs(), scores))

        with ExitStack() as stack:
            options = GenerateOptions()
            if self.alpha and layers:
                options = stack.enter_context(attending(model, inputs, choose))
            if phi is not None:
                stack.enter_context(phi.riding())
                contrast = Contrast(phi, self.gamma - 1, self.plausibility)
                options = replace(options, processors=(contrast,), in_step=True)
            yield options

    def _pushed(self, call: AttentionCall, marks: Marks, phi: SideBySide | None) -> Bool[Tensor, "batch 1 query key"]:
        """Which queries push their attention to which keys, seen or not: the same in all layers of a step."""
        image, _generated = marks.rows(call, call.key.shape[2])
        if phi is not None and phi.rides:  # every other row is the weaker reader's, which has no picture
            image = image & (torch.arange(len(image), device=image.device) % 2 == 0)[:, None]
        asks = ~image[:, -call.query.shape[2] :]
        if self.queries == "last":
            asks = torch.arange(asks.shape[1], device=asks.device).eq(asks.shape[1] - 1).expand_as(asks)
        return asks[:, None, :, None] & image[:, None, None]
