"""ICD: contrast with the same picture under an instruction that disturbs.

Wang et al., "Mitigating Hallucinations in Large Vision-Language Models with Instruction Contrastive Decoding", Findings
of ACL 2024, arXiv 2403.18715.

Released code (p1k0pan/ICD @91ed22f): VCD's formula and floor, `(1 + alpha) theta - alpha phi`, drawn at temperature 1.
For LLaVA the disturbance stands in place of the system message, the question stays; for InstructBLIP it goes into the
Q-Former only.  Here it is written before the user's text, since templates differ in what a system message is; models
with a Q-Former that reads text get it there.  The paper's formula could not be read again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from interp.interventions.base import Method, Preset, Seed, Share, Weight, Within
from interp.interventions.primitives.contrast import Contrast, drawing
from interp.interventions.primitives.side_by_side import SideBySide
from interp.models import LVLM, GenerateOptions, Inputs

DISTURBANCES = {
    "every": "You are an object detector to recognize every different objects.",
    "shapes": "You are an object detector to recognize every different objects by focusing the shapes, colors and "
    "relationships of objects.",
    "avoid": "I want you avoid any specific identification or categorization of the objects depicted.",
    "confused": "You are a confused objects detector to provide a fuzzy overview or impression of the image.",
    "general": "You are an object detector to provide a general overview or impression of the image.",
}
"""The instructions of the released code, by interp's names."""
SLOT = "INSTRUCTION"


def disturbed(model: LVLM, inputs: Inputs, instruction: str) -> Inputs:
    """The same pictures and prompts with an instruction before the user's text, or in the Q-Former in its place.

    Raises ValueError for prompts that the model's template has not rendered: where the user's text begins is not known.
    """
    if "qformer_input_ids" in inputs.pixels:
        texts = [model.prompt(instruction, len(row)) for row in inputs.pictures]
        return replace(inputs, pixels=model.processed(inputs.pictures, texts).pixels)
    texts = []
    for text, row in zip(inputs.texts, inputs.pictures, strict=True):
        head = model.prompt(SLOT, len(row)).partition(SLOT)[0]
        if not text.startswith(head):
            raise ValueError(f"ICD writes before the user's text: expected a prompt that begins with {head!r}")
        texts.append(f"{head}{instruction} {text.removeprefix(head)}")
    return model.processed(inputs.pictures, texts)


@dataclass(frozen=True)
class ICD(Method):
    """Contrast with the same picture under an instruction that disturbs.

    `temperature`: tokens are drawn, from `seed` (0: the likeliest is taken).
    """

    alpha: Weight = 1.0
    plausibility: Share = 0.1
    instruction: Literal["every", "shapes", "avoid", "confused", "general"] = "confused"
    temperature: Annotated[float, Within(0, 100)] = 0.0
    seed: Seed = 0

    citation: ClassVar = "Wang et al., Findings of ACL 2024, arXiv 2403.18715"
    cost: ClassVar = "a second forward pass for each step"
    off: ClassVar = "alpha=0"
    passes: ClassVar = {"main": "its logits are contrasted; the contrast pass only gives phi"}
    presets: ClassVar = {
        name: Preset({"temperature": 1.0}, "p1k0pan/ICD experiments/gen_scripts @2fa44c5: alpha 1, floor 0.1, draws")
        for name in ("llava-1.5", "instructblip", "minigpt-4")
    }
    needs_vision: ClassVar = True

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Contrast the logits of each step."""
        if not self.alpha:
            yield GenerateOptions()
            return
        phi = SideBySide(model, disturbed(model, inputs, DISTURBANCES[self.instruction]))
        contrast = Contrast(phi, self.alpha, self.plausibility)
        with phi.riding(), drawing(self.temperature, self.seed) as drawn:
            yield GenerateOptions(processors=(contrast,), in_step=True, sampling=drawn)
