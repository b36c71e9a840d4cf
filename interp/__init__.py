"""interp: mechanistic interpretability of object hallucination in large vision-language models."""

from interp.interventions import VHR, parse_method
from interp.models import LVLM, UnsupportedModelError, diagnose, load, read, visit
from interp.trace import token_vhd, vhd

__all__ = [
    "LVLM",
    "VHR",
    "UnsupportedModelError",
    "diagnose",
    "load",
    "parse_method",
    "read",
    "token_vhd",
    "vhd",
    "visit",
]
