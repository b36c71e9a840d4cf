"""VCD: contrast with the same prompt and a picture drowned in noise.

Leng et al., "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive Decoding",
CVPR 2024, arXiv 2311.16922, eqs. 3 and 4.  `theta` is the model, `phi` the model with the other picture:
`(1 + alpha) theta - alpha phi` among the tokens that theta finds plausible, `p_theta >= plausibility x max p_theta`.

Deviation: there noise is added by a diffusion schedule; here `image_free` says how the picture is changed, and `noise`
(default) replaces it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from interp.interventions.base import Method, Seed, Share, Weight
from interp.interventions.primitives.contrast import Contrast, WeakerReader
from interp.models import LVLM, GenerateOptions, Inputs, image_free
from interp.models.image_free import ImageFree


@dataclass(frozen=True)
class VCD(Method):
    """Contrast with the same prompt and a picture drowned in noise."""

    alpha: Weight = 1.0
    plausibility: Share = 0.1
    image_free: ImageFree = "noise"
    seed: Seed = 0

    citation: ClassVar = "Leng et al., CVPR 2024, arXiv 2311.16922"
    cost: ClassVar = "a second forward pass for each step"
    off: ClassVar = "alpha=0"
    passes: ClassVar = {"main": "its logits are contrasted; the contrast pass only gives phi"}
    needs_vision: ClassVar = True

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Contrast the logits of each step."""
        if not self.alpha:
            yield GenerateOptions()
            return
        phi = WeakerReader(model, image_free(model, inputs, self.image_free, self.seed))
        yield GenerateOptions(processors=(Contrast(phi, self.alpha, self.plausibility),), in_step=True)
