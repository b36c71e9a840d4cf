"""Vision-language models, loaded and described the same way whatever their family."""

from interp.models.families import FAMILIES, Family, UnsupportedModelError
from interp.models.inputs import Embedded, Inputs, interleave
from interp.models.lvlm import LVLM, Generation, load

__all__ = [
    "FAMILIES",
    "LVLM",
    "Embedded",
    "Family",
    "Generation",
    "Inputs",
    "UnsupportedModelError",
    "interleave",
    "load",
]
