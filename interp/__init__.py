"""interp: mechanistic interpretability of object hallucination in large vision-language models."""

from interp.experiments.tables import read_run
from interp.interventions import VHR, EditHeads, VASparse, parse_method
from interp.models import LVLM, UnsupportedModelError, diagnose, load, read, run_with_edits
from interp.trace.divergence import token_vhd, vhd

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
    "run_with_edits",
    "token_vhd",
    "vhd",
]
