"""Models, loaded, checked and described the same way whatever their family."""

from interp.models.attention import AttentionCall
from interp.models.doctor import Check, Diagnosis, diagnose
from interp.models.families import FAMILIES, TEXT, VISION, Family, UnsupportedModelError
from interp.models.inputs import Inputs
from interp.models.loading import load
from interp.models.lvlm import LVLM, Generation
from interp.models.sites import SITES, Head, read, visit
from interp.models.twins import TWINS, paired, twin

__all__ = [
    "FAMILIES",
    "LVLM",
    "SITES",
    "TEXT",
    "TWINS",
    "VISION",
    "AttentionCall",
    "Check",
    "Diagnosis",
    "Family",
    "Generation",
    "Head",
    "Inputs",
    "UnsupportedModelError",
    "diagnose",
    "load",
    "paired",
    "read",
    "twin",
    "visit",
]
