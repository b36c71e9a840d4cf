"""M3ID: contrast with the text alone, with a weight that grows along the text.

Favero et al., "Multi-Modal Hallucination Control by Visual Information Grounding", CVPR 2024, arXiv 2403.14003.  The
weight at step t is `(1 - exp(-gamma t)) / exp(-gamma t)`.

Paper: the contrast acts only while the model is unsure, its most probable token below `confidence`, whose value could
not be read again; no floor.  No code of its authors is known.  What later papers (AvisC, RITUAL, ONLY) call M3ID, and
the numbers that they compare with, is AvisC's (sangminwoo/AvisC `avisc_sample.py` @40b3fc0; the default here): it
acts always, `confidence=1`, among plausible tokens, `plausibility=0.1`.  Before, interp had the paper's rule at 0.9,
a number without a source: `confidence=0.9:plausibility=0`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from transformers import LogitsProcessor

from interp.interventions.base import Kept, Method, Preset, Share, Within
from interp.interventions.primitives.contrast import Contrast
from interp.interventions.primitives.side_by_side import SideBySide
from interp.metrics.contrast import growing_weight
from interp.models import LVLM, GenerateOptions, Inputs, image_free


class _WhereUnsure(LogitsProcessor):
    def __init__(self, inner: Contrast, confidence: float) -> None:
        self.inner, self.confidence = inner, confidence

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        log_p = scores.float().log_softmax(-1)
        sure = log_p.amax(-1, keepdim=True) >= math.log(self.confidence)
        return torch.where(sure, log_p, self.inner(input_ids, scores))


@dataclass(frozen=True)
class M3ID(Method):
    """Contrast with the text alone, the more the longer the text.

    `gamma=0` changes nothing; where the most probable token has at least `confidence`, it is left alone.
    """

    gamma: Annotated[float, Within(0, 1)] = 0.02
    confidence: Kept = 1.0
    plausibility: Share = 0.1

    citation: ClassVar = "Favero et al., CVPR 2024, arXiv 2403.14003"
    cost: ClassVar = "a second forward pass for each step, without the picture"
    off: ClassVar = "gamma=0"
    passes: ClassVar = {"main": "its logits are contrasted; the contrast pass only gives phi"}
    presets: ClassVar = {
        "avisc": Preset({"gamma": 0.02, "confidence": 1.0, "plausibility": 0.1}, "sangminwoo/AvisC @40b3fc0"),
        "crops": Preset({"gamma": 0.01, "confidence": 0.95, "plausibility": 0.0}, "ubamba98/CRoPS @5bdaaf6"),
        "paper": Preset(
            {"gamma": 0.02, "confidence": 0.3, "plausibility": 0.0}, "its formula; 0.3 after a re-implementation"
        ),
    }
    needs_vision: ClassVar = True

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Contrast the logits of each step at which the model is unsure."""
        if not self.gamma:
            yield GenerateOptions()
            return
        phi = SideBySide(model, image_free(model, inputs))
        contrast = Contrast(phi, partial(growing_weight, self.gamma), self.plausibility)
        with phi.riding():
            yield GenerateOptions(processors=(_WhereUnsure(contrast, self.confidence),), in_step=True)
