"""interp: mechanistic interpretability of object hallucination in large vision-language models."""

from interp.interventions import VHR, EditHeads, VASparse, parse_method
from interp.models import LVLM, UnsupportedModelError, diagnose, load, read, visit
from interp.tables import read_run
from interp.trace import token_vhd, vhd

__all__ = [
    "LVLM",
    "VHR",
    "EditHeads",
    "UnsupportedModelError",
    "VASparse",
    "diagnose",
    "load",
    "parse_method",
    "read",
    "read_run",
    "token_vhd",
    "vhd",
    "visit",
]
