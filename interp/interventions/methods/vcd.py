"""VCD: contrast with the same prompt and a picture drowned in noise.

Leng et al., "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive Decoding",
CVPR 2024, arXiv 2311.16922, eqs. 3 and 4.  `theta` is the model, `phi` the model with the other picture:
`(1 + alpha) theta - alpha phi` among the tokens that theta finds plausible, `p_theta >= plausibility x max p_theta`.

Paper and released code (DAMO-NLP-SG/VCD @d6568ff) agree on this and on the noise, which a diffusion schedule mixes into
the pixel values (`noise_step`, 500 or 999 of 1,000).  Its numbers are draws at temperature 1 (`temperature`); the
default is greedy, as all methods here are compared.  The first release (@039af55) contrasts the first token of a text
only, by a slip (issues 7 and 13): every caption of that version is plain sampling with a floor (`only_first`).  The
scripts of HALC and VASparse mix the noise into pixels before they are normalised; that is not offered.
`image_free=noise` replaces the picture, and was interp's reading before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from interp.interventions.base import Method, Preset, Seed, Share, Weight, Within
from interp.interventions.primitives.contrast import Contrast, drawing
from interp.interventions.primitives.side_by_side import SideBySide
from interp.models import LVLM, GenerateOptions, Inputs, diffused, image_free

STEP = 500
SCRIPTS = "DAMO-NLP-SG/VCD cd_scripts"


@dataclass(frozen=True)
class VCD(Method):
    """Contrast with the same prompt and a picture drowned in noise.

    `noise_step`: of the diffusion (auto: 500); `temperature`: tokens are drawn, from `seed` (0: the likeliest is
    taken).
    """

    alpha: Weight = 1.0
    plausibility: Share = 0.1
    image_free: Literal["diffusion", "remove", "mask", "blank", "noise"] = "diffusion"
    noise_step: Annotated[int | None, Within(0, 999)] = None
    only_first: bool = False
    temperature: Annotated[float, Within(0, 100)] = 0.0
    seed: Seed = 0

    citation: ClassVar = "Leng et al., CVPR 2024, arXiv 2311.16922"
    cost: ClassVar = "a second forward pass for each step"
    off: ClassVar = "alpha=0"
    passes: ClassVar = {"main": "its logits are contrasted; the contrast pass only gives phi"}
    presets: ClassVar = {
        "llava-1.5-pope": Preset({"plausibility": 0.2, "noise_step": 500, "temperature": 1.0}, f"{SCRIPTS} @65a8fd7"),
        "llava-1.5": Preset({"noise_step": 500, "temperature": 1.0}, "defaults of its Python scripts @65a8fd7"),
        "instructblip": Preset({"noise_step": 999, "temperature": 1.0}, f"{SCRIPTS} @039af55"),
        "qwen-vl": Preset({"noise_step": 999, "temperature": 1.0}, f"{SCRIPTS} @039af55"),
    }
    needs_vision: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_idle(self.image_free == "diffusion", "image_free=diffusion", "noise_step")

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Contrast the logits of each step."""
        if not self.alpha:
            yield GenerateOptions()
            return
        if self.image_free == "diffusion":
            other = diffused(inputs, STEP if self.noise_step is None else self.noise_step, self.seed)
        else:
            other = image_free(model, inputs, self.image_free, self.seed)
        alpha = self._of_first if self.only_first else self.alpha
        phi = SideBySide(model, other)
        contrast = Contrast(phi, alpha, self.plausibility)
        with phi.riding(), drawing(self.temperature, self.seed) as drawn:
            yield GenerateOptions(processors=(contrast,), in_step=True, sampling=drawn)

    def _of_first(self, step: int) -> float:
        return self.alpha if step == 1 else 0.0
